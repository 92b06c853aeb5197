"""What every test shares. torch is imported where it is used: the generator tests run where it is not installed."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# The lock files of this run: the default folder is this user's, and is refused in containers.
os.environ["SENET_FAST_LEASES"] = tempfile.mkdtemp(prefix="senet_fast_leases-")
atexit.register(shutil.rmtree, os.environ["SENET_FAST_LEASES"], ignore_errors=True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    import torch

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

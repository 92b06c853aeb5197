"""What every test shares. Nothing here imports torch: the generator tests run where it is not installed."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent

"""The axes of the op's tests: element type, memory layout, instruction set."""

from collections.abc import Iterator

import pytest
import torch
from se_testing import DTYPES, LAYOUTS, Layout

from senet_fast.se import _C


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.name)
def layout(request: pytest.FixtureRequest) -> Layout:
    return request.param


@pytest.fixture(params=_C.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this processor has, selected for the test."""
    before = _C.isa()
    _C.select_isa(request.param)
    yield request.param
    _C.select_isa(before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["ticket", "cluster"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kernel family of a GPU."""
    if request.param == "cluster" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs sm_90")
    monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", request.param)
    return str(request.param)

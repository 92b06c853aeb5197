"""What the tests of the op on a GPU share."""

import os
from collections.abc import Iterator

import pytest
import torch
from se_testing import Arguments, exact, value_and_grads
from torch import Tensor

from senet_fast.se import _C, reference, squeeze_excite

DEVICE = "cuda"
needs_gpu = pytest.mark.skipif(
    _C.build_info()["cuda"] is None or not torch.cuda.is_available(), reason="needs a GPU and a build with CUDA"
)
# of a result, relative to its largest number: half types are rounded twice where an activation follows the scale
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaNs: outputs, saved tensors and scratch. Not without torch's cache, as
    compute-sanitizer runs these tests: initcheck is to see what nobody has written.
    """
    cached = "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ
    torch.use_deterministic_algorithms(torch.cuda.is_available() and cached)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(arguments: Arguments) -> Arguments:
    """The same arguments with their strides on the GPU."""
    moved = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            moved[name] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
            moved[name].copy_(value)
    return arguments | moved


def exclude_ties(arguments: Arguments) -> None:
    """Where relu's argument is so near to 0 that its sign is a matter of rounding, the residual becomes another one."""
    if arguments.get("post_activation") == "relu" and isinstance(arguments.get("residual"), Tensor):
        v = reference.squeeze_excite(**(exact(arguments) | {"post_activation": "identity"}))
        arguments["residual"][v.abs() < 2**-6] += 1


def assert_close(arguments: Arguments) -> None:
    exclude_ties(arguments)
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(reference.squeeze_excite, exact(arguments), grad_y.double())
    actual = value_and_grads(squeeze_excite, on_gpu(arguments), grad_y.to(DEVICE))
    largest = {name: value.abs().max().item() for name, value in expected.items()}
    of_weights = max(size for name, size in largest.items() if name.startswith("fc"))  # a bias's sum may cancel
    for name, value in actual.items():
        error = (value.cpu().double() - expected[name]).abs().max().item()
        assert error <= TOLERANCES[value.dtype] * (of_weights if name.startswith("fc") else largest[name]), name

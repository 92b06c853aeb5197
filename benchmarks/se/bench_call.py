"""What a call of FusedSE costs beside the op: on one pixel, where there is next to nothing to compute."""

from typing import Any

import torch

from senet_fast.se import FusedSE
from senet_fast.se.module import weights_for_op

BLOCK, X = FusedSE(16, 4).eval(), torch.randn(1, 16, 1, 1)
LAYERS = (BLOCK._modules["fc1"], BLOCK._modules["fc2"])
TENSORS = (BLOCK.fc1.weight, BLOCK.fc1.bias, BLOCK.fc2.weight, BLOCK.fc2.bias)
CALLS = {
    "the weights, and whether the layers are as they were built": lambda: weights_for_op(BLOCK, X, *LAYERS),
    "the weights alone": lambda: [(layer._parameters["weight"], layer._parameters["bias"]) for layer in LAYERS],
    "the op": lambda: torch.ops.senet_fast.squeeze_excite.default(X, *TENSORS),
    "FusedSE": lambda: BLOCK(X),
}


def pytest_generate_tests(metafunc: Any) -> None:
    metafunc.parametrize("name", CALLS)


def bench_call(benchmark: Any, name: str) -> None:
    benchmark.group = "a call, inference"
    with torch.inference_mode():
        benchmark.pedantic(CALLS[name], rounds=200, iterations=1000, warmup_rounds=5)

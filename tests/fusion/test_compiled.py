"""torch.compile of a fused model: what stands in front of the op is its prologue there too, at inference."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_testing import randomize, relative
from hosts import HOSTS, Bottleneck
from torch import Tensor, fx, nn
from zoo import C

from senet_fast import fuse

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")


def traced(model: nn.Module) -> tuple[Callable[[Tensor], Any], list[str]]:
    """The compiled model, and the names of what its graphs call, kernels excepted."""
    names: list[str] = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        names.extend(getattr(node.target, "__name__", str(node.target)).split(".")[0] for node in graph.graph.nodes)
        return graph.forward

    return torch.compile(model, fullgraph=True, backend=backend), names


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.prologue])
def test_prologue(name: str) -> None:
    plain = randomize(HOSTS[name].make()).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(HOSTS[name].shape)
    run, names = traced(fused)
    with torch.no_grad():
        assert relative(plain(x), run(x)) < 1e-5
    assert names.count("squeeze_excite_prologue") == 1
    assert names.count("squeeze_excite_into") == 0  # memory is the compiler's concern
    names.clear()
    assert relative(plain(x), run(x)) < 1e-5  # with gradients the norm has to be seen
    assert names.count("squeeze_excite_prologue") == 0
    assert names.count("squeeze_excite") == 1


@pytest.mark.slow
def test_inductor() -> None:
    plain = randomize(nn.Sequential(Bottleneck(), Bottleneck())).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    run = torch.compile(fused, fullgraph=True)
    for x in (torch.randn(2, C, 7, 9), torch.randn(2, C, 7, 9).contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            assert relative(plain(x), run(x)) < 1e-5


def test_transforms_inside_a_compiled_call() -> None:
    """The norm is run by itself there: what stands in front is taken over at inference without transforms."""
    plain = randomize(Bottleneck()).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(2, 1, C, 7, 9)
    with torch.no_grad():
        y = torch.compile(lambda x: torch.func.vmap(lambda one: fused(one))(x), fullgraph=True, backend="eager")(x)
        assert relative(torch.func.vmap(plain)(x), y) < 1e-5

"""compile_pass where weights are constants: what Inductor makes of it, and whole networks."""

import copy
from typing import Any

import needs
import pytest
import torch
from fusion_testing import randomize, relative
from networks import randomized
from pointwise import SHAPE, Bottleneck, Projected
from test_compile_pass_convolutions import passed
from torch import Tensor, nn

from senet_fast import compile_pass, fuse

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "frozen")


class Viewed(Projected):
    """What is behind can be viewed as the contiguous tensor that it is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), -1)


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Projected, Bottleneck, Viewed])
def test_inductor(kind: type[nn.Module], dtype: torch.dtype) -> None:
    """Weights are prepared before anything is run, for the layout of Inductor's convolutions; results keep theirs."""
    plain = randomize(kind()).eval().to(dtype)
    x = torch.randn(2, *SHAPE[1:]).to(dtype)
    compiled = torch.compile(plain, fullgraph=True, options={"pre_grad_custom_pass": compile_pass})
    with torch.no_grad():
        compiled(x)
        with torch.autograd.profiler.profile() as profile:
            y = compiled(x)
        expected = plain(x)
    names = [event.name.removeprefix("senet_fast::") for event in profile.function_events if "senet_f" in event.name]
    assert names == ["squeeze_excite_conv"]
    assert relative(expected, y) < (1e-5 if dtype == torch.float32 else 2e-2)
    assert y.stride() == expected.stride()


NETWORKS: dict[str, dict[str, Any]] = {
    "seresnet50": {"layers": (1, 1, 2, 1), "channels": (16, 32, 64, 128)},
    "efficientnet_b0": {},
    "mobilenetv3_large_100": {},
    "regnety_002": {},
}
KEPT = {"blocks.1": (0,), "blocks.2": (0,), "blocks.3": (0,), "blocks.4": (0,), "blocks.5": (0,)}


def network(name: str) -> tuple[nn.Module, int]:
    """Of timm, with the number of convolutions that fuse() takes over: one beside each block."""
    timm = needs.library("timm")
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=10, **NETWORKS[name])
    plain = randomized(plain, torch.randn(8, 3, 96, 96))
    fused = fuse(copy.deepcopy(plain)).fused
    assert all("conv" in f"{entry.prologue}, {entry.epilogue}".split(", ") for entry in fused)
    return plain, len(fused)


def error(exact: Tensor, y: Tensor) -> float:
    return float((exact - y).square().mean().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    plain, blocks = network(name)
    x = torch.randn(2, 3, 96, 96)
    y, backend = passed(plain, x)
    assert (backend.convolutions, backend.calls) == (blocks, 0)
    exact = copy.deepcopy(plain).double()(x.double())
    assert error(exact, y) < 1.5 * error(exact, plain(x))


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.parametrize("name", ["seresnet50", "efficientnet_b0", "mobilenetv3_large_100"])
def test_networks_with_inductor(name: str) -> None:
    """One block of a kind: the ops that the compiled code calls, and its errors beside those of frozen code without."""
    plain, _ = network(name)
    for path, kept in KEPT.items() if hasattr(plain, "blocks") else ():
        row = plain.get_submodule(path)
        row._modules = {key: child for i, (key, child) in enumerate(row._modules.items()) if i in kept}
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        own = torch.compile(copy.deepcopy(plain), fullgraph=True)(x)
        torch._dynamo.reset()
        run = torch.compile(copy.deepcopy(plain), fullgraph=True, options={"pre_grad_custom_pass": compile_pass})
        run(x)
        with torch.autograd.profiler.profile() as profile:
            y = run(x)
        exact = copy.deepcopy(plain).double()(x.double())
    called = [event.name for event in profile.function_events if event.name.startswith("senet_fast::")]
    assert len(called) == len(fuse(plain).fused)
    assert {*called} <= {"senet_fast::squeeze_excite_conv", "senet_fast::squeeze_excite_conv_into"}
    assert error(exact, y) < 1.5 * error(exact, own)

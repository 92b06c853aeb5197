"""fuse() on modules made at random: SE blocks in any style are found, near misses are never touched."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import assert_same, counts_calls, randomize, relative
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from senet_fast import fuse

Function = Callable[..., Any]

ACTIVATIONS: dict[str, Function] = {
    "relu": F.relu,
    "silu": lambda z: z * torch.sigmoid(z),
    "gelu": F.gelu,
    "hardswish": lambda z: z * F.relu6(z + 3) / 6,
    "leaky_relu(0.25)": lambda z: torch.maximum(z, 0.25 * z),
    "tanh": torch.tanh,
    "mish": F.mish,
}
GATES: dict[str, Function] = {
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "hardsigmoid": lambda z: (z + 3).clamp(0, 6) / 6,
    "tanh": torch.tanh,
    "1 + tanh": lambda z: 1 + torch.tanh(z),
    "relu": lambda z: z.clamp(min=0),
    "identity": lambda z: z,
}
SQUEEZES: dict[str, Function] = {
    "mean": lambda x: x.mean((2, 3)),
    "flat": lambda x: x.flatten(2).mean(-1),
    "twice": lambda x: x.mean(3).mean(2),
    "sum": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    "pool": lambda x: F.adaptive_avg_pool2d(x, (1, 1)).flatten(1),
    "pool of size": lambda x: F.avg_pool2d(x, x.shape[2:]).view(x.shape[0], -1),
    "einsum": lambda x: torch.einsum("bchw->bc", x) / (x.shape[2] * x.shape[3]),
}
SCALES: dict[str, Function] = {
    "mul": lambda x, g: x * g[:, :, None, None],
    "mul_left": lambda x, g: torch.mul(g.unsqueeze(-1).unsqueeze(-1), x),
    "expand": lambda x, g: x * g.view(g.shape[0], -1, 1, 1).expand_as(x),
    "expand_shape": lambda x, g: g.reshape(g.shape[0], g.shape[1], 1, 1).expand(x.shape) * x,
}


class Block(nn.Module):
    """All that is chosen is a function; ``wrong`` is put somewhere."""

    def __init__(
        self, C: int, R: int, bias: tuple[bool, bool], as_conv: tuple[bool, bool], chosen: list[Function]
    ) -> None:
        super().__init__()
        make: list[Function] = [nn.Linear, lambda i, o, bias: nn.Conv2d(i, o, 1, bias=bias)]
        self.first, self.last = make[as_conv[0]](C, R, bias=bias[0]), make[as_conv[1]](R, C, bias=bias[1])
        self.as_conv, (self.squeeze, self.act, self.gate, self.scale) = as_conv, chosen

    @staticmethod
    def layer(part: nn.Module, z: Tensor, as_conv: bool) -> Tensor:
        return part(z[:, :, None, None]).flatten(1) if as_conv else part(z)

    def excite(self, z: Tensor) -> Tensor:
        hidden = self.act(self.layer(self.first, z, self.as_conv[0]))
        return self.gate(self.layer(self.last, hidden, self.as_conv[1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x, self.excite(self.squeeze(x)))


class Within(nn.Module):
    """The block's forward in the middle of another."""

    def __init__(self, block: Block, act: Function, residual: bool) -> None:
        super().__init__()
        channels = block.last.weight.shape[0]
        self.conv, self.bn, self.block = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), block
        self.act, self.residual = act, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y = self.block.scale(y, self.block.excite(self.block.squeeze(y)))
        return self.act(y + x if self.residual else y)


sizes = st.tuples(st.integers(2, 9), st.integers(2, 6))
pairs = st.tuples(st.booleans(), st.booleans())
few = settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])


def keys(table: dict[str, Function]) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(table))


@few
@given(sizes, pairs, pairs, keys(SQUEEZES), keys(ACTIVATIONS), keys(GATES), keys(SCALES))
def test_blocks_in_any_style_are_found(
    size: tuple[int, int], bias: Any, as_conv: Any, squeeze: str, act: str, gate: str, scale: str
) -> None:
    chosen = [SQUEEZES[squeeze], ACTIVATIONS[act], GATES[gate], SCALES[scale]]
    plain = randomize(Block(*size, bias, as_conv, chosen))
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.channels, entry.hidden, entry.activation, entry.gate) == (*size, act, gate)
    assert_same(plain, fused, torch.randn(3, size[0], 4, 7))


@pytest.mark.slow
@few
@given(sizes, pairs, pairs, keys(SQUEEZES), keys(ACTIVATIONS), keys(GATES), keys(ACTIVATIONS), st.booleans())
def test_blocks_in_the_middle_are_found(
    size: tuple[int, int], bias: Any, as_conv: Any, squeeze: str, act: str, gate: str, last: str, residual: bool
) -> None:
    block = Block(*size, bias, as_conv, [SQUEEZES[squeeze], ACTIVATIONS[act], GATES[gate], SCALES["mul"]])
    plain = randomize(Within(block, ACTIVATIONS[last], residual))
    fused = copy.deepcopy(plain)
    entry, _of_the_child = fuse(fused).fused  # which is a block too, though nobody calls it
    assert (entry.path, entry.activation, entry.gate) == ("", act, gate)
    x = torch.randn(3, size[0], 4, 7)
    for training in (True, False):
        assert relative(plain.train(training)(x), fused.train(training)(x)) < 1e-5
    with torch.no_grad():
        assert counts_calls(lambda: fused(x)) == 1
        assert relative(plain(x), fused(x)) < 1e-5


WRONG: dict[str, tuple[int, Function]] = {
    "max": (0, lambda x: x.amax((2, 3))),
    "root_mean_square": (0, lambda x: x.square().mean((2, 3)).sqrt()),
    "one_axis": (0, lambda x: x.mean(2)[:, :, 0]),
    "centre": (0, lambda x: x[:, :, 1, 1]),
    "of_the_batch": (0, lambda x: x.mean((0, 2, 3), keepdim=True)[:, :, 0, 0].expand(x.shape[0], -1)),
    "scaled": (0, lambda x: 1.01 * x.mean((2, 3))),
    "detached": (0, lambda x: x.detach().mean((2, 3))),
    "standardised": (0, lambda x: x.mean((2, 3)) / x.std((2, 3))),
    "elu": (1, F.elu),
    "softplus": (1, F.softplus),
    "quick_gelu": (1, lambda z: z * torch.sigmoid(1.702 * z)),
    "nearly_relu": (1, lambda z: F.relu(z) + 0.001 * z.square()),
    "glu": (1, lambda z: z * z.roll(1, 1)),
    "softmax": (2, lambda z: z.softmax(1)),
    "twice_sigmoid": (2, lambda z: 2 * torch.sigmoid(z)),
    "normalised": (2, lambda z: torch.sigmoid(z - z.mean(1, keepdim=True))),
    "position": (2, lambda z: torch.sigmoid(z) * torch.linspace(0.9, 1, z.shape[1])),
    "reversed": (3, lambda x, g: x * g.flip(1)[:, :, None, None]),
    "of_a_neighbour": (3, lambda x, g: x * g.flip(0)[:, :, None, None]),
    "shifted": (3, lambda x, g: x.roll(1, 3) * g[:, :, None, None]),
    "ramp": (3, lambda x, g: x * (g[:, :, None, None] * torch.linspace(0, 1, x.shape[3]))),
    "square": (3, lambda x, g: x * x * g[:, :, None, None]),
    "scale_detached": (3, lambda x, g: x * g.detach()[:, :, None, None]),
}


@pytest.mark.parametrize("wrong", WRONG)
@settings(few, max_examples=2)
@given(sizes, pairs, pairs, keys(ACTIVATIONS), st.booleans())
def test_near_misses_are_never_touched(
    wrong: str, size: tuple[int, int], bias: Any, as_conv: Any, act: str, within: bool
) -> None:
    chosen = [SQUEEZES["mean"], ACTIVATIONS[act], torch.sigmoid, SCALES["mul"]]
    at, function = WRONG[wrong]
    chosen[at] = function
    plain: nn.Module = Block(*size, bias, as_conv, chosen)
    plain = randomize(Within(plain, F.relu, True) if within else plain)
    fused = copy.deepcopy(plain)
    assert not fuse(fused).fused
    assert type(fused) is type(plain)
    x = torch.randn(3, size[0], 4, 7)
    assert torch.equal(fused.eval()(x), plain.eval()(x))

"""y of a gated convolution in the place of its residual: the op, and when Inductor is made to do that."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_testing import FORMATS, conv_arguments, lay_out, with_prepared
from se_testing import assert_same_bits
from test_conv_op import SIDES, split
from torch import Tensor, nn
from torch.nn import functional as F

from senet_fast.se.conv import squeeze_excite_conv

INTO = torch.ops.senet_fast.squeeze_excite_conv_into.default
C = 32


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("sizes", [(9,), (5, 13), (2, 3, 4), (1, 2)], ids=str)
def test_in_the_place_of_the_residual(
    dtype: torch.dtype, side: str, channels_last: bool, sizes: tuple[int, ...]
) -> None:
    arguments = conv_arguments(
        dtype,
        side=side,
        sizes=sizes,
        channels_last=channels_last and len(sizes) > 1,
        residual=True,
        norm=True,
        pre=True,
    )
    for given in (arguments, with_prepared(arguments)):
        expected = squeeze_excite_conv(**given)
        args, kwargs = split(given)
        y = given["residual"].clone()
        for added, out in ((y, y), (given["residual"], torch.full_like(expected, float("nan")))):
            with torch.no_grad():
                assert INTO(*(*args[:7], added), **kwargs, y=out) is None
            assert_same_bits(out, expected)


@pytest.mark.parametrize("side", SIDES)
def test_of_another_layout(side: str) -> None:
    arguments = conv_arguments(side=side, residual=True, sizes=(4, 6))
    expected, (args, kwargs) = squeeze_excite_conv(**arguments), split(arguments)
    larger = torch.zeros(2, 40, 4, 6)
    for y in (lay_out(arguments["residual"].clone(), False), larger[:, 1:38]):
        y.copy_(arguments["residual"])
        INTO(*args[:7], y, **kwargs, y=y)
        assert_same_bits(y.contiguous(memory_format=FORMATS[4]), expected)
    assert not larger[:, 0].any()
    assert not larger[:, 38:].any()


def test_registration() -> None:
    args, kwargs = split(conv_arguments(residual=True))
    y = torch.empty_like(args[7])
    torch.library.opcheck(INTO, args, kwargs | {"y": y})
    before = y._version
    INTO(*args, **kwargs, y=y)
    assert y._version == before + 1
    for bad, message in (
        (torch.empty(2, 37, 5, 12), "y has shape [2, 37, 5, 12]; expected [2, 37, 5, 13]"),
        (y.double(), "y is Double; expected the dtype of x (Float)"),
    ):
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            INTO(*(t.to("meta") if isinstance(t, Tensor) else t for t in args), **kwargs, y=bad.to("meta"))
    with pytest.raises(RuntimeError, match="has no derivative"):
        INTO(*args, **kwargs, y=y.requires_grad_())
    same = conv_arguments(C_in=C, C_out=C, residual=True)
    args, kwargs = split(same)
    with pytest.raises(RuntimeError, match="single memory location"):
        INTO(*args, **kwargs, y=same["x"])


class Network(nn.Module):
    """A convolution's result r, another's x, and a gated convolution of x that r is added to."""

    def __init__(self, end: Callable[..., Any]) -> None:
        super().__init__()
        self.end = end
        self.one, self.two = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(3, C, 3, padding=1)
        made = conv_arguments(C_in=C, C_out=C)
        self.names = [name for name, value in made.items() if isinstance(value, Tensor) and name != "x"]
        for name in self.names:
            self.register_buffer(name, made[name])

    def gated(self, x: Tensor, residual: Tensor | None) -> Tensor:
        weights = {name: getattr(self, name) for name in self.names}
        return squeeze_excite_conv(x, **weights, residual=residual, post_activation="relu")

    def forward(self, image: Tensor, given: Tensor) -> Any:
        return self.end(self, self.one(image), self.two(image), given)


def twice(network: Network, x: Tensor, r: Tensor, given: Tensor) -> Tensor:
    y = network.gated(x, r)
    return network.gated(y, r) + y


def chain(network: Network, x: Tensor, r: Tensor, given: Tensor) -> Tensor:
    for _ in range(3):
        r = network.gated(F.silu(x + r), r)
    return r


# What is made of x, r and an input, and how often y may take the place of the residual.
ENDS: dict[str, tuple[Callable[..., Any], int]] = {
    "r is read by nobody else": (lambda n, x, r, given: n.gated(x, r), 1),
    "r is read before": (lambda n, x, r, given: n.gated(x + r.mean(), r), 1),
    "r is no convolution's": (lambda n, x, r, given: n.gated(x, F.silu(r) + 1), 1),
    "a chain": (chain, 3),
    "no residual": (lambda n, x, r, given: n.gated(x, None), 0),
    "r is read later": (lambda n, x, r, given: n.gated(x, r) + r, 0),
    "r is returned": (lambda n, x, r, given: (n.gated(x, r), r), 0),
    "a view of r is returned": (lambda n, x, r, given: (n.gated(x, r), r.flatten(1)), 0),
    "a view of r is read later": (lambda n, x, r, given: n.gated(x, r) + r[:, :, :1], 0),
    "r is a view": (lambda n, x, r, given: (n.gated(x, (t := r + 1).view(r.shape)), t), 0),
    "r is a part": (lambda n, x, r, given: (n.gated(x, (t := torch.cat([r, x], 1))[:, :C]), t), 0),
    "r is given": (lambda n, x, r, given: n.gated(x, given), 0),
    "r is a view of what is given": (lambda n, x, r, given: n.gated(x, given.view(r.shape)), 0),
    "r is x": (lambda n, x, r, given: n.gated(x, x), 0),
    "r is a view of x": (lambda n, x, r, given: n.gated(x, x.view(x.shape)), 0),
    "r is read by two": (twice, 1),
    "a copy of r is returned": (lambda n, x, r, given: (n.gated(x, r), r.clone()), None),
    "r is converted to its own type": (lambda n, x, r, given: (n.gated(x, r.to(r.dtype)), r), 0),
    "r is spread": (lambda n, x, r, given: n.gated(x, r[:, :, :1].expand(r.shape)), 0),
}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("freezing", [True, False])
@pytest.mark.parametrize("end", ENDS)
def test_compiled(end: str, freezing: bool) -> None:
    network = Network(ENDS[end][0]).eval()
    image, given = torch.randn(2, 3, 8, 8), torch.randn(2, C, 8, 8)
    kept = given.clone()
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, options={"freezing": freezing})
        expected = network(image, given)
        torch.testing.assert_close(compiled(image, given), expected)
        with torch.autograd.profiler.profile() as profile:
            torch.testing.assert_close(compiled(image, given), expected)
    names = [event.name for event in profile.function_events]
    in_place = names.count("senet_fast::squeeze_excite_conv_into")
    assert in_place + names.count("senet_fast::squeeze_excite_conv") >= 1
    assert ENDS[end][1] in (in_place, None)
    assert_same_bits(given, kept)

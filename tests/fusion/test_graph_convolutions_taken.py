"""fuse() on fx.GraphModules: which 1x1 convolutions beside a gate it takes, compiled graphs and whole networks."""

import copy
from collections import Counter
from typing import Any

import needs
import pytest
import torch
from fusion_testing import assert_compiled, ops, randomize, relative
from networks import randomized, shortened
from pointwise import (
    CASES,
    SHAPE,
    ActivatedBetween,
    Added,
    Bottleneck,
    FrontIsReadTwice,
    Functional,
    Grouped,
    Projected,
    ReadTwice,
    Strided,
    TwoReaders,
    Wide,
)
from test_graph_convolutions import HOWS, ONE_OP, pair, same
from test_graph_neighbours import graph_of
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import C, ConvMean, LinearExpand

from senet_fast import fuse


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Added()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class SharedConvolution(Added):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.conv(x))


class Between(Bottleneck):
    """What the convolution reads is written to before the op would read it."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv2(x)
        places = whole.flatten(2)
        y = self.conv3(whole)
        places.mul_(2)
        return self.se(y) + x


class IsReturned(Bottleneck):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = self.conv3(self.conv2(x))
        return self.se(self.bn3(y)), y


class FrontOfAView(FrontIsReadTwice):
    """The activation in front of the convolution changes what is read elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.cat([self.dw(x), x], 1)
        return self.se(self.conv(F.silu(whole[:, :C], inplace=True))) + whole[:, :C]


LEFT = {
    ActivatedBetween: "",
    Wide: "",
    Strided: "",
    Grouped: "",
    ReadTwice: "",
    IsReturned: "",
    CalledTwice: "block.conv.weight is used more than once",
    SharedConvolution: "conv.weight is used more than once",
    Between: "something is written to between what is beside it",
    Functional: "weight is no child's, of which what is prepared could be kept",
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", LEFT)
def test_what_it_does_not_take(kind: type[nn.Module], how: str) -> None:
    """The rest of the neighbours is taken over all the same, and what is beside the convolution told."""
    x = torch.randn(2, *SHAPE[1:])
    plain = graph_of(randomize(kind()), x, how)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert report.fused
    assert not any("conv" in f"{entry.prologue} {entry.epilogue}" for entry in report.fused)
    assert all(entry.prologue or entry.epilogue for entry in report.fused) == (kind is not Between)
    assert LEFT[kind] in report.explain("")
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            expected, actual = plain(x.clone()), fused(x.clone())
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


TAKEN = {FrontIsReadTwice: "conv", FrontOfAView: "conv", TwoReaders: "conv, batch_norm"}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_read_twice_beside_the_convolution(kind: type[nn.Module], how: str) -> None:
    """What is in front stays there; y + x of the gate itself is a part of the gate."""
    x = torch.randn(2, *SHAPE[1:])
    plain = graph_of(randomize(kind()), x, how)
    fused = copy.deepcopy(plain)
    assert [entry.prologue for entry in fuse(fused).fused] == [TAKEN[kind]]
    same(plain, fused, x)


@pytest.mark.parametrize(("sizes", "taken"), [((2, 2), False), ((2, 4), True)])
def test_maps_that_the_op_has_no_kernel_for(sizes: tuple[int, int], taken: bool) -> None:
    """Known in an exported graph."""
    x = torch.randn(2, C, *sizes)
    plain = graph_of(randomize(Projected()), x, "exported")
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert [entry.epilogue for entry in report.fused] == ["conv, batch_norm" if taken else "in place"]
    assert taken != ("no kernel with a convolution for such maps" in report.explain(""))
    same(plain, fused, x, ONE_OP if taken else None)


@pytest.mark.parametrize("axes", [(0,), (0, 2, 3)])
def test_exported_for_other_sizes(axes: tuple[int, ...]) -> None:
    """Traced with a map of few pixels, where those of other calls have more."""
    model = Bottleneck(ConvMean)
    sizes = ({axis: torch.export.Dim(f"axis{axis}", min=1 if axis == 0 else 2, max=64) for axis in axes},)
    shape = (2, C, 2, 3) if 2 in axes else (2, C, 5, 7)
    plain: Any = torch.export.export(randomize(model).eval(), (torch.randn(shape),), dynamic_shapes=sizes).module()
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.prologue, entry.epilogue) == CASES["bottleneck"][1:]
    for batch in (1, 5):
        same(plain, fused, torch.randn(batch, C, *((9, 8) if 2 in axes else (5, 7))))


@pytest.mark.parametrize("how", HOWS)
def test_blocks_in_a_row(how: str) -> None:
    """What is behind one is in front of the next; one convolution between two belongs to the first."""
    x = torch.randn(2, *SHAPE[1:])
    parts = (Added(), Bottleneck(), Added(), LinearExpand(), nn.Conv2d(C, C, 1), LinearExpand())
    plain = graph_of(randomize(nn.Sequential(*parts)), x, how)
    fused = copy.deepcopy(plain)
    taken = [("conv" in f"{e.prologue} {e.epilogue}") for e in fuse(fused).fused]
    assert taken == [True, True, True, True, False]
    with torch.no_grad():
        assert relative(plain(x), fused(x)) < 1e-5
        assert Counter(ops(lambda: fused(x)))["squeeze_excite_conv"] == 4
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("name", "how"), [("projected", "traced"), ("bottleneck", "exported")])
def test_compiled(name: str, how: str, frozen: bool) -> None:
    """Where weights are constants they are prepared once, before anything is run."""
    plain, fused = pair(name, how)
    x = torch.randn(2, *SHAPE[1:])
    assert_compiled(plain, fused, x, frozen)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_exported_again(how: str) -> None:
    plain, fused = pair("bottleneck", how)
    x = torch.randn(2, *SHAPE[1:])
    program = torch.export.export(fused, (x,))
    called = [str(node.target) for node in program.graph.nodes if "senet_fast" in str(node.target)]
    assert called == ["senet_fast.squeeze_excite.default"]
    again = program.module()
    same(plain, again, x, None)


NETWORKS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},
    "seresnet50": {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [*((name, "traced") for name in NETWORKS), ("efficientnet_b0", "exported")])
def test_networks(name: str, how: str) -> None:
    """One convolution beside each block. Errors beside eager's, of a few networks: a rounding early in one grows."""
    timm = needs.library("timm")
    squares = torch.zeros(2, dtype=torch.float64)
    for seed in range(3):
        torch.manual_seed(seed)
        model = shortened(timm.create_model(name, num_classes=10, **NETWORKS[name]), name)
        x = torch.randn(8, 3, 96, 96)
        plain = graph_of(randomized(model, x), x, how)
        fused = copy.deepcopy(plain)
        blocks = fuse(fused).fused
        assert all("conv" in f"{entry.prologue}, {entry.epilogue}".split(", ") for entry in blocks)
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(x.double())
            assert ops(lambda: fused(x)) == len(blocks) * ONE_OP  # noqa: B023
            squares += torch.stack([(exact - run(x)).square().mean() / exact.var() for run in (fused, plain)])
    assert len(blocks) >= 4
    error, own = squares.sqrt().tolist()
    assert error < 1.5 * own

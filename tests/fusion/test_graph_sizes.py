"""fuse() on exported models whose sizes are symbols: of the batch, the map, of both, or known to the data alone."""

import pytest
import torch
from fusion_testing import counts_calls, randomize, relative
from torch import Tensor, fx, nn
from torch.export import Dim, export
from zoo import ZOO, C, LinearExpand

from senet_fast import fuse


def any_sizes(model: nn.Module, x: Tensor, axes: tuple[int, ...]) -> fx.GraphModule:
    sizes = {axis: Dim(f"axis{axis}", min=2, max=64) for axis in axes}
    return export(model, (x,), dynamic_shapes=(sizes,)).module()  # type: ignore[return-value]


SYMBOLIC = {name: (0, 2, 3) for name, case in ZOO.items() if case.shape == (2, C, 5, 7)}
SYMBOLIC["avg_pool_of_size"] = (0,)  # torch.export takes its kernel's size to be fixed


@pytest.mark.parametrize(("name", "axes"), [*SYMBOLIC.items(), ("linear_expand_as", (0,)), ("sum_and_divide", (0,))])
def test_exported_with_symbols(name: str, axes: tuple[int, ...]) -> None:
    """Views by sizes that are symbols, read from the network's input, not from x."""
    plain = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), randomize(ZOO[name].make()), nn.ReLU()).eval()
    model = any_sizes(plain, torch.randn(2, 3, 5, 7), axes)
    (entry,) = fuse(model).fused
    assert entry.channels in (C, None)
    x = torch.randn(5, 3, 5, 7) if axes == (0,) else torch.randn(3, 3, 8, 6)
    with torch.no_grad():
        assert counts_calls(lambda: model(x)) == 1
        assert relative(plain(x), model(x)) < 1e-5


class ByBatch(LinearExpand):
    """A block for four images only."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, x.shape[0] / 4)

    def gated(self, x: Tensor, factor: float) -> Tensor:
        b, c = x.shape[:2]
        return x * (self.fc(self.avg_pool(x).view(b, c)) * factor).view(b, c, 1, 1)


class ByQuarters(ByBatch):
    """A block for four to seven images."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, x.shape[0] // 4)


B, H = Dim("B", min=1, max=32), Dim("H", min=1, max=32)


@pytest.mark.parametrize(("kind", "axis"), [(kind, axis) for kind in (ByBatch, ByQuarters) for axis in (B, 2 * B)])
def test_symbols_that_matter(kind: type[nn.Module], axis: Dim) -> None:
    x = torch.randn(4, C, 5, 7)
    plain = randomize(kind()).eval()
    report = fuse(export(plain, (x,), dynamic_shapes=({0: axis},)).module())
    assert not report.fused
    assert [entry.reason for entry in report.skipped] == ["the op's numbers differ from its own"]
    assert len(fuse(export(plain, (x,)).module()).fused) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [{0: 2 * B, 2: H}, {0: B, 2: 4 * H + 1}, {0: B, 2: 4 * H + 1, 3: 4 * H + 1}, {2: 4 * H + 1}]
)
def test_sizes_that_follow_from_symbols(axes: dict[int, Dim]) -> None:
    plain = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), randomize(LinearExpand()), nn.ReLU()).eval()
    model = export(plain, (torch.randn(4, 3, 13, 13),), dynamic_shapes=(axes,)).module()
    assert len(fuse(model).fused) == 1
    for height in (13, 21):
        x = torch.randn(6 if 0 in axes else 4, 3, height, height if 3 in axes else 13)
        with torch.no_grad():
            assert counts_calls(lambda x=x: model(x)) == 1
            assert relative(plain(x), model(x)) < 1e-5


class Detector(nn.Module):
    """Sizes that only the data tells: beside the block, or of its x."""

    def __init__(self, cuts: bool) -> None:
        super().__init__()
        self.cuts, self.se = cuts, randomize(LinearExpand())

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.cuts:
            kept = mask.sum().item()
            torch._check(kept >= 2)
            torch._check(kept <= 5)
            x = x[:kept]
        return self.se(x) * 2, mask.nonzero()


@pytest.mark.parametrize("cuts", [False, True])
def test_sizes_that_only_the_data_tells(cuts: bool) -> None:
    plain = Detector(cuts).eval()
    x = torch.randn(5, C, 9, 11)
    model: fx.GraphModule = export(plain, (x, torch.tensor([1, 1, 0, 1, 0]))).module()  # type: ignore[assignment]
    assert len(fuse(model).fused) == 1
    for mask in (torch.tensor([1, 1, 0, 1, 0]), torch.tensor([1, 1, 1, 1, 0])):
        with torch.no_grad():
            assert counts_calls(lambda mask=mask: model(x, mask)) == 1
            for expected, actual in zip(plain(x, mask), model(x, mask), strict=True):
                assert relative(expected, actual) < 1e-5

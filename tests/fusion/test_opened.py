"""Children in front of an excitation, whose code is looked into: what can not be written out stays a call."""

import copy

import pytest
import torch
from fusion_testing import assert_same, assert_same_at_inference, counts_calls, randomize
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import C, LinearExpand

from senet_fast import fuse


class Front(nn.Module):
    """A convolution, and something that no graph would show."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class AsksForTheGradMode(Front):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if torch.is_grad_enabled() else F.conv2d(x, self.conv.weight, padding=1)


class AsksForAutocast(Front):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if torch.is_autocast_enabled("cpu") else x * 1)


class ChangesAutocast(Front):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.conv(x.float())


class ChangesTheGradMode(Front):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.conv(x)


class MakesATensor(Front):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.ones(C, 1, 1)


class LooksAtValues(Front):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 1e9 else self.conv(x) * 2


class InTwoPlaces(Front):
    """The inner one is left a call, what is around it is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LooksAtValues()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(x))


FRONTS = [MakesATensor, LooksAtValues, InTwoPlaces]
OF_ONE_MODE = [AsksForTheGradMode, AsksForAutocast, ChangesAutocast, ChangesTheGradMode]


class Host(nn.Module):
    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front, self.bn, self.se = front, nn.BatchNorm2d(C), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.se(self.bn(self.front(x))) + x)


@pytest.mark.parametrize("front", FRONTS)
def test_a_child_that_is_a_call(front: type[nn.Module]) -> None:
    plain = randomize(Host(front()))
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.path, entry.prologue, entry.epilogue.partition(", in place")[0]) == (
        "se",
        "batch_norm",
        "residual, relu",
    )
    x = torch.randn(2, C, 6, 7)
    assert_same(plain, fused, x)
    assert_same_at_inference(plain.eval(), fused.eval(), x)
    calls = []
    for module in (plain.front, fused.front):
        module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), torch.autocast("cpu"):
        assert counts_calls(lambda: fused(x)) == 1
        torch.testing.assert_close(fused(x), plain(x), rtol=2e-2, atol=2e-2)
    assert len(calls) == 3


@pytest.mark.parametrize("front", OF_ONE_MODE)
def test_a_forward_that_asks_for_its_mode_or_changes_it_is_left(front: type[nn.Module]) -> None:
    """Beyond the block itself: a graph is of one mode."""
    plain = randomize(Host(front()))
    fused = copy.deepcopy(plain)
    assert [(entry.path, entry.prologue, entry.epilogue) for entry in fuse(fused).fused] == [("se", "", "")]
    x = torch.randn(2, C, 6, 7)
    assert_same(plain, fused, x)
    assert_same_at_inference(plain.eval(), fused.eval(), x)
    with torch.no_grad(), torch.autocast("cpu"):
        assert counts_calls(lambda: fused(x)) == 1
        torch.testing.assert_close(fused(x), plain(x), rtol=2e-2, atol=2e-2)


class Collects(Front):
    """VoVNet's: the caller's list grows."""

    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(self.conv(x))
        return torch.cat(seen, 1)


class Collecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.last, self.se = Collects(), nn.Conv2d(3 * C, C, 1), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        y = self.front(x, seen)
        return self.se(self.last(torch.cat([y, seen[1]], 1))) + x


class Twice(nn.Module):
    """One child, called in front of the excitation and elsewhere; its last norm is the op's in one of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.se = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.front(x)) + self.front(self.front(x) + 1)


class Pair(Front):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


class TakesOneOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.se = Pair(), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        y, same = self.front(x)
        return self.se(y) + same


@pytest.mark.parametrize("host", [Collecting, Twice, TakesOneOfTwo])
def test_what_children_give_and_take(host: type[nn.Module]) -> None:
    plain = randomize(host())
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert entry.epilogue.startswith("residual")
    x = torch.randn(2, C, 6, 7)
    assert_same(plain, fused, x)
    assert_same_at_inference(plain.eval(), fused.eval(), x)
    with torch.no_grad():
        assert counts_calls(lambda: fused(x)) == 1

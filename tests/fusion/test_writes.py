"""What may be written to between forward and backward of a fused module: what may be in the module's own code."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import randomize, relative
from torch import Tensor, nn
from zoo import C, LinearExpand

from senet_fast import fuse

Tail = Callable[[Tensor, Tensor], Tensor]  # what a block makes of se(x) and its input


class Block(nn.Module):
    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.se, self.norm, self.tail = LinearExpand(), nn.BatchNorm2d(C), tail

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.tail(self.se(self.norm(x)), shortcut)


def _relu(y: Tensor, r: Tensor) -> Tensor:
    return F.relu(y + r)


def _relu_in_place(y: Tensor, r: Tensor) -> Tensor:
    y += r
    return y.relu_()


def _clamp(y: Tensor, r: Tensor) -> Tensor:
    return torch.clamp(y + r, min=0)


def _clamp_and_more(y: Tensor, r: Tensor) -> Tensor:
    z = torch.clamp(y + r, min=0)
    z += 1
    return z * 2


def _clamp_inside(y: Tensor, r: Tensor) -> Tensor:
    return torch.clamp(y + r, min=0).exp()


def _silu(y: Tensor, r: Tensor) -> Tensor:
    return F.silu(y + r)


def _gain(y: Tensor, r: Tensor) -> Tensor:
    return y * 0.5 + r


def _shortcut_written_behind(y: Tensor, r: Tensor) -> Tensor:
    r = r * 1
    z = F.relu(y + r)
    return r.mul_(2) * z.detach() + z


def _shortcut_written_before(y: Tensor, r: Tensor) -> Tensor:
    r = r * 1
    z = y + r
    r.mul_(2)
    return F.relu(z) + r


# tail: the neighbours that the op takes over in the report
TAILS: dict[Tail, str] = {
    _relu: "residual, relu",
    _relu_in_place: "residual, relu",
    _clamp: "residual",  # eager keeps the sum, and the caller may write to the result
    _clamp_and_more: "residual",
    _clamp_inside: "residual, relu",
    _silu: "residual",  # eager keeps the sum, and the caller may write to the shortcut
    _gain: "times 0.5",
    _shortcut_written_behind: "residual, relu",
    _shortcut_written_before: "residual",
}


def outcome(module: nn.Module, write: str) -> list[Tensor] | str:
    """The gradients of a step in which the caller writes to the result or the shortcut, or what is wrong."""
    generator = torch.Generator().manual_seed(0)
    x, leaf = (torch.randn(2, C, 7, 9, generator=generator).requires_grad_() for _ in range(2))
    shortcut = leaf * 1
    y = module(x, shortcut)
    loss = (y.detach() + 1).mul(y).sum() if write != "y" else None
    try:
        if write == "shortcut":
            shortcut.mul_(-3)
        if loss is None:
            loss = y.mul_(2).sum()
        return list(torch.autograd.grad(loss, [x, leaf, *module.parameters()]))
    except RuntimeError as error:
        return "in place" if "modified by an inplace operation" in str(error) else str(error)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: tail.__name__)
def test_writes_between_forward_and_backward(tail: Tail, training: bool) -> None:
    """The same gradients as those of the module's own code, or the same error."""
    plain = randomize(Block(tail)).train(training)
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert entry.epilogue.removesuffix(", in place") == TAILS[tail]
    for write in ("nothing", "y", "shortcut"):
        expected, actual = outcome(plain, write), outcome(fused, write)
        if isinstance(expected, str):
            assert actual == expected, write
            continue
        assert not isinstance(actual, str), (write, actual)
        for theirs, ours in zip(expected, actual, strict=True):
            assert relative(theirs, ours) < 1e-4, write


class Front(nn.Module):
    """Makes x in memory of its own, and hides it: nothing in it can be taken over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(C, C, 3, padding=1), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class BehindAChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.se = Front(), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.front(x))


def test_what_a_hook_saw_of_a_child_in_front_is_not_written_over() -> None:
    """The child is looked into to see that y may take the place of x, and left as a call: hooks may come later."""
    plain = randomize(BehindAChild()).eval()
    fused = copy.deepcopy(plain)
    assert [entry.epilogue for entry in fuse(fused).fused] == ["in place"]
    x = torch.randn(2, C, 5, 7)
    seen: list[Tensor] = []
    with torch.inference_mode():
        assert relative(plain(x), fused(x)) < 1e-5
        fused.front.register_forward_hook(lambda *given: seen.append(given[2]))
        assert relative(plain(x), fused(x)) < 1e-5
        assert torch.equal(seen[0], plain.front(x))

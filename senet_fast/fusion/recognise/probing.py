"""Which activation a piece of somebody's code computes, found out from its values."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from senet_fast.se.activations import ACTIVATIONS, apply

UNBOUNDED = 3e38  # stands for infinity in affine_clamp, whose arguments are finite
TOLERANCE = 2e-6  # of 1 + |value|: pieces that compute in float32 on purpose are as exact as that

# Dense where activations bend, sparse outwards; irrational, so that no kink of a clamp is hit.
_GRID = (
    torch.cat([torch.linspace(-8, 8, 161), torch.tensor([-90.0, -60, -31, -22, -13, 13, 22, 31, 60, 90])]).double()
    + 0.0137
)


class Probed(NamedTuple):
    spec: str  # of senet_fast.se.activations
    add_one: bool  # the piece computes 1 + spec


def probe(piece: Callable[[Tensor], Tensor], size: int) -> Probed | None:
    """What ``piece``, which maps [size] to [size] in float64, computes in each element; None for anything else.

    Each element is seen with several values, each value in several places and company, so what mixes elements
    (softmax), differs between them (a learned slope each) or is random (dropout) is not mistaken for an activation.
    """
    generator = torch.Generator().manual_seed(0)
    rounds = -(-max(len(_GRID), 3 * size) // size)  # every element at least three times
    grid = _GRID[torch.arange(rounds * size) % len(_GRID)]
    values = []
    for _ in range(2):
        order = torch.randperm(len(grid), generator=generator)
        found = torch.empty_like(grid)
        for places in torch.split(order, size):
            found[places] = piece(grid[places].clone()).double()
        values.append(found)
    if not torch.isfinite(values[0]).all() or not _close(*values):
        return None
    return identify(grid, values[0])


def identify(z: Tensor, value: Tensor) -> Probed | None:
    """The row of the table with this ``value`` at ``z``, or one more than it."""
    named = [name for name, row in ACTIVATIONS.items() if not row.arguments]
    for add_one in (False, True):
        target = value - 1 if add_one else value
        for spec in [*named, _leaky_slope(z, target), _affine_clamp(z, target)]:
            if spec is not None and _close(apply(spec, z), target):
                return Probed(spec, add_one)
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= TOLERANCE * (1 + b.abs())).all())


def _leaky_slope(z: Tensor, value: Tensor) -> str | None:
    slope = _rounded((value[z < -1] / z[z < -1]).median())
    return f"leaky_relu({slope!r})" if 0 < slope < 1 else None


def _affine_clamp(z: Tensor, value: Tensor) -> str | None:
    """clamp(a z + b, lo, hi) through the outermost values that are on no plateau."""
    z, first = torch.unique(z, return_inverse=True)
    value = torch.empty_like(z).scatter_(0, first, value)
    flat = [
        value[i] for i in (0, -1) if value[i] == value[1 if i == 0 else -2]
    ]  # where it no longer changes, on either side
    inside = value.isfinite()
    for bound in flat:
        inside &= (value - bound).abs() > 1e-7
    if inside.sum() < 2:
        return None
    left, right = inside.nonzero()[[0, -1], 0].tolist()
    a = (value[right] - value[left]) / (z[right] - z[left])
    b = value[left] - a * z[left]
    lo, hi = ((_rounded(bound) if bound in flat else None) for bound in (value.min(), value.max()))
    limits = (-UNBOUNDED if lo is None else lo, UNBOUNDED if hi is None else hi)
    return f"affine_clamp({_rounded(a)!r}, {_rounded(b)!r}, {limits[0]!r}, {limits[1]!r})"


def _rounded(value: Tensor) -> float:
    """Without the noise of the last digits: 0.2 rather than 0.20000000298."""
    number = float(value)
    short = float(f"{number:.7g}")
    return short if abs(short - number) <= 1e-7 * abs(number) else number

"""The one comparison: what two pieces of code make of the same inputs, values and gradients."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # relative to the largest element, in float32


class Results(NamedTuple):
    """What a call returned, flat, and the gradients of a sum of its squares; None where it does not depend on one."""

    values: list[Any]
    structure: Any
    gradients: list[Tensor | None]


def inferred(run: Callable[..., Any], inputs: Iterable[Tensor]) -> Results:
    """Without gradients, of the inputs themselves: ``run`` may write to them."""
    torch.default_generator.manual_seed(7)
    with torch.no_grad():
        return Results(*tree_flatten(run(*inputs)), [])


def differentiated(
    run: Callable[..., Any], inputs: Iterable[Tensor], tensors: Callable[[], Iterable[Tensor]]
) -> Results:
    """With gradients of the inputs, which stay as they are, and of those ``tensors`` that are there after the run."""
    torch.default_generator.manual_seed(7)
    given = [x.clone().requires_grad_() for x in inputs]
    values, structure = tree_flatten(run(*(x * 1 for x in given)))  # no leaves, to which nobody could write
    depend = [value for value in values if isinstance(value, Tensor) and value.requires_grad]
    if not depend:
        return Results(values, structure, [])
    wanted = [*given, *(tensor for tensor in tensors() if tensor.requires_grad)]
    # An uneven sum: behind a BatchNorm that trains the sum of all squares is a constant, with gradients of rounding.
    weights = (torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape) for value in depend)
    terms = ((w * value.square()).sum() for w, value in zip(weights, depend, strict=True))
    loss = sum(terms, torch.zeros(()))
    return Results(values, structure, list(torch.autograd.grad(loss, wanted, allow_unused=True)))


def difference(own: Results, other: Results, layout: bool = False) -> str:
    """What is not the same within the tolerances, with ``layout`` in strides as well; "" if all is."""
    if own.structure != other.structure:
        return "results"
    for a, b in zip(own.values, other.values, strict=True):
        if not isinstance(a, Tensor):
            same = a == b
        else:
            same = isinstance(b, Tensor) and largest_difference(a, b) <= VALUE_TOLERANCE
            same = same and (not layout or a.stride() == b.stride())
        if not same:
            return "numbers"
    if len(own.gradients) != len(other.gradients):
        return "gradients"
    for a, b in zip(own.gradients, other.gradients, strict=True):
        none = a is None or b is None
        if (a is not b) if none else not largest_difference(a, b) <= GRADIENT_TOLERANCE:  # type: ignore[arg-type]
            return "gradients"
    return ""


def largest_difference(expected: Tensor, actual: Tensor) -> float:
    """Relative to the largest element; infinite for another shape, type or NaN."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return math.inf
    difference = float((expected - actual).detach().abs().max()) / max(float(expected.detach().abs().max()), 1e-30)
    return math.inf if math.isnan(difference) else difference


def shape_to_try(rank: int, dim: int, channels: int | None, sizes: Iterable[int] = (2, 6, 3, 5, 4)) -> list[int]:
    """Of an x with so many axes, not square and with no size that was matched with."""
    shape = list(sizes)[:rank]
    shape[dim] = channels or 11
    return shape

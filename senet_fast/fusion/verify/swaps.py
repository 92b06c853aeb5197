"""A module's own forward and the one that it would get, run side by side on copies with random parameters."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.fusion.graph.refusal import Refused, first_line, note
from senet_fast.fusion.graph.sandbox import Sandbox, deep_copy
from senet_fast.fusion.verify.comparison import (
    VALUE_TOLERANCE,
    Results,
    difference,
    differentiated,
    inferred,
    largest_difference,
)


def check_swap(
    module: nn.Module,
    swap: Callable[[nn.Module], None],
    shapes: list[list[int]],
    training: bool,
    constants: dict[str, Any] | None = None,
    pure: bool = True,
) -> None:
    """Refused if ``swap`` changes what a copy of ``module`` computes of inputs of these ``shapes``.

    With gradients and without, values, gradients, layout, the inputs themselves and the module's state are compared.
    ``pure``: the module's own forward must leave its state as it was.
    """
    for seed in (7, 8):  # a rounding may fall on the other side of a kink, but not twice
        try:
            return _check(module, swap, shapes, training, constants or {}, pure, seed)
        except Refused as reason:
            failed = reason
        except Exception as error:  # whatever somebody's code does on a copy
            failed = Refused("check", f"its check failed: {type(error).__name__}: {first_line(error)}")
            failed.__cause__ = error
    raise failed


def _check(
    module: nn.Module,
    swap: Callable[[nn.Module], None],
    shapes: list[list[int]],
    training: bool,
    constants: dict[str, Any],
    pure: bool,
    seed: int,
) -> None:
    sandbox = Sandbox(module, torch.float32, training, seed)
    own = sandbox.copy(module)
    swapped = deep_copy(own, {})
    swap(swapped)
    inputs = [sandbox.random(shape) for shape in shapes]
    kept = [x.clone() for x in inputs]
    before, random = _state(own), torch.get_rng_state()
    runs = (own, swapped)
    calls = [functools.partial(_call, run, constants) for run in runs]
    results = [differentiated(call, inputs, run.parameters) for call, run in zip(calls, runs, strict=True)]
    if (pure and (_state(own) != before or not torch.equal(random, torch.get_rng_state()))) or (
        _attributes(own) != before[1:]
    ):
        raise Refused("check", "it changes its own state")
    _compare(*results)
    for given in (inputs, [_channels_last(x) for x in inputs]):
        try:
            expected = inferred(calls[0], given)
        except Exception as error:
            if given is inputs:
                raise
            note(Refused("check", "its own code does not take channels_last"), error)  # a view that does not fit
            continue
        if not all(map(torch.equal, given, kept)):
            raise Refused("check", "it changes its input in place")
        _compare(expected, inferred(calls[1], given))
        if not all(map(torch.equal, given, kept)):
            raise Refused("check", "the op would change its input in place")
    statistics = [[*run.buffers()] for run in runs]
    if not all(largest_difference(a, b) <= VALUE_TOLERANCE for a, b in zip(*statistics, strict=True) if a.numel()):
        raise Refused("check", "its buffers would differ")


def _channels_last(x: Tensor) -> Tensor:
    """A copy of an image in this layout; anything else as it is."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x


def _call(module: nn.Module, constants: dict[str, Any], *inputs: Tensor) -> Any:
    return module(*inputs, **constants)


def _compare(own: Results, other: Results) -> None:
    if differs := difference(own, other, layout=True):
        raise Refused("check", f"the op's {differs} differ from its own")


def _state(module: nn.Module) -> list[object]:
    """What a forward that only computes leaves as it was."""
    return [[tensor._version for tensor in (*module.parameters(), *module.buffers())], *_attributes(module)]


def _attributes(module: nn.Module) -> list[object]:
    parts = [(id(value), name) for part in module.modules() for name, value in part.__dict__.items()]
    return [parts, [id(buffer) for buffer in module.buffers()]]

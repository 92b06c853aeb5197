"""A module's own forward and the one that it would get, run side by side on copies with random parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.fusion.graph.refusal import Refused, first_line, note
from senet_fast.fusion.graph.sandbox import Sandbox
from senet_fast.fusion.verify.comparison import GRADIENT_TOLERANCE, VALUE_TOLERANCE, largest_difference


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
    runs = []
    for swapped in (False, True):
        sandbox = Sandbox(module, torch.float32, training, seed)
        copied = sandbox.copy(module)
        if swapped:
            swap(copied)
        inputs = [sandbox.random(shape) for shape in shapes]
        runs.append((copied, inputs))
    (own, inputs), _ = runs
    kept = [x.clone() for x in inputs]
    before, random = _state(own), torch.get_rng_state()
    results = [_step(*run, constants) for run in runs]
    if pure and (_state(own) != before or not torch.equal(random, torch.get_rng_state())):
        raise Refused("check", "it changes its own state")
    if _attributes(own) != before[1:]:
        raise Refused("check", "it changes its own state")
    _compare(*results)
    for given in (inputs, [_channels_last(x) for x in inputs]):
        try:
            expected = _infer(own, given, constants)
        except Exception as error:
            if given is inputs:
                raise
            note(Refused("check", "its own code does not take channels_last"), error)  # a view that does not fit
            continue
        if not all(map(torch.equal, given, kept)):
            raise Refused("check", "it changes its input in place")
        _compare(expected, _infer(runs[1][0], given, constants))
        if not all(map(torch.equal, given, kept)):
            raise Refused("check", "the op would change its input in place")
    statistics = [[*run.buffers()] for run, _ in runs]
    if not all(largest_difference(a, b) <= VALUE_TOLERANCE for a, b in zip(*statistics, strict=True) if a.numel()):
        raise Refused("check", "its buffers would differ")


def _channels_last(x: Tensor) -> Tensor:
    """A copy of an image in this layout; anything else as it is."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x


def _infer(run: nn.Module, inputs: list[Tensor], constants: Any) -> tuple[Any, list[Tensor | None]]:
    torch.manual_seed(7)
    with torch.no_grad():
        return run(*inputs, **constants), []


def _step(run: nn.Module, inputs: list[Tensor], constants: Any) -> tuple[Any, list[Tensor | None]]:
    torch.manual_seed(7)
    given = [x.clone().requires_grad_() for x in inputs]
    y = run(*[x * 1 for x in given], **constants)
    wanted = [*given, *(parameter for parameter in run.parameters() if parameter.requires_grad)]
    tensors = [tensor for tensor in torch.utils._pytree.tree_leaves(y) if isinstance(tensor, Tensor)]
    loss = sum((tensor.square().sum() for tensor in tensors if tensor.requires_grad), torch.zeros(()))
    return y, list(torch.autograd.grad(loss, wanted, allow_unused=True)) if loss.requires_grad else []


def _compare(own: tuple[Any, list[Tensor | None]], other: tuple[Any, list[Tensor | None]]) -> None:
    leaves = [torch.utils._pytree.tree_flatten(y) for y in (own[0], other[0])]
    if leaves[0][1] != leaves[1][1]:
        raise Refused("check", "the op's results differ from its own")
    for a, b in zip(leaves[0][0], leaves[1][0], strict=True):
        if isinstance(a, Tensor):
            same = largest_difference(a, b) <= VALUE_TOLERANCE and a.stride() == b.stride()
        else:
            same = a == b
        if not same:
            raise Refused("check", "the op's numbers differ from its own")
    if len(own[1]) != len(other[1]):
        raise Refused("check", "the op's gradients differ from its own")
    for a, b in zip(own[1], other[1], strict=True):
        if a is None and b is None:
            continue
        if a is None or b is None or not largest_difference(a, b) <= GRADIENT_TOLERANCE:
            raise Refused("check", "the op's gradients differ from its own")


def _state(module: nn.Module) -> list[object]:
    """What a forward that only computes leaves as it was."""
    return [[tensor._version for tensor in (*module.parameters(), *module.buffers())], *_attributes(module)]


def _attributes(module: nn.Module) -> list[object]:
    parts = [(id(value), name) for part in module.modules() for name, value in part.__dict__.items()]
    return [parts, [id(buffer) for buffer in module.buffers()]]

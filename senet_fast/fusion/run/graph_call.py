"""Excitations in an fx.GraphModule with their neighbours: a call that decides at run time what the op takes over.

A graph has no place for the code that a module would fall back on, so the call gets what it replaces as arguments:
children of the graph module, functions by the name of what they compute.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet_fast.fusion.run.steps import Step
from senet_fast.se import squeeze_excite
from senet_fast.se.activations import apply
from senet_fast.se.guards import has_plain_tensors, hooks_of_all_modules, is_untouched
from senet_fast.se.ops import fold_norm

# (child, name of its class), for an addition with the place of y in its arguments; (mean, var, weight, bias, eps) of a
# norm; the spec of an activation; or an addition.
Part = Any
ADD, ADD_IN_PLACE = "add", "add_"


def excite(
    v: Tensor,
    weights: tuple[Tensor | None, ...],
    options: dict[str, Any],
    before: tuple[Part, ...] = (),
    pre_activation: str = "identity",
    residual: Any = None,
    after: tuple[Part, ...] = (),
    post_activation: str = "identity",
    makers: tuple[Part, ...] | None = None,
) -> Any:
    """``after`` of the op of ``before`` of v; the op does all of it where that computes the same.

    ``makers``: children that made v, where y may take its place at inference: nobody else reads it or has its memory.
    """
    return _GraphStep(weights, options, before, pre_activation, after, post_activation, makers).run(None, v, residual)


class _GraphStep(Step):
    """A step whose original is what the call was given; only its neighbours can be anything else than the op."""

    def __init__(
        self,
        weights: tuple[Tensor | None, ...],
        options: dict[str, Any],
        before: tuple[Part, ...],
        pre_activation: str,
        after: tuple[Part, ...],
        post_activation: str,
        makers: tuple[Part, ...] | None,
    ) -> None:
        self.weights, self.options = weights, options
        self.before = _Pieces(before, training=False) if before else None
        self.after = _Pieces(after) if after else None
        self.pre_activation, self.post_activation = pre_activation, post_activation
        self.residual = any(part in (ADD, ADD_IN_PLACE) or _adds(part) for part in after)
        self.fresh = None if makers is None else _Pieces(makers)

    def applies(self, module: None, x: Any) -> bool:
        return True

    def affine(self, module: None) -> tuple[Tensor, Tensor] | None:
        assert self.before is not None
        part = self.before.parts[0]
        if isinstance(part, str) or (isinstance(part[0], nn.Module) and not isinstance(part[0], _BatchNorm)):
            return None
        m = part[0]
        return fold_norm(*((m.running_mean, m.running_var, m.weight, m.bias, m.eps) if len(part) == 2 else part))

    def op(self, module: None, x: Tensor, **options: Any) -> Tensor:
        return squeeze_excite(x, *self.weights, **self.options, **options)  # type: ignore[arg-type, misc]


class _Pieces:
    """Parts that stand behind each other; ``training``: whether they may be in that mode."""

    def __init__(self, parts: tuple[Part, ...], training: bool = True) -> None:
        self.parts, self.training = parts, training

    def plain(self, module: None) -> bool:
        """Whether they are what they were, and nobody sees their calls."""
        if hooks_of_all_modules():
            return False
        compiling = torch.compiler.is_compiling()
        for part in self.parts:
            if isinstance(part, str) or not isinstance(part[0], nn.Module):
                continue
            child, kind = part[:2]
            if type(child).__name__ != kind or not is_untouched(child, type(child), compiling):
                return False
            if not has_plain_tensors(child) or (child.training and not self.training):
                return False
        return True

    def __call__(self, module: None, x: Any, residual: Any = None) -> Any:
        for part in self.parts:
            x = _run(part, x, residual)
        return x


def _adds(part: Part) -> bool:
    return len(part) == 3 and isinstance(part[0], nn.Module)


def _run(part: Part, x: Any, residual: Any) -> Any:
    if part == ADD:
        return x + residual
    if part == ADD_IN_PLACE:
        return x.add_(residual)
    if isinstance(part, str):
        return apply(part, x)
    if _adds(part):
        return part[0](residual, x) if part[2] else part[0](x, residual)
    if isinstance(part[0], nn.Module):
        return part[0](x)
    mean, var, weight, bias, eps = part
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

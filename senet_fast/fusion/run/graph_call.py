"""Excitations in an fx.GraphModule with their neighbours: a call that decides at run time what the op takes over.

A graph has no place for the code that a module would fall back on, so the call gets what it replaces as arguments:
children of the graph module, functions by the name of what they compute.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet_fast.fusion.run.guards import fits
from senet_fast.se import squeeze_excite
from senet_fast.se.activations import apply
from senet_fast.se.guards import has_plain_tensors, hooks_of_all_modules, is_untouched, only_inference
from senet_fast.se.ops import fold_norm

# (child, name of its class), (mean, var, weight, bias, eps) of a norm, the spec of an activation, or an addition.
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
    seen = hooks_of_all_modules()
    inference, overwrites = only_inference()
    absorbs = inference and not seen and all(_is_known(part, training=False) for part in before)
    x = v
    if not absorbs:
        for part in before:
            x = _run(part, x, None)
    more: dict[str, Any] = {}
    if absorbs and before:
        more["pre_activation"] = pre_activation
        norm = _affine(before[0])
        if norm is not None:
            more["pre_scale"], more["pre_shift"] = norm
    finishes = not seen and len(after) > 0 and all(_is_known(part) for part in after)
    if finishes and any(part in (ADD, ADD_IN_PLACE) for part in after):
        finishes = fits(residual, x)
        more["residual"] = residual if finishes else None
    if finishes:
        more["post_activation"] = post_activation
    if absorbs and overwrites and makers is not None and all(map(_is_known, makers)):
        more["out"] = v
    y = squeeze_excite(x, *weights, **options, **more)  # type: ignore[arg-type, misc]
    for part in () if finishes else after:
        y = _run(part, y, residual)
    return y


def _is_known(part: Part, training: bool = True) -> bool:
    """Whether ``part`` is what it was and nobody sees its call; in eval mode unless ``training`` is all right."""
    if isinstance(part, str) or not isinstance(part[0], nn.Module):
        return True
    module, kind = part
    untouched = is_untouched(module, type(module), torch.compiler.is_compiling()) and has_plain_tensors(module)
    return type(module).__name__ == kind and untouched and (training or not module.training)


def _affine(part: Part) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) of a norm."""
    if isinstance(part, str) or (isinstance(part[0], nn.Module) and not isinstance(part[0], _BatchNorm)):
        return None
    m = part[0]
    return fold_norm(*((m.running_mean, m.running_var, m.weight, m.bias, m.eps) if len(part) == 2 else part))


def _run(part: Part, x: Any, residual: Any) -> Any:
    if part == ADD:
        return x + residual
    if part == ADD_IN_PLACE:
        return x.add_(residual)
    if isinstance(part, str):
        return apply(part, x)
    if isinstance(part[0], nn.Module):
        return part[0](x)
    mean, var, weight, bias, eps = part
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

"""Excitations in an fx.GraphModule with their neighbours: a call that decides at run time what the op takes over.

A graph has no place for the code that a module would fall back on, so the call gets what it replaces as arguments:
children of the graph module, tensors, functions by the name of what they compute.
"""

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet_fast.fusion.run.convolution import Convolution, tensors_of
from senet_fast.fusion.run.steps import Step
from senet_fast.se import squeeze_excite
from senet_fast.se.activations import apply
from senet_fast.se.guards import has_plain_tensors, hooks_of_all_modules, is_plain, is_untouched
from senet_fast.se.kept import Tensors
from senet_fast.se.ops import folded

# (child, its kind_name), for an addition with the place of y in its arguments; (mean, var, weight, bias, eps) of a
# norm; (weight, bias, the child that has the weight) of a 1x1 convolution; the spec of an activation; or an addition.
Part = Any
ADD, ADD_IN_PLACE = "add", "add_"
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def excite(v: Tensor, residual: Any, *given: Any) -> Any:
    """What the original computes of v and of what is added to it. ``given``: the arguments of :class:`GraphStep`."""
    return GraphStep(*given).run(None, v, residual)


class GraphStep(Step):
    """A step whose original is what the call was given: ``after`` of the op of ``before`` of v.

    Only its neighbours can be anything else than the op; the op does all of it where that computes the same.
    ``makers``: children that made v, where y may take its place at inference: nobody else reads it or has its memory.
    ``conv``: what else :class:`GraphConvolution` is given, of a 1x1 convolution in front of all that or behind it.
    """

    def __init__(
        self,
        weights: tuple[Tensor | None, ...],
        options: dict[str, Any],
        before: tuple[Part, ...],
        pre_activation: str,
        after: tuple[Part, ...],
        post_activation: str,
        makers: tuple[Part, ...] | None,
        conv: tuple[Any, ...] | None,
    ) -> None:
        self.weights, self.options = weights, options
        self.before: _Pieces | None = _Pieces(before, training=False) if before else None
        self.after: _Pieces | None = _Pieces(after) if after else None
        self.pre_activation, self.post_activation = pre_activation, post_activation
        self.residual = self.after is not None and self.after.adds
        self.fresh = None if makers is None else _Pieces(makers)
        beside = (weights, options, self.before, pre_activation)
        self.conv = None if conv is None else GraphConvolution(*beside, *conv)

    def applies(self, module: None, x: Any) -> bool:
        return True

    def affine(self, module: None) -> tuple[Tensor, Tensor] | None:
        assert self.before is not None
        return self.before.affine()

    def op(self, module: None, x: Tensor, **options: Any) -> Tensor:
        return squeeze_excite(x, *self.weights, **self.options, **options)  # type: ignore[arg-type, misc]


class GraphConvolution(Convolution):
    """Beside a gate with these ``weights`` and ``options``; what is prepared is kept of the child that has the
    convolution's weight, as ``name``.

    ``made_of``: what ``weights`` are computed from in the graph; none where they are used as they are. ``before``: what
    is between the convolution and the gate. ``parts``: for "input" the convolution and what is behind it, with its
    ``activation``; for "output" what is in front of the convolution, with its activation, and that.
    """

    def __init__(
        self,
        weights: tuple[Tensor | None, ...],
        options: dict[str, Any],
        before: "_Pieces | None",
        pre_activation: str,
        side: str,
        name: str,
        made_of: tuple[Tensor, ...],
        parts: tuple[Part, ...],
        activation: str,
    ) -> None:
        self.weights, self.side, self.name = weights, side, name
        self.excitation = {option: value for option, value in options.items() if option != "dim"}
        self.made_of = made_of or weights
        self.front: _Pieces | None
        if side == "input":
            self.layer, code, behind = parts[0], parts, parts[1:]
            self.front, self.pre_activation, self.activation = before, pre_activation, activation
        else:
            self.layer, code, behind = parts[-1], parts[-1:], before.parts if before is not None else ()
            self.front = _Pieces(parts[:-1], training=False) if parts[:-1] else None
            self.pre_activation = activation
        self.code = _Pieces(code, training=False)
        self.adds = self.code.adds
        self.norm = _norm(behind[0]) if behind else None

    def weight(self, module: None) -> Any:
        return self._layer()[0]

    def _layer(self) -> tuple[Any, Any]:
        child = self.layer[0]
        return (child.weight, child.bias) if isinstance(child, nn.Module) else self.layer[:2]

    def affine(self, module: None) -> tuple[Tensor, Tensor] | None:
        assert self.front is not None
        return self.front.affine()

    def hidden(self) -> int | None:
        weight: Any = self.weights[0]
        return int(weight.shape[0]) if len(self.weights) == 4 else None  # of two layers

    def options(self, rank: int) -> dict[str, Any]:
        return dict(self.excitation)

    def tensors(self, module: None) -> Tensors:
        return tensors_of(self._layer(), self.norm, self.weights)

    def sources(self, module: None) -> list[Tensor]:
        norm = () if self.norm is None else self.norm[0]
        return [tensor for tensor in (*self._layer(), *norm, *self.made_of) if tensor is not None]

    def keeper(self, module: None) -> tuple[nn.Module, Hashable]:
        return self.layer[0] if isinstance(self.layer[0], nn.Module) else self.layer[2], self.name

    def takes(self, module: None, v: Tensor, residual: Any) -> bool:
        return all(map(is_plain, (v, *self.sources(module)))) and super().takes(module, v, residual)


class _Pieces:
    """Parts that stand behind each other; ``training``: whether they may be in that mode."""

    def __init__(self, parts: tuple[Part, ...], training: bool = True) -> None:
        self.parts, self.training = parts, training
        self.adds = any(part in (ADD, ADD_IN_PLACE) or _adds(part) for part in parts)

    def plain(self, module: None) -> bool:
        """Whether they are what they were, and nobody sees their calls."""
        if hooks_of_all_modules():
            return False
        compiling = torch.compiler.is_compiling()
        for part in self.parts:
            if isinstance(part, str) or not isinstance(part[0], nn.Module):
                continue
            child, kind = part[:2]
            if kind_name(child) != kind or not is_untouched(child, type(child), compiling):
                return False
            if not has_plain_tensors(child) or (child.training and not self.training):
                return False
        return True

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(scale, shift) of the norm that the first of them is."""
        norm = _norm(self.parts[0])
        return None if norm is None else folded(*norm)

    def run(self, module: None, x: Any, residual: Any = None) -> Any:
        for part in self.parts:
            x = _run(part, x, residual)
        return x


def kind_name(child: nn.Module) -> str:
    """Of its class: whole, for adapters have layers that are called like torch's."""
    kind = type(child)
    return f"{kind.__module__}.{kind.__qualname__}"


def _norm(part: Part) -> tuple[tuple[Tensor | None, ...], float] | None:
    """Tensors and eps of the norm that it is."""
    if isinstance(part, str):
        return None
    m = part[0]
    if isinstance(m, _BatchNorm):
        return (m.running_mean, m.running_var, m.weight, m.bias), m.eps
    return None if isinstance(m, nn.Module) else (part[:4], part[4])


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
    if len(part) == 3:
        weight, bias, _ = part
        return CONVOLUTIONS[weight.dim() - 3](x, weight, bias)
    mean, var, weight, bias, eps = part
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

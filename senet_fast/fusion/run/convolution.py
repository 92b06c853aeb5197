"""The 1x1 convolution beside a gate, which the op computes as well at inference: when, and with which weights."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.fusion.recognise.excitation import Layer, Norm, Path, submodule_at, tensor_at
from senet_fast.fusion.run.guards import Op, affine_of, fold, names_of, prologue
from senet_fast.se.beside import LAYOUTS, convolve, convolve_constant, pays
from senet_fast.se.guards import constant, costs_nothing_in_front
from senet_fast.se.kept import Tensors
from senet_fast.se.ops import folded


def convolve_frozen(
    x: Tensor,
    layer: tuple[Tensor, Tensor | None],
    norm: tuple[tuple[Tensor | None, ...], float] | None,
    weights: tuple[Tensor | None, ...],
    residual: Tensor | None,
    **options: Any,
) -> Tensor:
    """The op in a graph for Inductor whose weights are constants: folded and prepared there, for channels_last, which
    the op's lowering gives x (:mod:`senet_fast.se.inductor`). ``norm``: its tensors and eps. ``weights``: those of the
    excitation.
    """
    # Folded in float32, or it would be rounded once more than in the module.
    scale, shift = (None, None) if norm is None else folded(*norm, torch.float32)
    return convolve_constant(x, (*layer, scale, shift, weights), residual, **options)


@dataclass(frozen=True, eq=False)
class Convolution:
    """``side``: of the convolution that is gated. ``norm``: behind it.

    ``owner``: path of the module that the excitation's paths start at; those of the others start at the host.
    ``code``: the original's piece; for "output" the convolution, for "input" all that is behind the excitation.
    ``adds``: whether ``code`` takes the residual. ``front``: the piece in front of all that, from v to what is gated or
    multiplied, with its norm and activation; for "input" the step has it as well.
    """

    side: str
    layer: Layer
    norm: Norm | None
    op: Op
    owner: Path
    activation: str
    code: Any
    adds: bool
    front: Any = None
    pre_norm: Norm | None = None
    pre_activation: str = "identity"

    @functools.cached_property
    def _facts(self) -> Any:
        assert self.layer == Layer(self.layer.weight, self.layer.bias)  # nothing folded, transposed or apart
        paths = names_of(self.layer.weight), names_of(self.layer.bias)
        norms = affine_of(self.norm), affine_of(self.pre_norm)
        return self.side, *paths, norms, tuple(self.owner), self.op.excitation.hidden

    @constant
    def facts(self) -> Any:
        """The side, where weight and bias are, the norms behind and in front, where the owner is, and the excitation's
        hidden units, if any.
        """
        return self._facts

    def takes(self, module: nn.Module, v: Tensor, residual: Any) -> bool:
        """Whether the op computes what the convolution does of v and its gate, and is faster."""
        side, weight_at, *_, hidden = self.facts()
        return pays(side, v, tensor_at(module, weight_at), residual, hidden, lambda: self._sources(module))

    def __call__(self, module: nn.Module, v: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        options = {name: value for name, value in self.op.options(v.dim()) if name != "dim"}
        x = v
        if self.front is not None and (costs_nothing_in_front(v) or not self.front.plain(module)):
            x = self.front(module, v)
        elif self.front is not None:
            norm = self.facts()[3][1]
            options |= prologue(self.pre_activation, None if norm is None else fold(module, norm))
        if torch.compiler.is_dynamo_compiling() and x.dim() in LAYOUTS:  # that of Inductor's own convolutions
            x = x.contiguous(memory_format=LAYOUTS[x.dim()])
        options |= {"side": self.facts()[0], "post_activation": activation}
        sources, collect = lambda: self._sources(module), lambda: self._tensors(module)
        return convolve(module, self.layer.weight, x, sources, collect, residual, **options)

    def _tensors(self, module: nn.Module) -> Tensors:
        _, weight_at, bias_at, (norm, _), owner, _ = self.facts()
        weight: Any = tensor_at(module, weight_at)
        bias = None if bias_at is None else tensor_at(module, bias_at)
        # Folded in float32, or it would be rounded once more than in the module.
        scale, shift = (None, None) if norm is None else fold(module, norm, torch.float32)
        return weight, bias, scale, shift, self.op.weights(submodule_at(module, owner))

    @functools.cached_property
    def _paths(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Of all that is prepared from: from the host, and from the owner of the excitation."""
        norm = self.norm.tensors if self.norm is not None else ()
        own = [path for path in (self.layer.weight, self.layer.bias, *norm) if path is not None]
        excitation = self.op.excitation
        layers = [path for layer in excitation.layers for path in (layer.weight, layer.bias)]
        norms = [path for norm in excitation.norms for path in norm.tensors]
        return tuple(own), tuple(path for path in (*layers, *norms) if path is not None)

    def _sources(self, module: nn.Module) -> list[Tensor]:
        owner, (of_host, of_owner) = self.owner.submodule(module), self._paths
        return [*(p.tensor(module) for p in of_host), *(p.tensor(owner) for p in of_owner)]  # type: ignore[list-item]

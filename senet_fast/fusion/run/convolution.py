"""The 1x1 convolution beside a gate, which the op computes as well at inference: when, and with which weights."""

import functools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.fusion.recognise.excitation import Layer, Norm, Path, submodule_at, tensor_at
from senet_fast.fusion.run.guards import Op, affine_of, fold, names_of, prologue
from senet_fast.se.beside import convolve, convolve_constant, pays
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
    """The op in a graph for Inductor whose weights are constants. ``norm``: its tensors and eps. ``weights``: those of
    the excitation.
    """
    return convolve_constant(x, tensors_of(layer, norm, weights), residual, **options)


def tensors_of(
    layer: tuple[Tensor, Tensor | None],
    norm: tuple[tuple[Tensor | None, ...], float] | None,
    weights: tuple[Tensor | None, ...],
) -> Tensors:
    """Of a convolution, the norm behind it and an excitation."""
    # Folded in float32, or it would be rounded once more than in the module.
    scale, shift = (None, None) if norm is None else folded(*norm, torch.float32)
    return *layer, scale, shift, weights


class Convolution:
    """When the op computes the 1x1 convolution beside a gate as well, and the call that does.

    ``side``: of the convolution that is gated. ``activation``: for "input", behind the convolution.
    ``code``: the original's piece; for "output" the convolution, for "input" all that is behind the excitation.
    ``adds``: whether ``code`` takes the residual. ``front``: the piece in front of all that, from v to what is gated or
    multiplied, with its norm and activation; for "input" the step has it as well.
    """

    __slots__ = ()

    side: str
    activation: str
    code: Any
    adds: bool
    front: Any
    pre_activation: str

    def weight(self, module: Any) -> Any:
        raise NotImplementedError

    def affine(self, module: Any) -> tuple[Tensor, Tensor] | None:
        """(scale, shift) of the norm in ``front``."""
        raise NotImplementedError

    def hidden(self) -> int | None:
        """The excitation's hidden units, if it has such."""
        raise NotImplementedError

    def options(self, rank: int) -> dict[str, Any]:
        """The excitation's, of the op."""
        raise NotImplementedError

    def tensors(self, module: Any) -> Tensors:
        raise NotImplementedError

    def sources(self, module: Any) -> list[Tensor]:
        """All that ``tensors`` are made of."""
        raise NotImplementedError

    def keeper(self, module: Any) -> tuple[nn.Module, Hashable]:
        """The module that what is prepared is kept of, and under which name."""
        raise NotImplementedError

    def takes(self, module: Any, v: Tensor, residual: Any) -> bool:
        """Whether the op computes what the convolution does of v and its gate, and is faster."""
        sources = functools.partial(self.sources, module)
        return pays(self.side, v, self.weight(module), residual, self.hidden(), sources)

    def run(self, module: Any, v: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        options = self.options(v.dim()) | {"side": self.side, "post_activation": activation}
        x = v
        if self.front is not None and (costs_nothing_in_front(v) or not self.front.plain(module)):
            x = self.front.run(module, v)
        elif self.front is not None:
            options |= prologue(self.pre_activation, self.affine(module))
        sources, tensors = functools.partial(self.sources, module), functools.partial(self.tensors, module)
        return convolve(*self.keeper(module), x, sources, tensors, residual, **options)


@dataclass(frozen=True, eq=False, slots=True)
class ModuleConvolution(Convolution):
    """``norm``: behind the convolution. ``pre_norm``: in ``front``.

    ``owner``: path of the module that the excitation's paths start at; those of the others start at the host.
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
    _facts: Any = field(init=False)
    _paths: tuple[tuple[Path, ...], tuple[Path, ...]] = field(init=False)

    def __post_init__(self) -> None:
        layer, norm = self.layer, self.norm
        assert layer == Layer(layer.weight, layer.bias)  # nothing folded, transposed or apart
        paths = names_of(layer.weight), names_of(layer.bias), str(layer.weight)
        norms = affine_of(norm), affine_of(self.pre_norm)
        object.__setattr__(self, "_facts", (*paths, norms, tuple(self.owner)))
        # Of all that is prepared from: from the host, and from the owner of the excitation.
        own = (layer.weight, layer.bias, *(norm.tensors if norm is not None else ()))
        of_host = tuple(path for path in own if path is not None)
        object.__setattr__(self, "_paths", (of_host, self.op.excitation.sources))

    @constant
    def facts(self) -> Any:
        """Where weight and bias are, the name of the weight, the norms behind and in front, and where the owner is."""
        return self._facts

    def weight(self, module: nn.Module) -> Any:
        return tensor_at(module, self.facts()[0])

    def affine(self, module: nn.Module) -> tuple[Tensor, Tensor] | None:
        norm = self.facts()[3][1]
        return None if norm is None else fold(module, norm)

    @constant
    def hidden(self) -> int | None:
        return self.op.excitation.hidden

    def options(self, rank: int) -> dict[str, Any]:
        return {name: value for name, value in self.op.options(rank) if name != "dim"}

    def tensors(self, module: nn.Module) -> Tensors:
        weight_at, bias_at, _, (norm, _), owner = self.facts()
        weight: Any = tensor_at(module, weight_at)
        bias = None if bias_at is None else tensor_at(module, bias_at)
        # Folded in float32, or it would be rounded once more than in the module.
        scale, shift = (None, None) if norm is None else fold(module, norm, torch.float32)
        return weight, bias, scale, shift, self.op.weights(submodule_at(module, owner))

    def sources(self, module: nn.Module) -> list[Tensor]:
        owner, (of_host, of_owner) = self.owner.submodule(module), self._paths
        return [*(p.tensor(module) for p in of_host), *(p.tensor(owner) for p in of_owner)]  # type: ignore[list-item]

    def keeper(self, module: nn.Module) -> tuple[nn.Module, Hashable]:
        return module, self.facts()[2]

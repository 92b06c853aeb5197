"""The 1x1 convolution beside a gate, which the op computes as well at inference: when, and with which weights."""

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.fusion.recognise.excitation import Layer, Norm, Path, submodule_at, tensor_at
from senet_fast.fusion.run.guards import Op, affine_of, fold, folded, names_of, prologue
from senet_fast.se import _C
from senet_fast.se.conv import Prepared, squeeze_excite_conv
from senet_fast.se.guards import constant, costs_nothing_in_front, freezes, is_plain
from senet_fast.se.inductor import lower_in_place
from senet_fast.se.kept import Tensors, kept, prepare_all

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@functools.lru_cache(maxsize=4096)
def _is_fused(*sizes: int, side: str, dtype: torch.dtype, channels_last: bool) -> bool:
    """Whether the op has a kernel for it, or would only call what the module calls."""
    name = str(dtype).removeprefix("torch.")
    return bool(_C.plan_conv(*sizes, side=side, dtype=name, channels_last=channels_last)["fused"])


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in LAYOUTS and x.stride(1) == 1


def pays_frozen(side: str, dtype: torch.dtype) -> bool:
    """Whether the op has a kernel for this type, where weights are constants, so that they are prepared once."""
    return _is_fused(1, 64, 64, 64, 16, side=side, dtype=dtype, channels_last=True)


@constant
def _pays_compiled(side: str, dtype: torch.dtype) -> bool:
    """Whether weights are constants of the graph that is compiled, for code that lays x out for them, and that pays."""
    return freezes() and lower_in_place() and pays_frozen(side, dtype)


def _call(x: Tensor, tensors: Tensors, residual: Tensor | None, prepared: Prepared | None, **options: Any) -> Tensor:
    weight, bias, scale, shift, excitation = tensors
    return squeeze_excite_conv(
        *(x, weight, bias, *excitation),
        residual=residual,
        norm_scale=scale,
        norm_shift=shift,
        prepared=prepared,
        **options,
    )


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
    return _call_frozen(x, tensors_of(layer, norm, weights), residual, **options)


def tensors_of(
    layer: tuple[Tensor, Tensor | None],
    norm: tuple[tuple[Tensor | None, ...], float] | None,
    weights: tuple[Tensor | None, ...],
) -> Tensors:
    """Of a convolution, the norm behind it and an excitation."""
    # Folded in float32, or it would be rounded once more than in the module.
    scale, shift = (None, None) if norm is None else folded(*norm, torch.float32)
    return *layer, scale, shift, weights


def _call_frozen(x: Tensor, tensors: Tensors, residual: Tensor | None, **options: Any) -> Tensor:
    """Prepared in the graph for channels_last, which the op's lowering gives x (:mod:`senet_fast.se.inductor`)."""
    prepared = prepare_all(tensors, options["side"], _kind(options), x.dtype, x.dim() in LAYOUTS)
    return _call(x, tensors, residual, prepared, **options)


def _kind(options: dict[str, Any]) -> str:
    """The excitation's."""
    return str(options.get("excitation", "two_fc"))


class Convolution:
    """When the op computes the 1x1 convolution beside a gate as well, and the call that does.

    ``side``: of the convolution that is gated. ``activation``: for "input", behind the convolution.
    ``code``: the original's piece; for "output" the convolution, for "input" all that is behind the excitation.
    ``adds``: whether ``code`` takes the residual. ``front``: the piece in front of all that, from v to what is gated or
    multiplied, with its norm and activation; for "input" the step has it as well.
    """

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
        weight = self.weight(module)
        if not is_plain(weight) or weight.dtype != v.dtype or v.device.type != "cpu" or v.dtype == torch.float64:
            return False
        if torch.is_autocast_enabled("cpu"):
            return False
        channels = weight.shape[0]
        if residual is not None and not (
            isinstance(residual, Tensor)
            and residual.dtype == v.dtype
            and residual.shape == (v.shape[0], channels, *v.shape[2:])
        ):
            return False
        if torch.compiler.is_dynamo_compiling():
            return bool(_pays_compiled(self.side, v.dtype))
        if type(v) not in (Tensor, nn.Parameter):  # what stands for one: nothing can be kept of such weights
            return False
        if any(tensor.is_inference() for tensor in self.sources(module)):  # these count no writes
            return False
        sizes = (v.shape[0], v.shape[1], v.shape[2:].numel(), channels, self.hidden() or channels)
        if min(sizes) == 0:
            return False
        return _is_fused(*sizes, side=self.side, dtype=v.dtype, channels_last=_is_channels_last(v))

    def __call__(self, module: Any, v: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        options = self.options(v.dim()) | {"side": self.side, "post_activation": activation}
        x = v
        if self.front is not None and (costs_nothing_in_front(v) or not self.front.plain(module)):
            x = self.front(module, v)
        elif self.front is not None:
            options |= prologue(self.pre_activation, self.affine(module))
        if torch.compiler.is_dynamo_compiling():
            return _call_frozen(x, self.tensors(module), residual, **options)
        how = (self.side, _kind(options), x.dtype, _is_channels_last(x))
        at, made = self.keeper(module), functools.partial(self.tensors, module)
        tensors, prepared = kept(*at, self.sources(module), made, *how)
        return _call(x, tensors, residual, prepared, **options)


@dataclass(frozen=True, eq=False)
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

    @functools.cached_property
    def _facts(self) -> Any:
        assert self.layer == Layer(self.layer.weight, self.layer.bias)  # nothing folded, transposed or apart
        paths = names_of(self.layer.weight), names_of(self.layer.bias)
        norms = affine_of(self.norm), affine_of(self.pre_norm)
        return *paths, norms, tuple(self.owner)

    @constant
    def facts(self) -> Any:
        """Where weight and bias are, the norms behind and in front, and where the owner is."""
        return self._facts

    def weight(self, module: nn.Module) -> Any:
        return tensor_at(module, self.facts()[0])

    def affine(self, module: nn.Module) -> tuple[Tensor, Tensor] | None:
        norm = self.facts()[2][1]
        return None if norm is None else fold(module, norm)

    def hidden(self) -> int | None:
        return self.op.excitation.hidden

    def options(self, rank: int) -> dict[str, Any]:
        return {name: value for name, value in self.op.options(rank) if name != "dim"}

    def tensors(self, module: nn.Module) -> Tensors:
        weight_at, bias_at, (norm, _), owner = self.facts()
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
        return tuple(own), self.op.excitation.sources

    def sources(self, module: nn.Module) -> list[Tensor]:
        owner, (of_host, of_owner) = self.owner.submodule(module), self._paths
        return [*(p.tensor(module) for p in of_host), *(p.tensor(owner) for p in of_owner)]  # type: ignore[list-item]

    def keeper(self, module: nn.Module) -> tuple[nn.Module, Hashable]:
        return module, self.layer.weight

"""The 1x1 convolution beside a gate, which the op computes as well at inference: when, and with which weights."""

import functools
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from senet_fast.fusion.recognise.excitation import Layer, Norm, Path
from senet_fast.fusion.run.guards import Op
from senet_fast.se import _C
from senet_fast.se.conv import Prepared, prepare, squeeze_excite_conv
from senet_fast.se.guards import is_plain

# For each module that has such convolutions: by the path of the weight what it was prepared from, and the result.
_prepared: WeakKeyDictionary[nn.Module, dict[Path, tuple[Any, Any]]] = WeakKeyDictionary()
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@functools.lru_cache(maxsize=4096)
def _is_fused(*sizes: int, side: str, dtype: torch.dtype, channels_last: bool) -> bool:
    """Whether the op has a kernel for it, or would only call what the module calls."""
    name = str(dtype).removeprefix("torch.")
    return bool(_C.plan_conv(*sizes, side=side, dtype=name, channels_last=channels_last)["fused"])


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in LAYOUTS and x.stride(1) == 1


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_frozen() -> bool:
    """Whether weights are constants of the graph that is compiled, and so is what follows from them."""
    return bool(inductor_config.freezing)


@dataclass(frozen=True, eq=False)
class Convolution:
    """``side``: of the convolution that is gated. ``norm``: behind it.

    ``owner``: path of the module that the excitation's paths start at; those of the others start at the host.
    """

    side: str
    layer: Layer
    norm: Norm | None
    op: Op
    owner: Path
    activation: str

    def takes(self, module: nn.Module, v: Tensor, residual: Any) -> bool:
        """Whether the op computes what the convolution does of v and its gate, and is faster."""
        weight = self.layer.weight.tensor(module)
        if self.side == "input" and v.shape[0] != 1:  # norm and activation in front, taken over without it, save more
            return False
        if not is_plain(weight) or weight.dtype != v.dtype or v.device.type != "cpu" or v.dtype == torch.float64:  # type: ignore[union-attr]
            return False
        if torch.is_autocast_enabled("cpu"):
            return False
        channels = weight.shape[0]  # type: ignore[union-attr]
        if residual is not None and not (
            isinstance(residual, Tensor)
            and residual.dtype == v.dtype
            and residual.shape == (v.shape[0], channels, *v.shape[2:])
        ):
            return False
        if torch.compiler.is_compiling():  # where weights are no constants they would be prepared at every call
            return bool(_is_frozen())
        sizes = (v.shape[0], v.shape[1], v.shape[2:].numel(), channels, self.op.excitation.hidden or channels)
        if min(sizes) == 0:
            return False
        return _is_fused(*sizes, side=self.side, dtype=v.dtype, channels_last=_is_channels_last(v))

    def __call__(self, module: nn.Module, x: Tensor, residual: Tensor | None, activation: str) -> Tensor:
        if torch.compiler.is_compiling():
            if x.dim() in LAYOUTS:  # that of Inductor's own convolutions
                x = x.contiguous(memory_format=LAYOUTS[x.dim()])
            tensors = self._tensors(module)
            prepared = self._prepare(tensors, x.dtype, x.dim() in LAYOUTS)
        else:
            tensors, prepared = self._kept(module, x.dtype, _is_channels_last(x))
        weight, bias, scale, shift, excitation = tensors
        options = self.op.options[x.dim()]
        options = {name: value for name, value in options.items() if name != "dim"}
        return squeeze_excite_conv(
            *(x, weight, bias, *excitation),
            residual=residual,
            side=self.side,
            norm_scale=scale,
            norm_shift=shift,
            post_activation=activation,
            prepared=prepared,
            **options,
        )

    def _tensors(self, module: nn.Module) -> tuple[Any, ...]:
        weight, bias = self.layer.tensors(lambda path: path.tensor(module))  # type: ignore[arg-type, return-value]
        scale = shift = None
        if self.norm is not None:  # folded in float32, or it would be rounded once more than in the module
            scale, shift = self.norm.affine(lambda path: path.tensor(module).float())  # type: ignore[union-attr]
        return weight, bias, scale, shift, self.op.weights(self.owner.submodule(module))

    def _prepare(self, tensors: tuple[Any, ...], dtype: torch.dtype, channels_last: bool) -> Prepared:
        weight, bias, scale, shift, (fc1_weight, fc1_bias, *_) = tensors
        return prepare(
            *(weight, bias, fc1_weight, fc1_bias),
            side=self.side,
            norm_scale=scale,
            norm_shift=shift,
            excitation=self.op.excitation.kind,
            dtype=dtype,
            channels_last=channels_last,
        )

    @functools.cached_property
    def _sources(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Paths of all that is prepared from: from the host, and from the owner of the excitation."""
        norm = (self.norm.mean, self.norm.var, self.norm.weight, self.norm.bias) if self.norm is not None else ()
        own = [path for path in (self.layer.weight, self.layer.bias, *norm) if path is not None]
        norms = [path for n in self.op.excitation.norms for path in (n.mean, n.var, n.weight, n.bias)]
        return tuple(own), tuple(path for path in (*self.op.tensors, *norms) if path is not None)

    def _kept(self, module: nn.Module, dtype: torch.dtype, channels_last: bool) -> tuple[tuple[Any, ...], Prepared]:
        """The tensors, and what was prepared from them; made anew when one of them is another one or has changed."""
        owner = self.owner.submodule(module)
        of_host, of_owner = self._sources
        sources = [*(path.tensor(module) for path in of_host), *(path.tensor(owner) for path in of_owner)]
        state = (torch.ops.senet_fast.fingerprint(sources), dtype, channels_last)
        of_module = _prepared.setdefault(module, {})
        kept = of_module.get(self.layer.weight)
        if kept is None or kept[0] != state:
            with torch.no_grad():
                tensors = self._tensors(module)
                kept = of_module[self.layer.weight] = (state, (tensors, self._prepare(tensors, dtype, channels_last)))
        return kept[1]

"""The op with a 1x1 convolution in the place of the modules' own calls at inference: when it pays, and the call."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.se import _C
from senet_fast.se.conv import squeeze_excite_conv
from senet_fast.se.guards import constant, freezes, is_plain, is_recorded
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


def pays(
    side: str, x: Tensor, weight: Any, residual: Any, hidden: int | None, sources: Callable[[], list[Tensor]]
) -> bool:
    """Whether the op computes what a convolution of x by ``weight`` does with its gate and ``residual``, and is faster.

    hidden: units of the excitation, None where it has no such layer. sources: what the weights are prepared from.
    """
    if not is_plain(weight) or weight.dtype != x.dtype or x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    channels = weight.shape[0]
    if residual is not None and not (
        isinstance(residual, Tensor)
        and residual.dtype == x.dtype
        and residual.shape == (x.shape[0], channels, *x.shape[2:])
    ):
        return False
    if torch.compiler.is_dynamo_compiling():
        return bool(_pays_compiled(side, x.dtype))
    # A recorded call would have what was prepared for a constant; inference tensors count no writes.
    if is_recorded(x) or weight.is_inference() or any(tensor.is_inference() for tensor in sources()):
        return False
    sizes = (x.shape[0], x.shape[1], x.shape[2:].numel(), channels, hidden or channels)
    if min(sizes) == 0:
        return False
    return _is_fused(*sizes, side=side, dtype=x.dtype, channels_last=_is_channels_last(x))


def convolve(
    owner: nn.Module,
    name: Hashable,
    x: Tensor,
    sources: Callable[[], list[Tensor]],
    collect: Callable[[], Tensors],
    residual: Tensor | None,
    **options: Any,
) -> Tensor:
    """The op, where it pays, with what ``collect`` makes of ``sources``: prepared when that has changed since the
    latest call for ``name`` and ``owner``, or, compiled, in the graph. ``options``: those of the op.
    """
    if torch.compiler.is_dynamo_compiling():
        return convolve_constant(x, collect(), residual, **options)
    how = (options["side"], options.get("excitation", "two_fc"), x.dtype, _is_channels_last(x))
    tensors, prepared = kept(owner, name, sources(), collect, *how)
    return _call(x, tensors, residual, prepared=prepared, **options)


def convolve_constant(x: Tensor, tensors: Tensors, residual: Tensor | None, **options: Any) -> Tensor:
    """The op in a graph for Inductor whose weights are constants: prepared there, for channels_last, which the op's
    lowering gives x (:mod:`senet_fast.se.inductor`).
    """
    kind = options.get("excitation", "two_fc")
    prepared = prepare_all(tensors, options["side"], kind, x.dtype, x.dim() in LAYOUTS)
    return _call(x, tensors, residual, prepared=prepared, **options)


def _call(x: Tensor, tensors: Tensors, residual: Tensor | None, **options: Any) -> Tensor:
    weight, bias, norm_scale, norm_shift, excitation = tensors
    options |= {"norm_scale": norm_scale, "norm_shift": norm_shift}
    return squeeze_excite_conv(x, weight, bias, *excitation, residual=residual, **options)

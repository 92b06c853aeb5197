"""The ops in torch's own operators, for exporters to a format that has no place for them: ONNX."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from senet_fast.se.reference import squeeze_excite as twin
from senet_fast.se.reference import squeeze_excite_conv as conv_twin


def squeeze_excite(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    dim: int | None = None,
    **options: Any,
) -> Tensor:
    """The op, with or without the prologue; half types are computed in float32 and rounded once, as there."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = (x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual)
    *tensors, added = [None if t is None else t.to(wide) for t in given]
    y = twin(*tensors, residual=added, dim=1 if dim is None else dim, **options)  # type: ignore[arg-type]
    return y.to(x.dtype)


def squeeze_excite_conv(*tensors: Tensor | None, prepared: Any = (), **options: Any) -> Tensor:
    """The op of this name: its tensors by position up to the residual, norm_* and pre_* by name."""
    x = tensors[0]
    assert x is not None
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = [None if t is None else t.to(wide) for t in (*tensors, *[None] * (8 - len(tensors)))]
    options = {name: v.to(wide) if isinstance(v, Tensor) else v for name, v in options.items()}
    return conv_twin(*given[:7], residual=given[7], **options).to(x.dtype)  # type: ignore[arg-type]


def _nothing_prepared(*_: Any, **__: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty(0) for _ in range(5))  # which nobody reads: the op is decomposed, too


def fold_norm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The op of this name, which decomposes by itself but where TorchScript traces."""
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def onnx_by_torchscript() -> bool:
    """Whether TorchScript's exporter to ONNX traces what is called: it has no table of decompositions."""
    # at every call of the op: the first takes 0.06 us, the second 0.9
    return torch._C._get_tracing_state() is not None and torch.onnx.is_in_onnx_export()


_DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    torch.ops.senet_fast.squeeze_excite.default: squeeze_excite,
    torch.ops.senet_fast.squeeze_excite_prologue.default: squeeze_excite,
    torch.ops.senet_fast.squeeze_excite_conv.default: squeeze_excite_conv,
    torch.ops.senet_fast.squeeze_excite_conv_prepare.default: _nothing_prepared,
}


def _record(
    mode: ProxyTorchDispatchMode, op: OpOverload, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What a graph gets for the op: torch's operators if it is made for ONNX, else the op itself.

    Not an entry of torch's table of decompositions, from which ``torch.onnx.export`` would take it too: where the
    variable CI is set, Inductor refuses ops that are in that table and have no lowering.
    """
    if torch.onnx.is_in_onnx_export():
        with mode:
            return _DECOMPOSITIONS[op](*args, **kwargs)
    return mode.__torch_dispatch__(op, types, args, kwargs)


for op in _DECOMPOSITIONS:
    torch.library.register_torch_dispatch(op, ProxyTorchDispatchMode, _record)

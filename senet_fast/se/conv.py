"""A 1x1 convolution and the gate on its input or output in one op, for inference (docs/design/gated-convolution.md)."""

from typing import NamedTuple

import torch
from torch import Tensor

from senet_fast.se.decomposition import onnx_by_torchscript
from senet_fast.se.decomposition import squeeze_excite_conv as plain_squeeze_excite_conv
from senet_fast.se.inductor import lower_in_place

_conv = torch.ops.senet_fast.squeeze_excite_conv.default
_prepare = torch.ops.senet_fast.squeeze_excite_conv_prepare.default


class Prepared(NamedTuple):
    """All of a call that follows from its weights, for the kernels of this processor.

    weight: the convolution's in the order in which it is multiplied, float32 or, where the processor multiplies that,
        bfloat16. For channels_last [C_out / 16, C_in, 16] (bfloat16: [C_out / 16, C_in / 2, 16, 2]), else
        [C_out, C_in]; zeros up to whole vectors.
    scale, shift: [C_out] float32, bias and norm together.
    fc1_weight, fc1_bias: side "output": the first layer applied to the mean of x instead of that of the convolution,
        float32 [R, C_in] and [R] (two_fc), else [C_out, C_in] and [C_out]. Empty on side "input".
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor


def prepare(
    weight: Tensor,
    bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None = None,
    *,
    side: str = "input",
    norm_scale: Tensor | None = None,
    norm_shift: Tensor | None = None,
    excitation: str = "two_fc",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Prepared:
    """What :func:`squeeze_excite_conv` may be given as ``prepared`` for x of this dtype and layout.

    The other arguments are those of the call. The result is a copy: prepare again when a weight has changed.
    """
    options = {"side": side, "norm_scale": norm_scale, "norm_shift": norm_shift, "excitation": excitation}
    made = _prepare(weight, bias, fc1_weight, fc1_bias, **options, dtype=dtype, channels_last=channels_last)
    return Prepared(*made)


def squeeze_excite_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    side: str = "input",
    norm_scale: Tensor | None = None,
    norm_shift: Tensor | None = None,
    excitation: str = "two_fc",
    activation: str = "relu",
    gate: str = "sigmoid",
    add_one: bool = False,
    post_activation: str = "identity",
    pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None,
    pre_activation: str = "identity",
    prepared: Prepared | None = None,
) -> Tensor:
    """A 1x1 convolution with Squeeze-and-Excitation beside it, in one fused op, for inference.

    With conv(u) = weight u + bias at every pixel, norm(v) = v * norm_scale + norm_shift per output channel (a folded
    BatchNorm), SE(u) = u * scale as in :func:`senet_fast.squeeze_excite`, and
    u = pre_activation(x * pre_scale + pre_shift)::

        side "input":   y = post_activation(norm(conv(SE(u))) + residual)
        side "output":  y = post_activation(SE(norm(conv(u))) + residual)

    Args:
        x: [B, C_in, ...], 3-D to 5-D, float32, float64, bfloat16 or float16.
        weight: [C_out, C_in] or [C_out, C_in, 1, ...], in the dtype of ``x`` or float32.
        bias: [C_out] or None, any floating-point dtype.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, excitation, activation, gate, add_one, post_activation: as in
            :func:`senet_fast.squeeze_excite`, for K = C_in channels (side "input") or C_out (side "output").
        residual: [B, C_out, ...], dtype of ``x``.
        side: which side of the convolution is gated.
        norm_scale, norm_shift: [C_out] or None, any floating-point dtype.
        pre_scale, pre_shift, pre_activation: as in :func:`senet_fast.squeeze_excite`, for the C_in channels of ``x``.
        prepared: what :func:`prepare` made of the same weights. Without it that is done at every call. It is not
            compared with the weights.

    Returns:
        y: [B, C_out, ...], dtype of ``x``; channels_last where torch takes x for such a tensor, else contiguous.

    Fused on the CPU for float32, bfloat16 and float16; elsewhere, for maps of fewer than 8 pixels and where preparing
    would take longer than it saves, the same by ``squeeze_excite`` and a convolution (``_C.plan_conv`` tells). Fused,
    sums and the excitation are float32, the gated x is rounded to bfloat16 where the processor multiplies that, and
    results are bitwise equal from run to run, for any number of threads and any batch that an image is part of.

    Raises:
        ValueError, TypeError: an argument that does not fit; the message names it, its value and what was expected.
        RuntimeError: a gradient is wanted.
    """
    tensors = (x, weight, bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual)
    options: dict[str, str | bool | Tensor] = {}  # each one given costs the dispatcher 0.3 us
    if side != "input":
        options["side"] = side
    if norm_scale is not None:
        options["norm_scale"] = norm_scale
    if norm_shift is not None:
        options["norm_shift"] = norm_shift
    if excitation != "two_fc":
        options["excitation"] = excitation
    if activation != "relu":
        options["activation"] = activation
    if gate != "sigmoid":
        options["gate"] = gate
    if add_one:
        options["add_one"] = True
    if post_activation != "identity":
        options["post_activation"] = post_activation
    if pre_scale is not None:
        options["pre_scale"] = pre_scale
    if pre_shift is not None:
        options["pre_shift"] = pre_shift
    if pre_activation != "identity":
        options["pre_activation"] = pre_activation
    if torch.compiler.is_dynamo_compiling():
        lower_in_place()
    op = plain_squeeze_excite_conv if onnx_by_torchscript() else _conv
    return op(*tensors, **options, prepared=prepared or ())

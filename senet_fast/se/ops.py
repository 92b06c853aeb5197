"""The public function over the registered op. Shapes and types are checked in C++ (csrc/bindings/arguments.h)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from senet_fast.se.decomposition import fold_norm as plain_fold_norm
from senet_fast.se.decomposition import onnx_by_torchscript
from senet_fast.se.decomposition import squeeze_excite as plain_squeeze_excite

_squeeze_excite = torch.ops.senet_fast.squeeze_excite.default
_squeeze_excite_prologue = torch.ops.senet_fast.squeeze_excite_prologue.default
_squeeze_excite_into = torch.ops.senet_fast.squeeze_excite_into.default


def fold_norm(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(scale, shift) [C] of x * scale + shift, which a BatchNorm with running ``mean`` and ``var`` [C] is at inference.

    Differentiable; without gradients one loop over float32 on the CPU.
    """
    if onnx_by_torchscript():
        return plain_fold_norm(mean, var, weight, bias, eps)
    return torch.ops.senet_fast.fold_norm.default(mean, var, weight, bias, eps)  # type: ignore[no-any-return]


def folded(norm: Iterable[Tensor | None], eps: float, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(scale, shift) [n] of the tensors of a norm, in ``dtype``."""
    mean, var, weight, bias = (tensor if tensor is None or dtype is None else tensor.to(dtype) for tensor in norm)
    return fold_norm(mean, var, weight, bias, eps)  # type: ignore[arg-type]


def squeeze_excite(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    excitation: str = "two_fc",
    activation: str = "relu",
    gate: str = "sigmoid",
    dim: int = 1,
    add_one: bool = False,
    post_activation: str = "identity",
    pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None,
    pre_activation: str = "identity",
    out: Tensor | None = None,
) -> Tensor:
    """Squeeze-and-Excitation in one fused op, differentiable (Hu et al., arXiv 1709.01507, section 3).

    With K = ``x.shape[dim]`` and the squeeze the mean over every axis but 0 and ``dim``::

        u = pre_activation(x * pre_scale + pre_shift)                  (a folded BatchNorm; x itself by default)
        squeezed = mean(u)                                             [B, K]
        two_fc:        z = fc2_weight @ activation(fc1_weight @ squeezed + fc1_bias) + fc2_bias
        one_fc:        z = fc1_weight @ squeezed + fc1_bias            (effective SE)
        channel_conv:  z = conv1d(squeezed, fc1_weight) + fc1_bias     (ECA, zero padded)
        scale = gate(z), or 1 + gate(z) with ``add_one``
        y = post_activation(u * scale + residual)

    Args:
        x: [B, ..., K, ...], float32, float64, bfloat16 or float16, in any memory layout whose images are dense.
        fc1_weight: [R, K] or [R, K, 1, ...] (two_fc), [K, K] or [K, K, 1, ...] (one_fc), [k] or [1, 1, k] with odd k
            (channel_conv); in the dtype of ``x`` or float32.
        fc1_bias: [R] (two_fc), [K] (one_fc), [1] (channel_conv), or None; dtype of ``fc1_weight``.
        fc2_weight: [K, R] or [K, R, 1, ...]; None unless ``excitation`` is "two_fc".
        fc2_bias: [K] or None.
        residual: shape and dtype of ``x``, added before ``post_activation``.
        excitation: "two_fc", "one_fc" or "channel_conv".
        activation, gate, post_activation: a name of ``senet_fast.se.activations.ACTIVATIONS``, with its arguments in
            parentheses where it has any: "leaky_relu(0.2)".
        dim: the gated axis; negative counts from the end, 0 (the batch) is refused.
        add_one: scale by ``1 + gate(z)``: the residual form x + x * gate.
        pre_scale, pre_shift: [K], any floating-point dtype. u is rounded to the dtype of ``x``. Fused where nothing is
            differentiated; else u is made by torch's own ops in front of the op.
        pre_activation: as ``activation``.
        out: where y goes, for inference: shape and dtype of ``x``; may be ``x`` itself, or ``residual``, but its range
            of memory overlaps no other input. A layout other than that of ``x`` costs a copy, and so does ``residual``
            where there is a prologue.

    Returns:
        y: shape, dtype and memory layout of ``x``; ``out`` if given, else it never aliases ``x``.

    Between forward and backward y must not be changed in place where a residual and ReLU made it, as with torch's own
    ReLU; the residual may be then, and biases always (not under torch.compile; second derivatives then raise).

    Sums and the excitation are float32 for half types (float64 for float64), rounded once at the store; results are
    bitwise equal from run to run and for any number of threads.

    Raises:
        ValueError: a shape, a name or an axis that does not fit; the message names it, its value and what was expected.
        TypeError: a dtype outside those above, or weights that differ in dtype.
        RuntimeError: ``out`` where a gradient is wanted.
        NotImplementedError: tensors on a device for which this build has no kernel.
    """
    options: dict[str, str | int | bool] = {}  # each one given costs the dispatcher 0.3 us
    if excitation != "two_fc":
        options["excitation"] = excitation
    if activation != "relu":
        options["activation"] = activation
    if gate != "sigmoid":
        options["gate"] = gate
    if dim != 1:
        options["dim"] = dim
    if add_one:
        options["add_one"] = True
    if post_activation != "identity":
        options["post_activation"] = post_activation
    before: dict[str, Any] = {}
    if pre_scale is not None or pre_shift is not None or pre_activation != "identity":
        before = {"pre_scale": pre_scale, "pre_shift": pre_shift, "pre_activation": pre_activation}
    tensors = (x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual)
    op: Callable[..., Tensor] = _squeeze_excite_prologue if before else _squeeze_excite
    if onnx_by_torchscript():
        op = plain_squeeze_excite
    elif out is not None and not torch.compiler._is_exporting_flag:
        _squeeze_excite_into(*tensors, **options, **before, y=out)
        return out
    y = op(*tensors, **options, **before)
    # an export gets no op that writes to its arguments: torch wraps those, and the exporter to ONNX knows no wrapper
    return y if out is None else out.copy_(y)

"""What the tests of squeeze_excite_conv share: made-up arguments and the comparison with the reference."""

from collections.abc import Sequence
from typing import Any

import torch
from se_testing import Arguments, exact, weights
from torch import Tensor
from torch._prims_common import suggest_memory_format

from senet_fast.se import reference
from senet_fast.se.conv import prepare, squeeze_excite_conv

FORMATS = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank of x
PREPARED = ("weight", "bias", "fc1_weight", "fc1_bias", "side", "norm_scale", "norm_shift", "excitation")


def lay_out(t: Tensor, channels_last: bool) -> Tensor:
    return t.contiguous(memory_format=FORMATS[t.dim()] if channels_last else torch.contiguous_format)


def conv_arguments(
    dtype: torch.dtype = torch.float32,
    *,
    B: int = 2,
    C_in: int = 19,
    C_out: int = 37,
    sizes: Sequence[int] = (5, 13),
    side: str = "input",
    channels_last: bool = True,
    excitation: str = "two_fc",
    R: int = 5,
    weight_dtype: torch.dtype | None = None,
    bias: bool = True,
    norm: bool = False,
    pre: bool = False,
    residual: bool = False,
    **options: Any,
) -> Arguments:
    """Keyword arguments for squeeze_excite_conv, its tensors drawn from torch's generator."""
    kind = weight_dtype or dtype
    made: Arguments = {
        "x": lay_out(torch.randn(B, C_in, *sizes, dtype=dtype), channels_last),
        "weight": torch.randn(C_out, C_in, *[1] * len(sizes), dtype=kind) / C_in**0.5,
        "bias": torch.randn(C_out, dtype=kind) if bias else None,
    }
    made |= weights(excitation, C_in if side == "input" else C_out, R, kind, bias=bias)
    if norm:
        made |= {"norm_scale": torch.rand(C_out) + 0.5, "norm_shift": torch.randn(C_out)}
    if pre:
        made |= {"pre_scale": torch.rand(C_in) + 0.5, "pre_shift": torch.randn(C_in), "pre_activation": "silu"}
    if residual:
        made["residual"] = lay_out(torch.randn(B, C_out, *sizes, dtype=dtype), channels_last)
    return made | {"side": side, "excitation": excitation} | options


def with_prepared(arguments: Arguments) -> Arguments:
    """The same with the weights prepared for the layout and type of x."""
    x = arguments["x"]
    last = suggest_memory_format(x) != torch.contiguous_format
    given = {name: arguments[name] for name in PREPARED if name in arguments}
    return arguments | {"prepared": prepare(**given, dtype=x.dtype, channels_last=last)}


# Errors allowed, in units of the type's epsilon relative to the largest value of y. A half result is rounded once, and
# of bfloat16 the gated x, too.
LIMITS = {torch.float32: 32, torch.float64: 64, torch.bfloat16: 1.5, torch.float16: 1.0}


def assert_close_to_twin(arguments: Arguments, y: Tensor | None = None) -> None:
    """y, by default the op's, against the reference in float64."""
    tensors = {name: v for name, v in arguments.items() if name != "prepared"}
    expected = reference.squeeze_excite_conv(**exact(tensors))
    x = arguments["x"]
    y = squeeze_excite_conv(**arguments) if y is None else y
    assert y.shape == expected.shape
    assert y.dtype == x.dtype
    if y.numel() == 0:
        return
    unit = torch.finfo(y.dtype).eps * max(expected.abs().max().item(), 1e-30)
    error = (y.double() - expected).abs().max().item() / unit
    assert error <= LIMITS[y.dtype], f"y is off by {error:.2f} epsilon"

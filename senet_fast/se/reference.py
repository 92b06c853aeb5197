"""The specification: Squeeze-and-Excitation in plain torch (Hu et al., arXiv 1709.01507, section 3).

Tests and benchmarks compare the compiled op with these. The package uses parts of them in two places, and says so:
the frame around layers that must be called, and what ONNX gets.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from senet_fast.se.activations import apply, spec_of


def rank_of(x: Tensor) -> int:
    """The number of axes of x; symbolic tracing does not know it and gets that of maps, [B, K, H, W]."""
    return 4 if type(x) is fx.Proxy else x.dim()  # type: ignore[comparison-overlap]


def prologue(x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, dim: int) -> Tensor:
    """activation(x * scale + shift) along ``dim``, in float32 (float64 for float64), rounded to the dtype of ``x``."""
    if scale is None and shift is None and activation == "identity":
        return x
    axis = dim + x.dim() if dim < 0 else dim
    shape = [x.shape[d] if d == axis else 1 for d in range(x.dim())]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    u = x.to(wide)
    if scale is not None:
        u = u * scale.to(wide).view(shape)
    if shift is not None:
        u = u + shift.to(wide).view(shape)
    return apply(activation, u, "pre_activation").to(x.dtype)


def gated(
    x: Tensor,
    excite: Callable[[Tensor], Tensor],
    *,
    residual: Tensor | None = None,
    gate: str = "sigmoid",
    dim: int = 1,
    add_one: bool = False,
    post_activation: str = "identity",
) -> Tensor:
    """post_activation(x * scale + residual), where ``excite`` makes the gate's inputs [B, K] of the squeeze [B, K]."""
    rank = rank_of(x)
    axis = dim + rank if dim < 0 else dim
    if not 1 <= axis < rank:
        raise ValueError(f"dim is {dim}; expected an axis of x ({rank}-D) other than 0, the batch")
    squeezed = x.mean([d for d in range(1, rank) if d != axis]) if rank > 2 else x
    scale = apply(gate, excite(squeezed), "gate")
    scale = 1 + scale if add_one else scale
    y = x * scale.view([x.shape[d] if d in (0, axis) else 1 for d in range(rank)])
    return apply(post_activation, y if residual is None else y + residual, "post_activation")


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
) -> Tensor:
    """What :func:`senet_fast.squeeze_excite` computes, for every shape it accepts, differentiable to any order."""

    def excite(squeezed: Tensor) -> Tensor:
        if excitation == "two_fc":
            assert fc2_weight is not None
            hidden = apply(activation, F.linear(squeezed, fc1_weight.flatten(1), fc1_bias))  # [B, R]
            return F.linear(hidden, fc2_weight.flatten(1), fc2_bias)  # [B, K]
        if excitation == "one_fc":
            return F.linear(squeezed, fc1_weight.flatten(1), fc1_bias)
        if excitation == "channel_conv":
            return F.conv1d(squeezed[:, None], fc1_weight.reshape(1, 1, -1), fc1_bias, padding="same")[:, 0]
        raise ValueError(f"excitation is {excitation!r}; expected two_fc, one_fc or channel_conv")

    x = prologue(x, pre_scale, pre_shift, pre_activation, dim)
    return gated(x, excite, residual=residual, gate=gate, dim=dim, add_one=add_one, post_activation=post_activation)


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
) -> Tensor:
    """What :func:`senet_fast.se.conv.squeeze_excite_conv` computes."""
    x = prologue(x, pre_scale, pre_shift, pre_activation, 1)

    def convolve(u: Tensor) -> Tensor:
        conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[u.dim()]
        return conv(u, weight.reshape(*weight.shape[:2], *[1] * (u.dim() - 2)), bias)

    def excited(u: Tensor, **options: Any) -> Tensor:
        options |= {"excitation": excitation, "activation": activation, "gate": gate, "add_one": add_one}
        return squeeze_excite(u, fc1_weight, fc1_bias, fc2_weight, fc2_bias, **options)

    if side == "output":
        u = prologue(convolve(x), norm_scale, norm_shift, "identity", 1)
        return excited(u, residual=residual, post_activation=post_activation)
    if side != "input":
        raise ValueError(f"side is {side!r}; expected input or output")
    y = prologue(convolve(excited(x)), norm_scale, norm_shift, "identity", 1)
    return apply(post_activation, y if residual is None else y + residual, "post_activation")


def hidden_size(channels: int, reduction: int, hidden_channels: int | None) -> int:
    """R, checked: ``hidden_channels``, or ``channels // reduction``; ValueError below 1, TypeError for no int."""
    for name, value in {"channels": channels, "reduction": reduction, "hidden_channels": hidden_channels}.items():
        if value is not None and not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; expected an int")
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    if hidden_channels is None and channels < reduction:
        raise ValueError(f"channels // reduction is {channels} // {reduction} = 0; expected at least 1 hidden channel")
    return hidden_channels or channels // reduction


class SEBlock(nn.Module):
    """The SE block as people write it: two 1x1 convolutions on a global average.

    x: [B, channels, ...] of any rank >= 3; parameters fc1.weight [R, C, 1, 1], fc1.bias [R], fc2.weight [C, R, 1, 1],
    fc2.bias [C], with R = ``hidden_channels`` or ``channels // reduction``.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        bias: bool = True,
        activation: str = "relu",
        gate: str = "sigmoid",
    ) -> None:
        super().__init__()
        hidden = hidden_size(channels, reduction, hidden_channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.activation = spec_of(activation, "activation")
        self.gate = spec_of(gate, "gate")

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean(list(range(2, rank_of(x))), keepdim=True)  # [B, C, 1, ...]
        hidden = apply(self.activation, self.fc1(squeezed.flatten(1)[:, :, None, None]))
        scale = apply(self.gate, self.fc2(hidden), "gate")
        return x * scale.view_as(squeezed)

"""BatchNorm, SE, residual and ReLU of a residual block in training, with two passes over x forward and two backward.

BatchNorm's pass over x takes the mean and the squares of each image's channels. From these [B, C] numbers follow the
batch statistics, and behind BatchNorm's affine also the squeeze, so the excitation is known before anything is
written, and one pass does y = relu((x - mean) * scale + shift + residual). Backward is a pass for the sums that are the
gradients of scale and shift, plain autograd on the [B, C] numbers, and a pass that writes both gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import batch_norm, linear

from senet_fast.se.activations import apply
from senet_fast.se.guards import has_plain_tensors, is_untouched
from senet_fast.se.module import FusedSE, weights_for_op

_moments = torch.ops.senet_fast.norm_moments.default
_apply = torch.ops.senet_fast.norm_apply.default
_sums = torch.ops.senet_fast.norm_sums.default
_gradients = torch.ops.senet_fast.norm_gradients.default


def _coefficients(
    mean: Tensor, squares: Tensor, pixels: int, norm: nn.BatchNorm2d, se: FusedSE, parameters: list[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scale and shift of the whole block and the batch's mean and biased variance, from moments [B, C]."""
    weight, bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = parameters
    assert weight is not None
    assert bias is not None
    assert fc1_weight is not None
    assert fc2_weight is not None
    batch_mean = mean.mean(0)
    variance = squares.mean(0) / pixels + (mean - batch_mean).square().mean(0)
    slope = weight * torch.rsqrt(variance + norm.eps)
    squeezed = (mean - batch_mean) * slope + bias
    gate = _excite(se, squeezed, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return slope * gate, squeezed * gate, batch_mean, variance


def _excite(
    se: FusedSE,
    squeezed: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    hidden = apply(se.activation, linear(squeezed, fc1_weight.flatten(1), fc1_bias))
    return apply(se.gate, linear(hidden, fc2_weight.flatten(1), fc2_bias), "gate")


class _NormSE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, norm: nn.BatchNorm2d, se: FusedSE, *parameters: Tensor | None
    ) -> Tensor:
        mean, squares = _moments(x)
        leaves = [t if t is None else t.detach().requires_grad_() for t in (mean, squares, *parameters)]
        pixels = x.shape[2] * x.shape[3]
        with torch.enable_grad():
            assert leaves[0] is not None
            assert leaves[1] is not None
            scale, shift, batch_mean, variance = _coefficients(leaves[0], leaves[1], pixels, norm, se, leaves[2:])
        y = _apply(x, mean, scale.detach(), shift.detach(), residual)
        _track(norm, batch_mean.detach(), variance.detach(), x.numel() // x.shape[1])
        ctx.save_for_backward(x, y, mean, *parameters)
        ctx.inner = (norm.eps, se, scale, shift, leaves)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, y, mean, *parameters = ctx.saved_tensors
        eps, se, scale, shift, leaves = ctx.inner
        if torch.is_grad_enabled():  # derivatives of these gradients are wanted: plain torch has all of them
            return _composed(grad_y, x, y, parameters, eps, se)
        grad_y = grad_y if grad_y.stride() == x.stride() else torch.empty_like(x).copy_(grad_y)
        grads, products = _sums(grad_y, y, x, mean)
        given = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad((scale, shift), given, (products, grads), retain_graph=True))
        of_mean, of_squares, *of_parameters = [None if leaf is None else next(found) for leaf in leaves]
        assert of_mean is not None
        assert of_squares is not None
        pixels = x.shape[2] * x.shape[3]
        offset = (of_mean - scale.detach() * grads) / pixels  # the mean is also what is subtracted from x
        grad_x, grad_residual = _gradients(grad_y, y, x, mean, scale.detach(), 2 * of_squares, offset)
        return grad_x, grad_residual, None, None, *of_parameters


def _composed(
    grad_y: Tensor, x: Tensor, y: Tensor, parameters: list[Tensor | None], eps: float, se: FusedSE
) -> tuple[Tensor | None, ...]:
    """What backward returns, differentiable."""
    weight, bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = parameters
    assert fc1_weight is not None
    assert fc2_weight is not None
    grad = torch.where(y <= 0, 0, grad_y)
    u = batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    scaled = u * _excite(se, u.mean((2, 3)), fc1_weight, fc1_bias, fc2_weight, fc2_bias)[..., None, None]
    given = [t for t in (x, *parameters) if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(scaled, given, grad, create_graph=True))
    of_x, *of_parameters = [next(found) if t is not None and t.requires_grad else None for t in (x, *parameters)]
    return of_x, grad, None, None, *of_parameters


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Running statistics, as nn.BatchNorm2d keeps them."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var), momentum)


def supported(x: Tensor, norm: nn.Module, se: nn.Module, residual: Tensor) -> bool:
    """Whether :func:`norm_se_relu` does this block; where not, its modules one after the other do the same."""
    if type(norm) is not nn.BatchNorm2d or type(se) is not FusedSE:
        return False
    return (
        type(x) in (Tensor, nn.Parameter)  # not FakeTensor, DTensor and the like
        and type(residual) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and norm.training
        and norm.affine
        and is_untouched(norm, nn.BatchNorm2d)
        and has_plain_tensors(norm)
        and is_untouched(se, FusedSE)
        and weights_for_op(se, x, se.fc1, se.fc2) is not None
        and se.post_activation == "relu"
        and se.dim == 1
        and not se.add_one
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == residual.dtype == norm.weight.dtype == se.fc1.weight.dtype
        and x.dim() == 4
        and x.shape == residual.shape
        and x.numel() > x.shape[1]
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def norm_se_relu(x: Tensor, norm: nn.BatchNorm2d, se: FusedSE, residual: Tensor) -> Tensor:
    """relu(se(norm(x)) + residual) in training, where ``se`` has its ReLU (``post_activation="relu"``).

    Args:
        x: [B, C, H, W], float32 or float64 on the CPU, contiguous or channels_last; B * H * W > 1.
        norm: in training mode; its running statistics and counter move as ever.
        se: over dimension 1, without ``add_one``.
        residual: shape and dtype of x.

    Returns:
        y: shape, dtype and layout of x; differentiable to any order, the first by the fused passes.

    Raises:
        TypeError: a SyncBatchNorm or another norm. ValueError: anything else that :func:`supported` refuses.
    """
    if type(norm) is not nn.BatchNorm2d:
        raise TypeError(f"norm is a {type(norm).__name__}; expected torch.nn.BatchNorm2d itself")
    if not supported(x, norm, se, residual):
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)} on {x.device}, norm is {norm}, se is {se}; expected what supported() takes"
        )
    residual = residual if residual.stride() == x.stride() else torch.empty_like(x).copy_(residual)
    parameters = (norm.weight, norm.bias, se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias)
    y: Tensor = _NormSE.apply(x, residual, norm, se, *parameters)  # type: ignore[no-untyped-call]
    return y

"""What the networks are made of: convolutions with BatchNorm, and BatchNorm with the SE block and its neighbours.

Every network takes ``se``: False for the plain network, True for :class:`FusedSE` fused with its neighbours, or a
factory called as ``se(channels, reduction)``, such as :class:`SEBlock`, whose neighbours stay ops of their own.
"""

import math
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from senet_fast.se import FusedSE, squeeze_excite
from senet_fast.se.guards import (
    costs_nothing_in_front,
    has_hooks,
    has_plain_tensors,
    hooks_of_all_modules,
    is_plain,
    is_untouched,
    only_inference,
)
from senet_fast.se.module import weights_for_op
from senet_fast.se.norm import norm_se_relu, supported
from senet_fast.se.ops import fold_norm
from senet_fast.se.reference import gated

# Elements of x from which norm_se_relu pays. Below, its [B, C] numbers take longer than the passes that it saves: with
# 8 x 2048 x 7 x 7 it took 1.3 times as long as the modules, with 8 x 1024 x 14 x 14 0.7 to 1.0 times.
LEAST_FUSED = 1 << 20

SEFactory = Callable[[int, int], nn.Module]
SE = bool | SEFactory


Kernel = int | tuple[int, int]


def conv(
    channels: int, out: int, kernel: Kernel, stride: int = 1, groups: int = 1, *, padded: bool = True
) -> nn.Conv2d:
    """Without bias; padded so that stride 1 keeps the map, or not at all; weights start as in arXiv 1502.01852."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2) if padded else (0, 0)
    layer = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def conv_bn(
    channels: int, out: int, kernel: Kernel, stride: int = 1, groups: int = 1, *, padded: bool = True
) -> list[nn.Module]:
    """The BatchNorm keeps its initial weight of 1, also at the end of a branch: 0 would feed zeros to the SE blocks."""
    return [conv(channels, out, kernel, stride, groups, padded=padded), nn.BatchNorm2d(out)]


def conv_bn_relu(
    channels: int, out: int, kernel: Kernel, stride: int = 1, groups: int = 1, *, padded: bool = True
) -> list[nn.Module]:
    return [*conv_bn(channels, out, kernel, stride, groups, padded=padded), nn.ReLU(inplace=True)]


class ECA(nn.Module):
    """Efficient channel attention (Wang et al., arXiv 1910.03151): x * sigmoid(conv1d over the channels' means).

    The width k of the convolution is the odd number at or above log2(channels) / 2 + 1 / 2, cut to an integer
    (equation 12). ``conv.weight`` [1, 1, k]. A factory like the others; ``reduction`` has no meaning here.
    """

    def __init__(self, channels: int, reduction: int = 16, *, post_activation: str = "identity") -> None:
        super().__init__()
        width = int(math.log2(channels) / 2 + 0.5) | 1
        self.conv = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)
        self.post_activation = post_activation

    def for_op(self, x: Tensor) -> tuple[Tensor | None, ...] | None:
        """The op's ``fc1_weight`` and ``fc1_bias`` for x; None where ``conv`` must be called."""
        conv = self.conv
        weights = weights_for_op(self, x, conv, kind=nn.Conv1d)
        if weights is None or (conv.stride, conv.dilation, conv.padding_mode) != ((1,), (1,), "zeros"):
            return None
        assert weights[0] is not None
        width = weights[0].shape[-1]  # not the layer's own: torch.fx would give a proxy
        return weights if width % 2 and conv.padding == (width // 2,) else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weights = self.for_op(x)
        if weights is None:
            return gated(
                x,
                lambda squeezed: self.conv(squeezed[:, None])[:, 0],
                residual=residual,
                post_activation=self.post_activation,
            )
        return squeeze_excite(
            x,
            *weights,  # type: ignore[arg-type]
            excitation="channel_conv",
            residual=residual,
            post_activation=self.post_activation,
        )


def se_block(
    se: SE, channels: int, reduction: int, post_activation: str = "identity", inplace: bool = True
) -> nn.Module:
    """The SE block, or nn.Identity. What True makes also applies ``post_activation``."""
    if se is False:
        return nn.Identity()
    if se is True:
        return FusedSE(channels, reduction, post_activation=post_activation, inplace=inplace)
    if se is ECA:
        return ECA(channels, post_activation=post_activation)
    assert callable(se)
    return se(channels, reduction)


def apply_se(se: nn.Module, x: Tensor, residual: Tensor | None, last: bool, inplace: bool = True) -> Tensor:
    """se(x) + residual, with ReLU behind it if ``last``: one op where the block does its neighbours itself.

    ``inplace``: whether x may be written over. Then se(x), which may be x itself, may be as well, as
    ``nn.ReLU(inplace=True)`` does it, unless a hook may have kept it.
    """
    more = {"inplace": inplace} if isinstance(se, FusedSE) else {}
    if isinstance(se, (FusedSE, ECA)) and se.post_activation == ("relu" if last else "identity"):
        y: Tensor = se(x, residual, **more)
        return y
    y = se(x, **more)
    inplace = inplace and not has_hooks(se) and not hooks_of_all_modules()  # which may have kept y
    if residual is not None:
        # torch.fx's proxies and tensor subclasses take the plain addition, which asks them nothing.
        inplace = inplace and type(y) is Tensor and y.dtype == residual.dtype
        y = y.add_(residual) if inplace else y + residual
        inplace = True
    return relu(y, inplace=inplace) if last else y


def is_unseen(maker: nn.Module) -> bool:
    """Whether what ``maker`` returned is new memory that nobody else holds, so that it may be written over."""
    return is_untouched(maker, nn.Conv2d) or is_untouched(maker, Concat)


class Chain(nn.Sequential):
    """nn.Sequential that tells the blocks in it whether they may write over what the module in front of them made."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, 0, len(self))

    def part(self, x: Tensor, first: int, end: int) -> Tensor:
        """What the modules from ``first`` to ``end`` make of x, which those in front of them made."""
        modules = list(self)
        before: nn.Module = self if first == 0 else modules[first - 1]
        for module in modules[first:end]:
            x = module(x, inplace=is_unseen(before)) if isinstance(module, (NormSE, FusedSE)) else module(x)
            before = module
        return x


class NormSE(nn.Module):
    """BatchNorm, SE, residual and ReLU behind a convolution; the places of ReLU are fixed when it is made::

        y = [relu](se([relu](norm(x))) + residual)

    x, residual, y: [B, channels, H, W]. With ``se=True`` this is one op in eval mode while grad mode is off, which
    takes the place of x if ``inplace`` says that nobody else needs x. In training a residual block's tail is fused by
    :func:`norm_se_relu` where that is supported and pays; elsewhere BatchNorm is an op of its own, the rest one more.
    """

    def __init__(self, channels: int, se: SE, reduction: int, *, relu_first: bool = False, relu_last: bool) -> None:
        super().__init__()
        self.relu_first, self.relu_last = relu_first, relu_last
        self.norm = nn.BatchNorm2d(channels)
        self.se = se_block(se, channels, reduction, "relu" if relu_last else "identity")

    def forward(self, x: Tensor, residual: Tensor | None = None, inplace: bool = False) -> Tensor:
        norm, se = self.norm, self.se
        inplace = inplace and not has_hooks(self)
        if isinstance(se, FusedSE) and se.post_activation == self._post() and foldable(norm, se, x):
            scale, shift = fold(norm)
            first = "relu" if self.relu_first else "identity"
            y: Tensor = se(x, residual, pre_scale=scale, pre_shift=shift, pre_activation=first, inplace=inplace)
            return y
        if (
            residual is not None
            and not self.relu_first
            and torch.is_grad_enabled()
            and supported(x, norm, se, residual)
            and x.numel() >= LEAST_FUSED  # last: under an exporter it would bind free sizes
        ):
            return norm_se_relu(x, norm, se, residual)  # type: ignore[arg-type]
        u = norm(x)
        own = is_untouched(norm, nn.BatchNorm2d)  # then u is new, and no hook has kept it
        return apply_se(se, relu(u, inplace=True) if self.relu_first else u, residual, self.relu_last, own)

    def _post(self) -> str:
        return "relu" if self.relu_last else "identity"


def foldable(norm: nn.Module, se: FusedSE, x: Tensor) -> bool:
    """Whether ``norm`` in front of ``se`` is now no more than a scale and a shift, and the input of ``se`` seen by
    nobody. In exported graphs it stays a BatchNorm.
    """
    compiling = torch.compiler.is_compiling()
    if not is_affine(norm, compiling) or not is_untouched(se, FusedSE, compiling):
        return False
    plain = is_plain(x) and not hooks_of_all_modules()
    return plain and only_inference() and not costs_nothing_in_front(x)


def fold(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a norm that :func:`is_affine`."""
    return fold_norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]


def is_affine(norm: nn.Module, compiling: bool) -> TypeGuard[nn.BatchNorm2d]:
    """Whether ``norm`` is now no more than a scale and a shift: a BatchNorm at inference that nobody listens to."""
    if not is_untouched(norm, nn.BatchNorm2d, compiling):
        return False
    fixed = norm.affine and not norm.training and norm.running_mean is not None and norm.running_var is not None
    return bool(fixed and has_plain_tensors(norm))


class Concat(nn.Module):
    """Branches on the same x, one behind the other along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Head(nn.Module):
    """Global average, dropout, classifier: [B, channels, H, W] -> logits [B, num_classes]."""

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(x.mean((2, 3))))
        return logits

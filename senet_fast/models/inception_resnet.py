"""Inception-ResNet-v2 (Szegedy et al., arXiv 1602.07261) as its authors published it in TensorFlow.

That network has twice the blocks of the paper's figure 15 and the stem of Inception-v3. The SE block stands behind the
concatenation of the modules without a shortcut, and behind the last convolution of a residual branch, before the
addition (arXiv 1709.01507, figures 2 and 3).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from senet_fast.models.convolution import beside, convolved
from senet_fast.models.layers import SE, Chain, Concat, Head, Kernel, apply_se, conv_bn_relu, is_unseen, se_block
from senet_fast.se import FusedSE
from senet_fast.se.guards import hooks_of_all_modules, is_plain, is_untouched, only_inference


class Step(NamedTuple):
    """A convolution of a branch; not padded with stride 2."""

    out: int
    kernel: Kernel
    stride: int = 1


class Blocks(NamedTuple):
    """``depth`` residual blocks: relu(x + scale * projection(branches)). The network's last has no ReLU."""

    depth: int
    scale: float
    branches: tuple[tuple[Step, ...], ...]


A = Blocks(10, 0.17, ((Step(32, 1),), (Step(32, 1), Step(32, 3)), (Step(32, 1), Step(48, 3), Step(64, 3))))
B = Blocks(20, 0.10, ((Step(192, 1),), (Step(128, 1), Step(160, (1, 7)), Step(192, (7, 1)))))
C = Blocks(9, 0.20, ((Step(192, 1),), (Step(192, 1), Step(224, (1, 3)), Step(256, (3, 1)))))
LAST = C._replace(depth=1, scale=1.0)
MIXED = ((Step(96, 1),), (Step(48, 1), Step(64, 5)), (Step(64, 1), Step(96, 3), Step(96, 3)))
REDUCE_A = ((Step(384, 3, 2),), (Step(256, 1), Step(256, 3), Step(384, 3, 2)))
REDUCE_B = (
    (Step(256, 1), Step(384, 3, 2)),
    (Step(256, 1), Step(288, 3, 2)),
    (Step(256, 1), Step(288, 3), Step(320, 3, 2)),
)


def branch(channels: int, steps: tuple[Step, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out, kernel, stride in steps:
        layers += conv_bn_relu(channels, out, kernel, stride, padded=stride == 1)
        channels = out
    return nn.Sequential(*layers)


def reduction_module(channels: int, steps: tuple[tuple[Step, ...], ...]) -> tuple[Concat, int]:
    """Convolutions with stride 2 beside a pooled x, and the channels behind the concatenation."""
    concat = Concat(*(branch(channels, each) for each in steps), nn.MaxPool2d(3, 2))
    return concat, channels + sum(each[-1].out for each in steps)


class Residual(nn.Module):
    """relu(x + se(scale * projection(branches(x)))); x, y: [B, channels, H, W]."""

    scales: Tensor

    def __init__(self, channels: int, config: Blocks, se: SE, reduction: int, *, last: bool = False) -> None:
        super().__init__()
        self.scale, self.last = config.scale, last
        self.branches = Concat(*(branch(channels, steps) for steps in config.branches))
        self.projection = nn.Conv2d(sum(steps[-1].out for steps in config.branches), channels, 1)
        self.se = se_block(se, channels, reduction, "identity" if last else "relu")
        self.register_buffer("scales", torch.full((channels,), config.scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        v = self.branches(x)
        activation = "identity" if self.last else "relu"
        found = beside(x, self.projection, self.scales, self.se, activation)
        if found is not None:
            y = convolved(self, "projection.weight", found, v, x, post_activation=activation)
            if y is not None:
                return y
        u = self.projection(v)
        own, compiling = is_unseen(self.projection), torch.compiler.is_compiling()
        if (
            is_plain(u)
            and only_inference()
            and is_untouched(self.se, FusedSE, compiling)
            and not hooks_of_all_modules()
        ):
            return self.se(u, x, pre_scale=self.scales, inplace=own)  # type: ignore[no-any-return]
        return apply_se(self.se, u.mul_(self.scale) if own else u * self.scale, x, not self.last)


class InceptionResNet(nn.Module):
    """x: [B, 3, H, W], usually 299 x 299 and at least 75 x 75 -> logits [B, num_classes]."""

    def __init__(self, num_classes: int = 1000, *, se: SE = False, reduction: int = 16) -> None:
        super().__init__()
        layers = [
            *conv_bn_relu(3, 32, 3, 2, padded=False),
            *conv_bn_relu(32, 32, 3, padded=False),
            *(*conv_bn_relu(32, 64, 3), nn.MaxPool2d(3, 2)),
            *conv_bn_relu(64, 80, 1),
            *(*conv_bn_relu(80, 192, 3, padded=False), nn.MaxPool2d(3, 2)),
        ]
        pooled = nn.Sequential(nn.AvgPool2d(3, 1, padding=1, count_include_pad=False), *conv_bn_relu(192, 64, 1))
        layers += [Concat(*(branch(192, steps) for steps in MIXED), pooled), se_block(se, 320, reduction)]
        channels = 320
        for blocks, reduce in ((A, REDUCE_A), (B, REDUCE_B), (C, None)):
            layers += [Residual(channels, blocks, se, reduction) for _ in range(blocks.depth)]
            if reduce is not None:
                concat, channels = reduction_module(channels, reduce)
                layers += [concat, se_block(se, channels, reduction)]
        layers += [Residual(channels, LAST, se, reduction, last=True), *conv_bn_relu(channels, 1536, 1)]
        for layer in layers:
            for norm in layer.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eps = 1e-3
        self.features = Chain(*layers)
        self.head = Head(1536, num_classes, dropout=0.2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


NETWORKS = {"inception_resnet_v2": InceptionResNet}

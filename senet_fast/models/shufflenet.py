"""ShuffleNet 1x with 3 groups (Zhang et al., arXiv 1707.01083, table 1).

The SE block stands behind the last BatchNorm of a unit's branch, before the addition or concatenation.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import channel_shuffle, relu

from senet_fast.models.layers import SE, Head, NormSE, conv, conv_bn, conv_bn_relu, is_unseen


class ShuffleNetConfig(NamedTuple):
    groups: int
    channels: tuple[int, ...]  # of each stage
    depths: tuple[int, ...]  # units of each stage


SHUFFLENET_V1 = ShuffleNetConfig(3, (240, 480, 960), (4, 8, 4))
STEM = 24


class Unit(nn.Module):
    """1x1 in groups, shuffle, depthwise 3x3, 1x1 in groups; added to x, or with stride 2 behind its average.

    x: [B, channels, H, W] -> [B, out, H / stride, W / stride].
    """

    def __init__(self, channels: int, out: int, groups: int, stride: int, se: SE, reduction: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        width = out // 4
        branch = out if stride == 1 else out - channels
        # the first unit's input is too narrow to be cut into groups
        self.squeeze = nn.Sequential(*conv_bn_relu(channels, width, 1, groups=1 if channels == STEM else groups))
        self.depthwise = nn.Sequential(*conv_bn(width, width, 3, stride, groups=width))
        self.expand = conv(width, branch, 1, groups=groups)
        self.tail = NormSE(branch, se, reduction, relu_last=stride == 1)
        self.pool = nn.AvgPool2d(3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(channel_shuffle(self.squeeze(x), self.groups)))
        if self.stride == 1:
            out: Tensor = self.tail(y, x, inplace=is_unseen(self.expand))
            return out
        return relu(torch.cat([self.pool(x), self.tail(y, inplace=is_unseen(self.expand))], 1), inplace=True)


class ShuffleNet(nn.Module):
    """x: [B, 3, H, W], usually 224 x 224 -> logits [B, num_classes]."""

    def __init__(
        self, config: ShuffleNetConfig, num_classes: int = 1000, *, se: SE = False, reduction: int = 16
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn_relu(3, STEM, 3, 2), nn.MaxPool2d(3, 2, padding=1))
        units = []
        channels = STEM
        for out, depth in zip(config.channels, config.depths, strict=True):
            for place in range(depth):
                units.append(Unit(channels, out, config.groups, 2 if place == 0 else 1, se, reduction))
                channels = out
        self.units = nn.Sequential(*units)
        self.head = Head(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.units(self.stem(x)))
        return logits


NETWORKS = {"shufflenet_v1": partial(ShuffleNet, SHUFFLENET_V1)}

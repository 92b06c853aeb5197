"""SE-ResNets (He et al., arXiv 1512.03385; Hu et al., arXiv 1709.01507, figure 3), small enough to read in one go.

The SE block stands after the last BatchNorm of the residual branch, before the addition. It is made by a factory
called as ``se(channels, reduction)``: :class:`SEBlock`, :class:`FusedSE`, or ``no_se`` for the plain network.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from senet_fast.se import SEBlock

SEFactory = Callable[[int, int], nn.Module]


def no_se(channels: int, reduction: int) -> nn.Module:
    return nn.Identity()


def conv_bn(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """The BatchNorm keeps its initial weight of 1, also at the end of a branch: 0 would feed zeros to the SE blocks."""
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(out)]


class Residual(nn.Module):
    """y = relu(se(branch(x)) + shortcut(x)); x: [B, channels, H, W], y: [B, out, H / stride, W / stride]."""

    def __init__(self, branch: list[nn.Module], se: nn.Module, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.se = se
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(channels, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.se(self.branch(x)) + self.shortcut(x))


class BasicBlock(Residual):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, se: SEFactory, reduction: int) -> None:
        branch = [*conv_bn(channels, width, 3, stride), nn.ReLU(), *conv_bn(width, width, 3)]
        super().__init__(branch, se(width, reduction), channels, width, stride)


class Bottleneck(Residual):
    """1x1, 3x3 (with the stride), 1x1 to four times the width."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, se: SEFactory, reduction: int) -> None:
        out = width * self.expansion
        branch = [
            *(*conv_bn(channels, width, 1), nn.ReLU()),
            *(*conv_bn(width, width, 3, stride), nn.ReLU()),
            *conv_bn(width, out, 1),
        ]
        super().__init__(branch, se(out, reduction), channels, out, stride)


class ResNet(nn.Module):
    """stem -> one stage per entry of ``depths`` (the width doubles, all but the first halve the map) -> classifier.

    x: [B, C, H, W] -> logits [B, num_classes].
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int,
        stem: nn.Module,
        num_classes: int,
        se: SEFactory,
        reduction: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        stages = []
        channels = width
        for place, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if place > 0 and index == 0 else 1
                blocks.append(block(channels, width << place, stride, se, reduction))
                channels = (width << place) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def se_resnet50(num_classes: int = 1000, se: SEFactory = SEBlock) -> ResNet:
    """x: [B, 3, H, W], usually 224 x 224. SE of 256, 512, 1024 and 2048 channels at 56, 28, 14 and 7 pixels."""
    stem = nn.Sequential(*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    return ResNet(Bottleneck, (3, 4, 6, 3), 64, stem, num_classes, se, reduction=16)


def se_resnet_digits(num_classes: int = 10, se: SEFactory = SEBlock) -> ResNet:
    """x: [B, 1, 8, 8]. Six residual blocks of 16, 32 and 64 channels at 8, 4 and 2 pixels."""
    stem = nn.Sequential(*conv_bn(1, 16, 3), nn.ReLU())
    return ResNet(BasicBlock, (2, 2, 2), 16, stem, num_classes, se, reduction=4)

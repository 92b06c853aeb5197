"""BN-Inception (Ioffe and Szegedy, arXiv 1502.03167, figure 5), with the channels of the public Caffe model.

The SE block stands behind each module's concatenation (arXiv 1709.01507, figure 2).
"""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from senet_fast.models.layers import SE, Chain, Concat, Head, conv_bn_relu, se_block


class Module(NamedTuple):
    """Channels of an Inception module's branches: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pooling and 1x1.

    Without the first and the last the module halves the map, and the pooled x is passed through.
    """

    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    pool: str
    project: int


BN_INCEPTION = (
    Module(64, (64, 64), (64, 96), "average", 32),
    Module(64, (64, 96), (64, 96), "average", 64),
    Module(0, (128, 160), (64, 96), "max", 0),
    Module(224, (64, 96), (96, 128), "average", 128),
    Module(192, (96, 128), (96, 128), "average", 128),
    Module(160, (128, 160), (128, 160), "average", 128),
    Module(96, (128, 192), (160, 192), "average", 128),
    Module(0, (128, 192), (192, 256), "max", 0),
    Module(352, (192, 320), (160, 224), "average", 128),
    Module(352, (192, 320), (192, 224), "max", 128),
)


def inception(channels: int, module: Module) -> tuple[Concat, int]:
    """The module and the channels it has behind the concatenation."""
    one, three, double, pool, project = module
    stride = 1 if project else 2
    pooling = nn.AvgPool2d(3, 1, padding=1) if pool == "average" else nn.MaxPool2d(3, stride, padding=1)
    branches: list[list[nn.Module]] = [
        [*conv_bn_relu(channels, three[0], 1), *conv_bn_relu(*three, 3, stride)],
        [
            *conv_bn_relu(channels, double[0], 1),
            *conv_bn_relu(*double, 3),
            *conv_bn_relu(double[1], double[1], 3, stride),
        ],
        [pooling, *(conv_bn_relu(channels, project, 1) if project else [])],
    ]
    if one:
        branches.insert(0, conv_bn_relu(channels, one, 1))
    out = one + three[1] + double[1] + (project or channels)
    return Concat(*(nn.Sequential(*branch) for branch in branches)), out


class BNInception(nn.Module):
    """x: [B, 3, H, W], usually 224 x 224 -> logits [B, num_classes]."""

    def __init__(
        self, config: tuple[Module, ...], num_classes: int = 1000, *, se: SE = False, reduction: int = 16
    ) -> None:
        super().__init__()
        layers = [*conv_bn_relu(3, 64, 7, 2), nn.MaxPool2d(3, 2, padding=1)]
        layers += [*conv_bn_relu(64, 64, 1), *conv_bn_relu(64, 192, 3), nn.MaxPool2d(3, 2, padding=1)]
        channels = 192
        for module in config:
            concat, channels = inception(channels, module)
            layers += [concat, se_block(se, channels, reduction)]
        self.features = Chain(*layers)
        self.head = Head(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


NETWORKS = {"bn_inception": partial(BNInception, BN_INCEPTION)}

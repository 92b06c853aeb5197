"""MobileNet 1.0-224 (Howard et al., arXiv 1704.04861, table 1).

The SE block stands behind the ReLU of each pointwise convolution (arXiv 1709.01507, section 3.3).
"""

from functools import partial

from torch import Tensor, nn

from senet_fast.models.layers import SE, Chain, Head, NormSE, conv, conv_bn_relu

# channels and stride of each depthwise separable convolution
MOBILENET_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNet(nn.Module):
    """x: [B, 3, H, W], usually 224 x 224 -> logits [B, num_classes]."""

    def __init__(
        self, config: tuple[tuple[int, int], ...], num_classes: int = 1000, *, se: SE = False, reduction: int = 16
    ) -> None:
        super().__init__()
        channels = 32
        layers = conv_bn_relu(3, channels, 3, 2)
        for out, stride in config:
            layers += conv_bn_relu(channels, channels, 3, stride, groups=channels)
            layers += [conv(channels, out, 1), NormSE(out, se, reduction, relu_first=True, relu_last=False)]
            channels = out
        self.features = Chain(*layers)
        self.head = Head(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


NETWORKS = {"mobilenet_v1": partial(MobileNet, MOBILENET_V1)}

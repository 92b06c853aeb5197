"""VGG-16 with BatchNorm (Simonyan and Zisserman, arXiv 1409.1556, configuration D).

The SE block stands behind the ReLU of each convolution (arXiv 1709.01507, section 3.3).
"""

from functools import partial

from torch import Tensor, nn

from senet_fast.models.layers import SE, Chain, NormSE, conv

VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # channels between poolings


class VGG(nn.Module):
    """x: [B, 3, 224, 224] -> logits [B, num_classes]; other sizes are pooled to the classifier's 7 x 7."""

    def __init__(
        self,
        config: tuple[tuple[int, ...], ...],
        num_classes: int = 1000,
        *,
        se: SE = False,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in config:
            for out in stage:
                layers += [conv(channels, out, 3), NormSE(out, se, reduction, relu_first=True, relu_last=False)]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = Chain(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            *(nn.Linear(channels * 49, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


NETWORKS = {"vgg16_bn": partial(VGG, VGG_16)}

"""ResNets, ResNeXts and SENet-154, each a row: plain, with SE in any of five places, or with ECA.

He et al., arXiv 1512.03385; Xie et al., arXiv 1611.05431; Hu et al., arXiv 1709.01507: figure 3, table 1, section 6.5
and the appendix; Wang et al., arXiv 1910.03151.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from senet_fast.models.convolution import Beside, beside, convolved, leads
from senet_fast.models.layers import (
    ECA,
    SE,
    Chain,
    Head,
    NormSE,
    apply_se,
    conv,
    conv_bn,
    conv_bn_relu,
    is_unseen,
    se_block,
)
from senet_fast.se import SEBlock
from senet_fast.se.guards import is_untouched

INTEGRATIONS = ("standard", "pre", "post", "identity", "3x3")


@dataclass(frozen=True)
class ResNetConfig:
    """What tells one network of the family from another."""

    depths: tuple[int, ...]  # blocks of each stage
    bottleneck: bool = True  # 1x1, 3x3, 1x1; or two 3x3
    groups: int = 1
    group_width: int = 64  # channels of a group of the 3x3 in the first stage; they double with each stage
    first: float = 1.0  # channels of the first 1x1, relative to those of the 3x3
    stem: str = "7x7"  # or "3x3x3", or "digits": one 3x3 that keeps the size of images with one channel
    padded_pool: bool = True  # False: the stem's pooling rounds up instead, as Caffe's does
    projection: int = 1  # kernel of the shortcuts that halve the map
    stride_in_first: bool = False  # the stride is in the first 1x1, as He et al. had it, instead of the 3x3
    base: int = 64  # channels of the first stage, before a bottleneck's expansion
    dropout: float = 0.0
    reduction: int = 16


EXPANSION = 4
RESNET_50 = ResNetConfig((3, 4, 6, 3))
RESNET_101 = ResNetConfig((3, 4, 23, 3))
RESNET_152 = ResNetConfig((3, 8, 36, 3))
RESNEXT_50 = replace(RESNET_50, groups=32, group_width=4)
RESNEXT_101 = replace(RESNET_101, groups=32, group_width=4)
SENET_154 = replace(
    RESNET_152,
    groups=64,
    group_width=4,
    first=0.5,
    stem="3x3x3",
    padded_pool=False,
    projection=3,
    dropout=0.2,
)
RESNET_DIGITS = ResNetConfig((2, 2, 2), bottleneck=False, stem="digits", base=16, reduction=4)


class Residual(nn.Module):
    """y = relu(se(branch(x)) + shortcut(x)), or another place of se (``integration``, figure 5 and section 6.5).

    x: [B, channels, H, W], y: [B, out, H / stride, W / stride]. ``branch`` ends with a convolution, whose BatchNorm is
    in ``tail``.

    - "standard": behind the branch, before the addition.
    - "pre": in front of the branch.
    - "post": behind the addition and its ReLU.
    - "identity": on the shortcut, behind its projection where it has one.
    - "3x3": inside the branch, between the 3x3's BatchNorm and its ReLU. That one is up to the branch.
    """

    def __init__(
        self,
        branch: list[nn.Module],
        channels: int,
        out: int,
        stride: int,
        *,
        projection: int,
        se: SE,
        reduction: int,
        integration: str,
    ) -> None:
        super().__init__()
        same = stride == 1 and channels == out
        self.integration = integration
        self.branch = Chain(*branch)
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(channels, out, projection, stride))
        here = se if integration == "standard" else False
        self.tail = NormSE(out, here, reduction, relu_last=integration != "identity")
        if integration == "pre":
            self.se = se_block(se, channels, reduction, inplace=False)
        elif integration == "post":
            self.se = se_block(se, out, reduction)
        elif integration == "identity":
            self.se = se_block(se, out, reduction, "relu")

    def forward(self, x: Tensor) -> Tensor:
        if self.integration == "standard":
            found = self._beside(x, -1, self.tail.norm, self.tail.se, "relu")
            if found is not None and is_untouched(self.tail, NormSE, is_compiling()):
                return self._with_convolution(x, found)
        v = self._behind_se(x) if self.integration == "pre" else self.branch(x)
        own = is_untouched(self.branch, Chain) and is_unseen(self.branch[-1])
        if self.integration == "identity":
            u = self.tail(v)
            # A shortcut without a projection is x, which is not ours to write to.
            projected = is_untouched(self.shortcut, nn.Sequential) and is_untouched(self.shortcut[-1], nn.BatchNorm2d)  # type: ignore[index]
            return apply_se(self.se, self.shortcut(x), u, last=True, inplace=projected)
        y: Tensor = self.tail(v, self.shortcut(x), inplace=own)
        if self.integration == "post":
            y = apply_se(self.se, y, None, last=False, inplace=is_untouched(self.tail, NormSE))
        return y

    def _beside(self, x: Tensor, at: int, norm: nn.Module, se: nn.Module, post_activation: str) -> Beside | None:
        """:func:`beside` of the convolution ``at`` a place of the branch, where nobody sees what that is given."""
        found = beside(x, self.branch[at], norm, se, post_activation)
        return found if found is not None and is_untouched(self.branch, Chain, is_compiling()) else None

    def _with_convolution(self, x: Tensor, found: Beside) -> Tensor:
        """The tail and the branch's last convolution as one op, with the norm in front where it stands there."""
        branch, end = self.branch, len(self.branch) - 1
        front: Any = branch[end - 1] if end > 0 and leads(branch[end - 1], x) else None
        if front is not None:
            end -= 1
        v, residual = branch.part(x, 0, end), self.shortcut(x)
        y = convolved(self, "branch[-1].weight", found, v, residual, post_activation="relu", front=front)
        if y is None:
            y = self.tail(branch.part(v, end, len(branch)), residual, inplace=is_unseen(branch[-1]))
        return y

    def _behind_se(self, x: Tensor) -> Tensor:
        """branch(se(x)), with the branch's first convolution, BatchNorm and ReLU in the op of the SE block."""
        branch = self.branch
        if len(branch) > 2:
            found = self._beside(x, 0, branch[1], self.se, "identity")
            if found is not None and is_untouched(branch[2], nn.ReLU, is_compiling()):
                y = convolved(self, "branch[0].weight", found, x, side="input", post_activation="relu")
                if y is not None:
                    return branch.part(y, 3, len(branch))
        v: Tensor = branch(self.se(x))
        return v


def bottleneck(
    config: ResNetConfig, channels: int, stage: int, stride: int, *, se: SE, reduction: int, integration: str
) -> Residual:
    """1x1, 3x3 in groups, 1x1 to four times ``config.base``."""
    width = config.groups * config.group_width << stage
    first = int(width * config.first)
    out = EXPANSION * config.base << stage
    strides = (stride, 1) if config.stride_in_first else (1, stride)
    inside = se if integration == "3x3" else False
    branch = [
        *conv_bn_relu(channels, first, 1, strides[0]),
        conv(first, width, 3, strides[1], config.groups),
        NormSE(width, inside, reduction, relu_last=True),
        conv(width, out, 1),
    ]
    projection = config.projection if stride > 1 else 1
    options: dict[str, Any] = {"se": se, "reduction": reduction, "integration": integration}
    return Residual(branch, channels, out, stride, projection=projection, **options)


def basic(
    config: ResNetConfig, channels: int, stage: int, stride: int, *, se: SE, reduction: int, integration: str
) -> Residual:
    """Two 3x3 convolutions; "3x3" stands behind the first."""
    out = config.base << stage
    inside = se if integration == "3x3" else False
    first = [conv(channels, out, 3, stride), NormSE(out, inside, reduction, relu_last=True)]
    options: dict[str, Any] = {"se": se, "reduction": reduction, "integration": integration}
    return Residual([*first, conv(out, out, 3)], channels, out, stride, projection=1, **options)


def stem(config: ResNetConfig) -> list[nn.Module]:
    if config.stem == "digits":
        return conv_bn_relu(1, config.base, 3)
    # Rounding up is a row and a column of zeros beside the ReLU's output. nn.MaxPool2d(ceil_mode=True) does it without
    # the copy (9.0 ms instead of 12.3 for an image of SENet-154, on 2 cores that also did something else), but
    # torch.export can not leave its sizes open.
    pool = [nn.MaxPool2d(3, 2, padding=1)] if config.padded_pool else [nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)]
    if config.stem == "7x7":
        return [*conv_bn_relu(3, 64, 7, 2), *pool]
    return [*conv_bn_relu(3, 64, 3, 2), *conv_bn_relu(64, 64, 3), *conv_bn_relu(64, 128, 3), *pool]


class ResNet(nn.Module):
    """stem -> stages (the width doubles, all but the first halve the map) -> classifier.

    x: [B, 3, H, W] ([B, 1, H, W] for the digits) -> logits [B, num_classes].

    Args:
        config: a row of this file.
        num_classes: logits.
        se: whether there are SE blocks, or who makes them; see :mod:`senet_fast.models.layers`.
        reduction: C / R of the SE blocks; the row's (16) by default.
        integration: one of ``INTEGRATIONS``; see :class:`Residual`.
        changes: fields of :class:`ResNetConfig` that are to differ from the row.

    Raises:
        ValueError: an unknown ``integration``. TypeError: an unknown field.
    """

    def __init__(
        self,
        config: ResNetConfig,
        num_classes: int = 1000,
        *,
        se: SE = False,
        reduction: int | None = None,
        integration: str = "standard",
        **changes: Any,
    ) -> None:
        super().__init__()
        if integration not in INTEGRATIONS:
            raise ValueError(f"integration is {integration!r}; expected one of {', '.join(INTEGRATIONS)}")
        self.config = config = replace(config, **changes)
        options: dict[str, Any] = {"se": se, "reduction": reduction or config.reduction, "integration": integration}
        block = bottleneck if config.bottleneck else basic
        self.stem = nn.Sequential(*stem(config))
        channels = {"7x7": 64, "3x3x3": 128, "digits": config.base}[config.stem]
        stages = []
        for stage, depth in enumerate(config.depths):
            blocks = []
            for place in range(depth):
                blocks.append(block(config, channels, stage, 2 if stage > 0 and place == 0 else 1, **options))
                channels = (EXPANSION if config.bottleneck else 1) * config.base << stage
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = Head(channels, num_classes, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


NETWORKS = {
    "resnet50": partial(ResNet, RESNET_50),
    "resnet101": partial(ResNet, RESNET_101),
    "resnet152": partial(ResNet, RESNET_152),
    "resnext50_32x4d": partial(ResNet, RESNEXT_50),
    "resnext101_32x4d": partial(ResNet, RESNEXT_101),
    "senet154": partial(ResNet, SENET_154, se=True),
    "eca_resnet50": partial(ResNet, RESNET_50, se=ECA),
    "resnet_digits": partial(ResNet, RESNET_DIGITS, num_classes=10),
}


def se_resnet50(num_classes: int = 1000, se: SE = SEBlock) -> ResNet:
    """x: [B, 3, H, W], usually 224 x 224. SE of 256, 512, 1024 and 2048 channels at 56, 28, 14 and 7 pixels."""
    return ResNet(RESNET_50, num_classes, se=se)


def se_resnet_digits(num_classes: int = 10, se: SE = SEBlock) -> ResNet:
    """x: [B, 1, 8, 8]. Six residual blocks of 16, 32 and 64 channels at 8, 4 and 2 pixels."""
    return ResNet(RESNET_DIGITS, num_classes, se=se)

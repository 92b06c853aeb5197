"""Modules with a 1x1 convolution beside the gate, as real networks have them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import ECA, C, LinearExpand

OUT, SHAPE = 20, (1, C, 6, 7)


class Effective(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class Checked(nn.BatchNorm2d):
    """timm's way to write a norm: it asserts the number of axes, and calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)


def checked(model: nn.Module) -> nn.Module:
    for parent, name in [(model, name) for name, part in model.named_children() if type(part) is nn.BatchNorm2d]:
        setattr(parent, name, Checked(getattr(parent, name).num_features))
    return model


class Projected(nn.Module):
    """MBConv's end: the gate is in front of the convolution."""

    def __init__(
        self,
        se: Callable[[], nn.Module] = LinearExpand,
        bias: bool = False,
        act: nn.Module | None = None,
        out: int = OUT,
    ) -> None:
        super().__init__()
        self.dw, self.bn1 = nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False), nn.BatchNorm2d(C)
        self.se, self.conv, self.bn2 = se(), nn.Conv2d(C, out, 1, bias=bias), nn.BatchNorm2d(out)
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv(self.se(F.silu(self.bn1(self.dw(x)))))))


class Added(Projected):
    def __init__(self) -> None:
        super().__init__(act=nn.ReLU(inplace=True))
        self.conv, self.bn2 = nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.conv(self.se(self.dw(x)))) + x)


class Functional(nn.Module):
    """RegNet-Y's, written with functions, without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.se = LinearExpand()
        self.weight, self.bias = nn.Parameter(torch.zeros(OUT, C, 1, 1)), nn.Parameter(torch.zeros(OUT))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(self.se(F.relu(x)), self.weight, self.bias))


class Bottleneck(nn.Module):
    """SE-ResNet's end: the gate is behind the convolution and its norm."""

    def __init__(self, se: Callable[[], nn.Module] = LinearExpand, bias: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.conv2, self.conv3 = nn.Conv2d(C, 8, 3, padding=1, bias=False), nn.Conv2d(8, C, 1, bias=bias)
        self.bn2, self.bn3 = (nn.BatchNorm2d(8), nn.BatchNorm2d(C)) if norm else (nn.Identity(), None)
        self.se = se()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.bn2(self.conv2(x))))
        return F.relu(self.se(y if self.bn3 is None else self.bn3(y)) + x)


class TwoReaders(Bottleneck):
    """What the convolution makes is read beside the block."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.bn3(self.conv3(self.conv2(x)))
        return self.se(u) + u


class ActivatedBetween(Bottleneck):
    """A mean does not commute with an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.se(F.relu(self.bn3(self.conv3(self.conv2(x))))) + x


class Wide(Projected):
    """Three pixels at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, OUT, (1, 3), bias=False)


class Strided(Projected):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, OUT, 1, 2, bias=False)


class Grouped(Projected):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, OUT, 1, groups=2, bias=False)


class ReadTwice(Added):
    """The gated tensor is the residual as well."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.dw(x))
        return self.bn2(self.conv(y)) + y


class FrontIsReadTwice(nn.Module):
    """What is in front of the convolution, written in place, is the residual as well."""

    def __init__(self) -> None:
        super().__init__()
        self.dw, self.conv, self.se = nn.Conv2d(C, C, 3, padding=1, groups=C), nn.Conv2d(C, C, 1), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.dw(x), inplace=True)
        return self.se(self.conv(u)) + u


NORM_FRONT, NORM_BEHIND = "batch_norm, silu", "batch_norm, relu, conv, batch_norm"
CASES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "projected": (Projected, NORM_FRONT, "conv, batch_norm"),
    "projected_checked": (lambda: checked(Projected()), NORM_FRONT, "conv, batch_norm"),
    "added_checked": (lambda: checked(Added()), "", "conv, batch_norm, residual, relu"),
    "bottleneck_checked": (lambda: checked(Bottleneck()), NORM_BEHIND, "residual, relu"),
    "projected_bias": (lambda: Projected(bias=True), NORM_FRONT, "conv, batch_norm"),
    "projected_gelu": (lambda: Projected(act=nn.GELU()), NORM_FRONT, "conv, batch_norm, gelu"),
    "projected_eca": (lambda: Projected(ECA), NORM_FRONT, "conv, batch_norm"),
    "projected_effective": (lambda: Projected(Effective), NORM_FRONT, "conv, batch_norm"),
    "added": (Added, "", "conv, batch_norm, residual, relu"),
    "functional": (Functional, "relu", "conv, relu"),
    "bottleneck": (Bottleneck, NORM_BEHIND, "residual, relu"),
    "bottleneck_bias": (lambda: Bottleneck(bias=True), NORM_BEHIND, "residual, relu"),
    "bottleneck_without_norm": (lambda: Bottleneck(norm=False), "relu, conv", "residual, relu"),
    "bottleneck_eca": (lambda: Bottleneck(ECA), NORM_BEHIND, "residual, relu"),
    "bottleneck_effective": (lambda: Bottleneck(Effective), NORM_BEHIND, "residual, relu"),
}

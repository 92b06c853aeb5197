"""Modules with excitations in the middle of their forward, and what fuse() is to find beside them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import C, Helper, LinearExpand, R


class Host(NamedTuple):
    make: Callable[[], nn.Module]
    path: str = ""  # of the report's entry
    prologue: str = ""
    epilogue: str = ""
    gate: str = "sigmoid"
    training: int = 1  # calls of the op in training mode
    shape: tuple[int, ...] = (2, C, 7, 9)


HOSTS: dict[str, Host] = {}


def host(name: str, *options: Any, **found: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(kind: type[nn.Module]) -> type[nn.Module]:
        HOSTS[name] = Host(lambda: kind(*options), **found)
        return kind

    return add


def conv(*options: Any, **named: Any) -> nn.Conv2d:
    return nn.Conv2d(*options, padding=1, bias=False, **named)


@host("mbconv", prologue="batch_norm, silu")
class MBConv(nn.Module):
    """efficientnet-pytorch's: the layers are attributes of the block, which gets a rate from the network."""

    def __init__(self) -> None:
        super().__init__()
        self._depthwise_conv, self._bn1 = conv(C, C, 3, groups=C), nn.BatchNorm2d(C)
        self._se_reduce, self._se_expand = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)
        self._project_conv, self._swish = nn.Conv2d(C, C, 1), nn.SiLU()

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = self._swish(self._bn1(self._depthwise_conv(inputs)))
        squeezed = self._se_expand(self._swish(self._se_reduce(F.adaptive_avg_pool2d(x, 1))))
        x = self._project_conv(torch.sigmoid(squeezed) * x)
        if drop_connect_rate:
            x = F.dropout(x, drop_connect_rate, self.training)
        return x + inputs


HOSTS["mbconv"] = HOSTS["mbconv"]._replace(epilogue="conv, residual")


@host("attributes_of_a_residual_block", prologue="batch_norm", epilogue="residual, relu, in place")
class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(C, C, 3), nn.BatchNorm2d(C)
        self.fc1, self.fc2 = nn.Linear(C, R), nn.Linear(R, C)

    def scale(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        y = y * self.scale(y)
        return F.relu(y + x)


@host("gate_of_a_child", gate="identity", epilogue="conv, residual")
class Child(nn.Module):
    """NAFNet's: the pooling and the layer are a child, the product is written out, nothing bounds the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.conv3 = conv(C, C, 3), nn.Conv2d(C, C, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, C, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(x)
        return self.conv3(y * self.sca(y)) + x


@host("bottleneck", path="se", prologue="batch_norm", epilogue="residual, relu, in place")
class Bottleneck(nn.Module):
    """timm's: an SE block between the last norm and the addition, which is in place."""

    def __init__(self, after: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(C, C, 3), nn.BatchNorm2d(C), nn.ReLU(inplace=True)
        self.conv2, self.bn2, self.se = conv(C, C, 3), nn.BatchNorm2d(C), LinearExpand()
        self.drop_path = nn.Identity()
        self.downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C))
        self.act2 = nn.ReLU(inplace=True) if after is None else after

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.se(self.bn2(self.conv2(x)))
        x = self.drop_path(x)
        shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act2(x)


HOSTS["silu_at_the_end"] = Host(lambda: Bottleneck(nn.SiLU()), "se", "batch_norm", "residual, silu, in place")
HOSTS["elu_at_the_end"] = Host(lambda: Bottleneck(nn.ELU()), "se", "batch_norm", "residual, in place")


class ConvNormAct(nn.Sequential):
    def __init__(self, act: nn.Module) -> None:
        super().__init__(conv(C, C, 3), nn.BatchNorm2d(C), act)


@host("inverted_residual", path="block.1", prologue="batch_norm, hardswish", epilogue="conv")
class Inverted(nn.Module):
    """torchvision's: all in one Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(ConvNormAct(nn.Hardswish(inplace=True)), Helper(), nn.Conv2d(C, C, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


@host("relu_in_front", path="se", prologue="relu", epilogue="in place")
class Activated(nn.Module):
    """The norm is read twice, so only the activation is the op's."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn, self.se, self.act = conv(C, C, 3), nn.BatchNorm2d(C), LinearExpand(), act or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.se(self.act(y * 0.5)) + y


HOSTS["relu_in_front"] = HOSTS["relu_in_front"]._replace(prologue="relu", epilogue="residual, in place")
HOSTS["gelu_in_front"] = Host(lambda: Activated(nn.GELU()), "se", "", "residual, in place")


@host("x_is_read_again", path="se", epilogue="residual")
class ReadAgain(Activated):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.conv(x)))
        return self.se(y) + y


@host("residual_of_another_type", path="se", prologue="batch_norm, relu", epilogue="residual, in place")
class Widened(Activated):
    """Nothing in the graph tells that the residual is a double: seen when it is added."""

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.act(self.bn(self.conv(x)))) + x.double()


@host("stochastic_depth", path="se", epilogue="residual, in place")
class StochasticDepth(Activated):
    """What is between the scale and the addition is nothing at inference only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.conv(x))
        if self.training:
            y = y * (torch.rand_like(y[:, :1, :1, :1]) < 0.5)
        return y + x


@host("norm_of_its_own_class", path="se", prologue="batch_norm, relu", epilogue="times 3.0, in place")
class NormAct(nn.Module):
    """timm's BatchNormAct2d."""

    class Norm(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(C)
            self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            torch._assert(x.ndim == 4, "no image")
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)
            return self.act(self.drop(y))

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.se = conv(C, C, 3), self.Norm(), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.bn(self.conv(x))) * 3.0


@host("speech", path="se", prologue="batch_norm", epilogue="residual, in place", shape=(2, C, 11))
class Speech(nn.Module):
    """ECAPA's: one axis, norm behind the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(C, C, 3, padding=1), nn.BatchNorm1d(C)
        self.se = _SE1d()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.bn(F.relu(self.conv(x)))) + x


class _SE1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(C, R, 1), nn.Conv1d(R, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean(2, keepdim=True)))))


class Left(Activated):
    """The following are not to be touched beyond their SE block; each says why in ``reason``."""

    reason = ""


class IntoTheShortcut(Left):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.conv(x)
        y = self.se(x)
        shortcut += y
        return torch.cat([shortcut, y], 1)


class AutocastInside(Left):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = self.bn(self.conv(x.float()))
        return F.relu(self.se(y) + x)


class NoGradInside(Left):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.bn(self.conv(x))
        return F.relu(self.se(y) + x)


class Remembers(Left):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.bn(self.conv(x))
        return self.se(self.seen)


class DependsOnData(Left):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.se(y) if x.sum() > 0 else y


class ReturnsTheGate(Left):
    """Written out, with its gate in the result."""

    def __init__(self) -> None:
        super().__init__()
        self.se = nn.Identity()
        self.fc1, self.fc2 = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True)))))
        return y * gate, gate


LEFT = [IntoTheShortcut, AutocastInside, NoGradInside, Remembers, DependsOnData, ReturnsTheGate]

"""Modules that resemble an SE block and are none; NEAR has the reasons of those that are worth reporting."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from zoo import C, LinearExpand, R, WithNorm

X = (2, C, 6, 6)


class SelectiveKernel(nn.Module):
    """Softmax over two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=2, dilation=2)
        self.fc1, self.fc2 = nn.Conv2d(C, R, 1), nn.Conv2d(R, 2 * C, 1)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack([self.a(x), self.b(x)], 1)
        gates = self.fc2(F.relu(self.fc1(paths.sum(1).mean((2, 3), keepdim=True))))
        return (paths * gates.view(-1, 2, C, 1, 1).softmax(1)).sum(1)


class SplitAttention(SelectiveKernel):
    """Gates of a sum, applied to the parts."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        gap = y.view(-1, 2, C, *y.shape[2:]).sum(1).mean((2, 3), keepdim=True)
        return (y * torch.sigmoid(self.fc2(F.relu(self.fc1(gap))))).view(-1, 2, C, *y.shape[2:]).sum(1)


class Spatial(nn.Module):
    """CBAM's spatial half."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class SpatialSqueeze(nn.Module):
    """scSE's spatial half."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)

    def gate(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(s))))


class CBAMChannel(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        both = [self.fc2(F.relu(self.fc1(s))) for s in (x.mean((2, 3), True), x.amax((2, 3), True))]
        return x * torch.sigmoid(both[0] + both[1])


class MaxPooled(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.amax((2, 3), keepdim=True))


class Local(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        return x * F.interpolate(self.gate(F.avg_pool2d(x, 3)), size=x.shape[2:])


class SquareOnly(TwoLayers):
    """Right on square maps only."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(F.avg_pool2d(x, x.shape[3]).mean((2, 3), keepdim=True))


class Batchwise(TwoLayers):
    """The squeeze is over the batch too."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((0, 2, 3), keepdim=True))


class OfAnother(TwoLayers):
    """The gate multiplies what it is not of."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) * self.gate(x.mean((2, 3), keepdim=True))


class GlobalContext(TwoLayers):
    """Attention in the place of the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.norm = nn.Conv2d(C, 1, 1), nn.LayerNorm([R, 1, 1])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.attend(x).flatten(2).softmax(-1)
        context = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)
        return x * torch.sigmoid(self.fc2(F.relu(self.norm(self.fc1(context)))))


class LayerNormed(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([R, 1, 1])

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.norm(self.fc1(x.mean((2, 3), keepdim=True))))))


class GateNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x))


class SkipsALayer(TwoLayers):
    """The squeeze reaches the gate past the layers as well."""

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(s))) + s)


class GateInPlace(TwoLayers):
    def forward(self, x: Tensor) -> Tensor:
        x *= self.gate(x.mean((2, 3), keepdim=True))
        return x


class MixedSqueeze(TwoLayers):
    """CBAM's light channel half: the mean and the largest value, halved."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True))


class Deviation(TwoLayers):
    """The squeeze of style-based recalibration: mean and deviation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True) + x.std((2, 3), keepdim=True))


class Norm2(TwoLayers):
    """GCT's squeeze, the Euclidean norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.pow(2).sum((2, 3), keepdim=True).sqrt())


class ScaleAndBias(nn.Module):
    """Two outputs a channel, one added."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, R), nn.Linear(R, 2 * C)

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.fc2(F.relu(self.fc1(x.mean((2, 3))))).chunk(2, 1)
        return x * torch.sigmoid(gamma)[..., None, None] + beta[..., None, None]


class Strips(nn.Module):
    """Coordinate attention: one axis of the map is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_h, self.conv_w = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.sigmoid(self.conv_h(x.mean(3, keepdim=True)))
        return x * rows * torch.sigmoid(self.conv_w(x.mean(2, keepdim=True)))


class CircularConvolution(nn.Module):
    """ECA whose ends touch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x.mean((2, 3))[:, None])).view(x.shape[0], -1, 1, 1)


class GroupedLayers(nn.Module):
    """Radix 1 of split attention: each half of the channels has layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, 6, 1, groups=2), nn.Conv2d(6, C, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Multiplied(TwoLayers):
    """NAFNet's simple gate beside a pooled one: the product of two halves, no squeeze of what is scaled."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * x.roll(1, 1)) * self.gate(x.mean((2, 3), keepdim=True))


def changed(change: Callable[[nn.Module], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        block = LinearExpand()
        change(block)
        return block

    return make


class NormBehindActivation(WithNorm):
    """Only a norm right behind a layer is folded."""

    def __init__(self) -> None:
        super().__init__()
        pool, fc1, norm, act, *rest = self.se
        self.se = nn.Sequential(pool, fc1, act, norm, *rest)


def own_forward(block: nn.Module) -> None:
    block.fc[0].forward = lambda x: 2 * F.linear(x, block.fc[0].weight, block.fc[0].bias)  # type: ignore[index]


LOOKALIKES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        kind.__name__: (kind, X)
        for kind in (
            *(SelectiveKernel, SplitAttention, Spatial, SpatialSqueeze, CBAMChannel, MaxPooled, Local, SquareOnly),
            *(Batchwise, OfAnother, GlobalContext, LayerNormed, GateNet, SkipsALayer, GateInPlace),
            *(MixedSqueeze, Deviation, Norm2, ScaleAndBias, Strips, CircularConvolution, GroupedLayers),
            *(Multiplied, NormBehindActivation),
        )
    },
    "hooked": (changed(lambda block: block.fc[0].register_forward_hook(lambda *_: None)), X),
    "backward_hooked": (changed(lambda block: block.fc[2].register_full_backward_hook(lambda *_: None)), X),
    "parametrized": (changed(lambda block: parametrizations.weight_norm(block.fc[0])), X),
    "weight_normed": (changed(lambda block: weight_norm(block.fc[0])), X),
    "own_forward": (changed(own_forward), X),
}
NEAR = {
    **{name: ["its squeeze is not the mean"] for name in ("MixedSqueeze", "Deviation", "Norm2", "Strips")},
    "ScaleAndBias": ["its last layer has 24 outputs for 12 channels"],
    "SelectiveKernel": ["its squeeze is not the mean"],
    "CBAMChannel": ["it has 4 layers"],
    "MaxPooled": ["its squeeze is not the mean"],
    "Local": ["its squeeze is not the mean"],
    "GlobalContext": ["norm is a LayerNorm"],
    "LayerNormed": ["norm is a LayerNorm"],
    "NormBehindActivation": ["its norm is where none can be folded"],
    "SkipsALayer": ["its gate is none that the op has"],
    "GateInPlace": ["it changes its input in place"],
    "hooked": ["fc.0 has hooks"],
    "backward_hooked": ["fc.2 has hooks"],
    "parametrized": ["fc.0 is parametrized"],
    "own_forward": ["fc.0 has a forward of its own instance"],
}

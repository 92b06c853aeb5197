"""SE blocks as people write them: thirty styles, each with what fuse() is to find out about it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C, R = 12, 5


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, C, 5, 7)
    activation: str = "relu"
    gate: str = "sigmoid"
    hidden: int | None = R
    training: bool = True  # fused in training mode too


ZOO: dict[str, Case] = {}


def case(name: str, *options: Any, **found: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(kind: type[nn.Module]) -> type[nn.Module]:
        ZOO[name] = Case(lambda: kind(*options), **found)
        return kind

    return add


@case("linear_expand_as")
@case("linear_no_bias", False)
class LinearExpand(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            *(nn.Linear(C, R, bias=bias), nn.ReLU(inplace=True), nn.Linear(R, C, bias=bias), nn.Sigmoid())
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


@case("conv_mean")
@case("conv_1d", 1, shape=(2, C, 9))
@case("conv_3d", 3, shape=(2, C, 3, 4, 5))
class ConvMean(nn.Module):
    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.axes = list(range(2, 2 + rank))
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        self.expand, self.reduce = conv(R, C, 1), conv(C, R, 1)  # not in the order of use

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.expand(F.relu(self.reduce(x.mean(self.axes, keepdim=True))))) * x


@case("helper_method", activation="silu")
class Helper(nn.Module):
    """torchvision's shape: the gate is computed by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)
        self.activation, self.scale_activation = nn.SiLU(inplace=True), nn.Sigmoid()

    def _scale(self, x: Tensor) -> Tensor:
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self._scale(x) * x


class HSigmoid(nn.Module):
    def __init__(self, divisor: float = 6.0) -> None:
        super().__init__()
        self.divisor, self.relu = divisor, nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.divisor / 2) / self.divisor


class _MemoryEfficientSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z * torch.sigmoid(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        s = torch.sigmoid(z)
        return grad * (s * (1 + z * (1 - s)))


class MemoryEfficientSwish(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return _MemoryEfficientSwish.apply(z)


class Swish(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)


@case("own_hard_sigmoid", nn.ReLU(), HSigmoid(), gate="hardsigmoid")
@case(
    "own_fifth_sigmoid", nn.ReLU(), lambda z: F.hardtanh(0.2 * z + 0.5, 0, 1), gate="affine_clamp(0.2, 0.5, 0.0, 1.0)"
)
@case("own_swish", Swish(), nn.Sigmoid(), activation="silu")
@case("own_autograd_function", MemoryEfficientSwish(), nn.Sigmoid(), activation="silu")
@case("hardswish", nn.Hardswish(), nn.Hardsigmoid(), activation="hardswish", gate="hardsigmoid")
@case("gelu", nn.GELU(), torch.sigmoid, activation="gelu")
@case("gelu_tanh", nn.GELU(approximate="tanh"), torch.sigmoid, activation="gelu_tanh")
@case("leaky", nn.LeakyReLU(0.1), torch.sigmoid, activation="leaky_relu(0.1)")
@case("mish", nn.Mish(), torch.tanh, activation="mish", gate="tanh")
@case("relu6", F.relu6, lambda z: z.clamp(0, 1), activation="relu6", gate="affine_clamp(1.0, 0.0, 0.0, 1.0)")
@case("no_gate", nn.ReLU(), nn.Identity(), gate="identity")
@case("one_plus_gate", nn.ReLU(), lambda z: 1 + torch.sigmoid(z), gate="1 + sigmoid")
@case("exp_sigmoid", nn.ReLU(), lambda z: 1 / (1 + (-z).exp()))
class AnyActivation(nn.Module):
    def __init__(self, activation: Any, gate: Any) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(C, R), nn.Linear(R, C)
        self.act, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x.mul(self.gate(self.excite(self.act(self.squeeze(pooled))))[:, :, None, None])


@case("avg_pool_of_size")
class PoolOfSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(C, R, 1, bias=False), nn.Conv2d(R, C, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        s = F.avg_pool2d(x, kernel_size=x.shape[2:])
        return x * torch.sigmoid(self.up(torch.relu(self.down(s))))


@case("sum_and_divide")
class SumAndDivide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(R, C)), nn.Parameter(torch.randn(R, C))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        z = x.reshape(b, c, h * w).sum(2) / (h * w)
        return x * torch.sigmoid(F.relu(F.linear(z, self.w1)) @ self.w2).unsqueeze(2).unsqueeze(3)


@case("x_plus_x_times_gate", gate="1 + sigmoid")
class Residual(LinearExpand):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@case("channels_last_btc", shape=(2, 9, C))
class BTC(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, R), nn.Linear(R, C)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=1, keepdim=True)))))


@case("explicit_nhwc", shape=(2, 5, 7, C))
class NHWC(BTC):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((1, 2), keepdim=True)))))


@case("senet_of_recommenders", shape=(4, C, 6), gate="relu")
class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.excitation = nn.Sequential(
            *(nn.Linear(C, R, bias=False), nn.ReLU(), nn.Linear(R, C, bias=False), nn.ReLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excitation(torch.mean(x, dim=-1)).unsqueeze(2)


@case("frequency_wise", shape=(2, 4, C, 7))
class FrequencyWise(LinearExpand):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((1, 3)))[:, None, :, None]


@case("optional_argument", shape=(2, C, 9))
class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(C, R, 1), nn.Conv1d(R, C, 1, padding="same", padding_mode="reflect")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        s = x.mean(2, keepdim=True) if mask is None else (x * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True)
        return x * torch.sigmoid(self.conv2(torch.relu(self.conv1(s))))


@case("asks_for_the_rank")
class AsksForRank(BTC):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (3, 4) or len(x.shape) != x.ndim:
            raise ValueError(f"{x.dim()} axes")
        axes = list(range(2, x.dim()))
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(axes)))))
        return x * scale.view(x.size(0), x.shape[1], *[1] * len(axes))


@case("effective_se", activation="identity", gate="hardsigmoid", hidden=None)
class Effective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(C, C, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv(x.mean((2, 3), keepdim=True)))


@case("eca", activation="identity", hidden=None)
class ECA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, 5, padding=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


@case("norm_before_activation", training=False)
class WithNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        middle: list[nn.Module] = [nn.BatchNorm2d(R), nn.ReLU(inplace=True)]
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, R, 1), *middle, nn.Conv2d(R, C, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se(x)


@case("norm_at_the_gate", activation="identity", hidden=None, training=False)
class NormAtGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x, self.conv(F.adaptive_avg_pool2d(x, (1, 1))))


class Transposed(nn.Module):
    """A (B, N, C) block around AdaptiveAvgPool1d: which axis is the gated one, its own forward does not say."""

    def __init__(self) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Sequential(nn.Linear(C, R, bias=False), nn.ReLU(), nn.Linear(R, C, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        y = self.fc(self.avg_pool(x).squeeze(-1)).unsqueeze(-1)
        return (x * y).transpose(1, 2)


@case("view_and_mean")
class ViewMean(BTC):
    def forward(self, x: Tensor) -> Tensor:
        batch_size, num_channels, _, _ = x.size()
        squeezed = x.view(batch_size, num_channels, -1).mean(dim=2)
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(squeezed))))
        a, b = squeezed.size()
        return torch.mul(x, scale.view(a, b, 1, 1))


@case("flatten_and_unflatten")
class Unflattened(nn.Module):
    """All of the gate in one Sequential."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C), nn.Sigmoid()]
        self.se = nn.Sequential(*layers, nn.Unflatten(1, (C, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.multiply(self.se(x), x)


@case("conv_no_bias")
class ConvNoBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.relu = nn.Conv2d(C, R, kernel_size=1, padding=0, bias=False), nn.ReLU(inplace=True)
        self.fc2, self.sigmoid = nn.Conv2d(R, C, kernel_size=1, padding=0, bias=False), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        module_input = x
        x = self.avg_pool(x)
        x = self.fc1(x)
        x = self.relu(x)
        x = self.fc2(x)
        x = self.sigmoid(x)
        return module_input * x


@case("sigmoid_for_both", activation="sigmoid", shape=(2, 9, C))
class SigmoidTwice(BTC):
    """The context is repeated over time."""

    def forward(self, x: Tensor) -> Tensor:
        context = x.mean(1, keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.sigmoid(self.fc1(context)))).repeat(1, x.size(1), 1)


@case("mean_twice")
class MeanTwice(BTC):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean(-1).mean(-1)).clamp(min=0)).sigmoid()[..., None, None]

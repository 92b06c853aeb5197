"""Excitations as converters, quantizable networks and people write them whose arithmetic is done by modules, and layers
whose bias is added behind them.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from zoo import C, R

X = (3, C, 5, 7)


class Mul(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class CheckedMul(nn.Module):
    """Code that no symbol goes through."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if first.is_floating_point() and second.dim() == 4 and second.shape[0] == first.shape[0]:
            return torch.mul(first, second)
        raise TypeError("floating point only")


class Operation(nn.Module):
    """One class for all of them, as a converter has it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if not first.is_floating_point():
            raise TypeError("floating point only")
        return self.function(first, second)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise ValueError("maps only")
        return x.mean(list(range(2, x.dim())), keepdim=True)


class HardSigmoid(nn.Module):
    def __init__(self, alpha: float = 1 / 6, beta: float = 0.5) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, z: Tensor) -> Tensor:
        return torch.clip(z * self.alpha + self.beta, 0.0, 1.0)


class Reshape(nn.Module):
    """Zeros keep a size, as in ONNX."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.register_buffer("sizes", torch.tensor(sizes))

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(self.sizes.tolist())])


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class AddBias(nn.Module):
    def __init__(self, n: int, *axes: int) -> None:
        super().__init__()
        self.shift, self.axes = nn.Parameter(torch.randn(n)), axes

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.shift.view(1, -1, *self.axes) if self.axes else self.shift)


class Modules(nn.Module):
    """A block whose every step is a module."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        usual = {"pool": Pool(), "fc1": nn.Conv2d(C, R, 1), "relu": nn.ReLU(), "fc2": nn.Conv2d(R, C, 1)}
        for name, part in (usual | {"gate": nn.Sigmoid(), "mul": Mul()} | parts).items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.mul(x, self.gate(self.fc2(self.relu(self.fc1(self.pool(x))))))


class GateFirst(Modules):
    def forward(self, x: Tensor) -> Tensor:
        return self.mul(self.gate(self.fc2(self.relu(self.fc1(self.pool(x))))), x)


class ByKeyword(Modules):
    def forward(self, x: Tensor) -> Tensor:
        return self.mul(first=x, second=self.gate(self.fc2(self.relu(self.fc1(self.pool(x))))))


class Flattened(Modules):
    """Linear layers between two reshapes."""

    def __init__(self) -> None:
        super().__init__(fc1=nn.Linear(C, R), fc2=nn.Linear(R, C), flat=Reshape(0, C), back=Reshape(0, C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mul(x, self.gate(self.back(self.fc2(self.relu(self.fc1(self.flat(self.pool(x))))))))


class Functional(nn.Module):
    """torchvision's quantizable block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc1, self.relu = nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, R, 1), nn.ReLU(inplace=True)
        self.fc2, self.gate = nn.Conv2d(R, C, 1), nn.Hardsigmoid(inplace=True)
        self.skip_mul = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_mul.mul(self.gate(self.fc2(self.relu(self.fc1(self.pool(x))))), x)


class Apart(nn.Module):
    """Layers without bias, and what is added behind them: ``shape`` of the first, ``kind`` of both."""

    def __init__(self, shape: tuple[int, ...] = (R,), kind: str = "parameter", conv: bool = True) -> None:
        super().__init__()
        layer = (lambda a, b: nn.Conv2d(a, b, 1, bias=False)) if conv else (lambda a, b: nn.Linear(a, b, bias=False))
        self.fc1, self.fc2, self.conv = layer(C, R), layer(R, C), conv
        for name, value in (("b1", torch.randn(R).reshape(shape)), ("b2", torch.randn(C))):
            if kind == "parameter":
                self.register_parameter(name, nn.Parameter(value))
            elif kind == "buffer":
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def squeezed(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=self.conv)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.fc1(self.squeezed(x)) + self.b1)
        z = torch.sigmoid(self.b2 + self.fc2(z)) if not self.conv else torch.sigmoid(self.viewed() + self.fc2(z))
        return x * (z if self.conv else z[..., None, None])

    def viewed(self) -> Tensor:
        return self.b2.view(1, -1, 1, 1)


class ByIndex(Apart):
    def viewed(self) -> Tensor:
        return self.b2[None, :, None, None]


class ByUnsqueeze(Apart):
    def viewed(self) -> Tensor:
        return self.b2.unsqueeze(-1).unsqueeze(-1)


class Products(nn.Module):
    """Matrix products and additions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(C, R)), nn.Parameter(torch.randn(R, C))
        self.b1, self.b2 = nn.Parameter(torch.randn(R)), nn.Parameter(torch.randn(1, C))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(x.mean((2, 3)) @ self.w1 + self.b1)
        return x * torch.sigmoid(torch.matmul(z, self.w2) + self.b2).view(-1, C, 1, 1)


class Channels(nn.Module):
    """ECA with a bias behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.b = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x.mean((2, 3))[:, None]) + self.b).view(x.shape[0], -1, 1, 1)


class NormBehind(Apart):
    def __init__(self) -> None:
        super().__init__((1, R, 1, 1))
        self.norm = nn.BatchNorm2d(R)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.norm(self.fc1(self.squeezed(x)) + self.b1))
        return x * torch.sigmoid(self.fc2(z) + self.viewed())


CONV = (1, R, 1, 1)
STYLES: dict[str, Callable[[], nn.Module]] = {
    "modules": Modules,
    "checked": lambda: Modules(mul=CheckedMul()),
    "operation": lambda: Modules(mul=Operation(torch.mul)),
    "own_gate": lambda: Modules(gate=HardSigmoid(), mul=Operation(torch.mul)),
    "gate_first": lambda: GateFirst(mul=Operation(torch.mul)),
    "by_keyword": lambda: ByKeyword(mul=Operation(torch.mul)),
    "flattened": Flattened,
    "functional": Functional,
    "cast": lambda: Modules(pool=nn.Sequential(Pool(), Cast(torch.float32))),
    "bias_module": lambda: Modules(fc1=nn.Sequential(nn.Conv2d(C, R, 1, bias=False), AddBias(R, 1, 1))),
    "bias_modules": lambda: Modules(
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        fc1=nn.Sequential(nn.Linear(C, R, bias=False), AddBias(R)),
        fc2=nn.Sequential(nn.Linear(R, C, bias=False), AddBias(C), nn.Unflatten(1, (C, 1, 1))),
    ),
    "apart": lambda: Apart(CONV),
    "apart_linear": lambda: Apart(conv=False),
    "apart_buffer": lambda: Apart(CONV, "buffer"),
    "apart_linear_buffer": lambda: Apart((1, R), "buffer", conv=False),
    "apart_constant": lambda: Apart((R,), "constant", conv=False),
    "by_index": lambda: ByIndex(CONV),
    "by_unsqueeze": lambda: ByUnsqueeze(CONV),
    "products": Products,
    "channels": Channels,
    "norm_behind": NormBehind,
}


class ModulesOnly(fx.Tracer):
    """Leaves every module without children as a call, whoever wrote it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children())


def graph_of(module: nn.Module) -> fx.GraphModule:
    module = copy.deepcopy(module)
    return fx.GraphModule(module, ModulesOnly().trace(module))


class TwiceBiased(Apart):
    """Its layer has a bias already."""

    def __init__(self) -> None:
        super().__init__(CONV)
        self.fc1 = nn.Conv2d(C, R, 1)


class BehindTheNorm(NormBehind):
    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.norm(self.fc1(self.squeezed(x))) + self.b1)
        return x * torch.sigmoid(self.fc2(z) + self.viewed())


class Scaled(Apart):
    """Twice the bias is no bias."""

    def viewed(self) -> Tensor:
        return 2 * self.b2.view(1, -1, 1, 1)


class Computed(nn.Module):
    """Its weight is a view that is made at each call, which no path leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.w = nn.Conv2d(C, R, 1), torch.randn(C, R)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.conv2d(F.relu(self.fc1(x.mean((2, 3), keepdim=True))), self.w.view(C, R, 1, 1)))


class Doubles(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if not a.is_floating_point():
            raise TypeError("floating point only")
        return 2 * a * b


class InPlace(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if not a.is_floating_point():
            raise TypeError("floating point only")
        return a.mul_(b)


NEAR: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "twice": (TwiceBiased, ["b1 is added where no layer without a bias is in front"]),
    "behind_the_norm": (BehindTheNorm, ["b1 is added where no layer without a bias is in front"]),
    "scaled": (lambda: Scaled(CONV), ["its gate is none that the op has"]),
    "computed": (Computed, ["conv2d computes its weights from a constant"]),
    "doubles": (lambda: Modules(mul=Doubles()), ["mul is a Doubles, which does not only multiply"]),
    "in_place": (lambda: Modules(mul=InPlace()), ["mul is a InPlace, which does not only multiply"]),
}

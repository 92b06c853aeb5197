"""What a match says: which parameters, activation, gate and axis, enough to call the op with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from senet_fast.se import squeeze_excite
from senet_fast.se.ops import fold_norm


def submodule_at(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """Past ``Module.__getattr__``, which takes half a microsecond a name."""
    for name in names:
        module = module._modules[name]  # type: ignore[assignment]
    return module


def tensor_at(module: nn.Module, names: tuple[str, ...]) -> Tensor | None:
    owner: Any = module
    for name in names[:-1]:
        owner = owner._modules[name]
    name = names[-1]
    return owner._parameters[name] if name in owner._parameters else getattr(owner, name)  # type: ignore[no-any-return]


class Path(tuple[str, ...]):
    """Names from a module down to a submodule or tensor: Path.of("fc.0.weight")."""

    @classmethod
    def of(cls, dotted: str) -> "Path":
        return cls(dotted.split(".") if dotted else ())

    def __str__(self) -> str:
        return ".".join(self)

    def submodule(self, module: nn.Module) -> nn.Module:
        return submodule_at(module, self)

    def tensor(self, module: nn.Module) -> Tensor | None:
        return tensor_at(module, self)

    @property
    def parent(self) -> "Path":
        return Path(self[:-1])


Get = Callable[[Path], Tensor]


@dataclass(frozen=True)
class Norm:
    """A BatchNorm that normalises by its running statistics, where ``module`` is not training."""

    module: Path
    mean: Path
    var: Path
    weight: Path | None
    bias: Path | None
    eps: float

    @property
    def tensors(self) -> tuple[Path | None, ...]:
        """In the order in which :func:`fold_norm` takes them."""
        return self.mean, self.var, self.weight, self.bias

    def affine(self, get: Get) -> tuple[Tensor, Tensor]:
        """(scale, shift) [n] of y = x * scale + shift."""
        mean, var, weight, bias = (None if path is None else get(path) for path in self.tensors)
        return fold_norm(mean, var, weight, bias, self.eps)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layer:
    """weight [out, in] or [out, in, 1, ...], or [in, out] if ``transposed``; a convolution over channels: [1, 1, k].

    ``bias_apart``: it is added behind the layer, and may have other axes than [out]. ``norm``: behind it.
    """

    weight: Path
    bias: Path | None
    transposed: bool = False
    bias_apart: bool = False
    norm: Norm | None = None

    def tensors(self, get: Get) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) with the norm folded in."""
        weight = get(self.weight)
        bias = None if self.bias is None else get(self.bias)
        if bias is not None and self.bias_apart:
            bias = bias.flatten()
        if self.transposed:
            weight = weight.t()
        if self.norm is None:
            return weight, bias
        scale, shift = self.norm.affine(get)  # which may be of another type
        return weight.flatten(1) * scale[:, None], shift if bias is None else bias * scale + shift


@dataclass(frozen=True)
class Excitation:
    """An SE computation whose tensors are found by their paths from one module."""

    kind: str  # the op's excitation
    layers: tuple[Layer, ...]
    activation: str
    gate: str
    add_one: bool
    dims: tuple[tuple[int, int], ...]  # (rank of x, its gated axis)
    channels: int | None  # None: any (channel_conv)
    hidden: int | None
    inference_only: bool = False  # differs from the original in training mode
    shape: tuple[int, ...] | None = None  # the only one that was seen, without the batch

    @property
    def norms(self) -> list[Norm]:
        return [layer.norm for layer in self.layers if layer.norm is not None]

    @property
    def sources(self) -> tuple[Path, ...]:
        """All tensors that its weights are made of."""
        layers = [path for layer in self.layers for path in (layer.weight, layer.bias)]
        norms = [path for norm in self.norms for path in norm.tensors]
        return tuple(path for path in (*layers, *norms) if path is not None)

    @property
    def is_plain(self) -> bool:
        """Whether the op takes the layers' own weights."""
        return not self.norms and not any(layer.transposed or layer.bias_apart for layer in self.layers)

    def options(self, dim: int) -> dict[str, Any]:
        """Keyword arguments of the op."""
        given: dict[str, Any] = {"activation": self.activation, "gate": self.gate, "dim": dim}
        if self.kind != "two_fc":
            given["excitation"] = self.kind
        if self.add_one:
            given["add_one"] = True
        return given

    def weights(self, get: Get) -> list[Tensor | None]:
        """[fc1_weight, fc1_bias, fc2_weight, fc2_bias], or the first two."""
        made = [layer.tensors(get) for layer in self.layers]
        folded = [weight for layer, (weight, _) in zip(self.layers, made, strict=True) if layer.norm is not None]
        if folded and len(made) > 1:  # where norms are float32 beside half layers, one type for both
            kind = folded[0].dtype
            made = [(weight.to(kind), None if bias is None else bias.to(kind)) for weight, bias in made]
        return [tensor for layer in made for tensor in layer]

    def __call__(self, x: Tensor, get: Get, **options: Any) -> Tensor:
        dim = dict(self.dims)[x.dim()]
        return squeeze_excite(x, *self.weights(get), **self.options(dim), **options)  # type: ignore[arg-type, misc]

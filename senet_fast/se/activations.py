"""The activations and gates, one row each: name, default arguments, plain-torch function.

The C++ table is csrc/se/activations.h; tests/test_boundaries.py fails while the two differ. A row is named in a spec
such as ``"relu"``, ``"leaky_relu(0.2)"`` or ``"affine_clamp(0.2, 0.5, 0, 1)"``.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REQUIRED = None


class Activation(NamedTuple):
    name: str
    arguments: dict[str, float | None]  # name -> default; None means that the spec must give it
    function: Callable[..., Tensor]


def _affine_clamp(z: Tensor, a: float, b: float, lo: float, hi: float) -> Tensor:
    return torch.clamp(a * z + b, lo, hi)


ACTIVATIONS = {
    row.name: row
    for row in [
        Activation("identity", {}, lambda z: z),
        Activation("relu", {}, F.relu),
        Activation("relu6", {}, F.relu6),
        Activation("leaky_relu", {"slope": 0.01}, F.leaky_relu),
        Activation("sigmoid", {}, torch.sigmoid),
        Activation("hardsigmoid", {}, F.hardsigmoid),
        Activation("tanh", {}, torch.tanh),
        Activation("silu", {}, F.silu),
        Activation("hardswish", {}, F.hardswish),
        Activation("gelu", {}, F.gelu),
        Activation("gelu_tanh", {}, lambda z: F.gelu(z, approximate="tanh")),
        Activation("mish", {}, F.mish),
        Activation("affine_clamp", {"a": REQUIRED, "b": REQUIRED, "lo": REQUIRED, "hi": REQUIRED}, _affine_clamp),
    ]
}

# An activation as people hand it over: a spec, a function, a module, its class, or a partial of one of the latter.
ActivationLike = str | nn.Module | Callable[..., Any]

# What a module stands for, so that FusedSE(activation=nn.SiLU) and FusedSE(gate=nn.Hardsigmoid()) work.
_MODULE_SPECS: dict[type[nn.Module], Callable[[Any], str]] = {
    nn.Identity: lambda m: "identity",
    nn.ReLU: lambda m: "relu",
    nn.ReLU6: lambda m: "relu6",
    nn.LeakyReLU: lambda m: f"leaky_relu({float(m.negative_slope)!r})",
    nn.Sigmoid: lambda m: "sigmoid",
    nn.Hardsigmoid: lambda m: "hardsigmoid",
    nn.Tanh: lambda m: "tanh",
    nn.SiLU: lambda m: "silu",
    nn.Hardswish: lambda m: "hardswish",
    nn.GELU: lambda m: "gelu" if m.approximate == "none" else "gelu_tanh",
    nn.Mish: lambda m: "mish",
}

# The modules of functions, whose other arguments have the same names.
_MODULES: dict[Any, type[nn.Module]] = {
    **{F.relu: nn.ReLU, torch.relu: nn.ReLU, F.relu6: nn.ReLU6, F.leaky_relu: nn.LeakyReLU},
    **{F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, F.hardsigmoid: nn.Hardsigmoid},
    **{F.tanh: nn.Tanh, torch.tanh: nn.Tanh, F.silu: nn.SiLU, F.hardswish: nn.Hardswish},
    **{F.gelu: nn.GELU, F.mish: nn.Mish},
}

_SPEC = re.compile(r"([a-z0-9_]+)(?:\((.*)\))?")
_NUMBER = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)? *")


def parse(spec: str, argument: str = "activation") -> tuple[Activation, list[float]]:
    """Split a spec into its row and its arguments; ``argument`` names the caller's parameter in errors.

    Raises ValueError for an unknown name, a wrong number of arguments or one that is not a number.
    """
    match = _SPEC.fullmatch(spec)
    row = ACTIVATIONS.get(match[1]) if match else None
    if match is None or row is None:
        raise ValueError(f"{argument} is {spec!r}; expected one of {', '.join(ACTIVATIONS)}")
    texts = match[2].split(",") if match[2] is not None else []
    given = [float(text) for text in texts if _NUMBER.fullmatch(text)]
    if len(given) != len(texts) or not all(map(math.isfinite, given)):
        raise ValueError(f"{argument} is {spec!r}; the arguments in parentheses must be numbers")
    defaults = list(row.arguments.values())
    values = [*given, *(value for value in defaults[len(given) :] if value is not REQUIRED)]
    if len(values) != len(defaults):
        wanted = f"{row.name}({', '.join(row.arguments)})" if row.arguments else row.name
        raise ValueError(f"{argument} is {spec!r}; expected {wanted}")
    if row.name == "affine_clamp" and not values[2] <= values[3]:
        raise ValueError(f"{argument} is {spec!r}; expected lo <= hi in affine_clamp(a, b, lo, hi)")
    return row, values


def apply(spec: str, z: Tensor, argument: str = "activation") -> Tensor:
    """The value of ``spec`` at ``z``, any shape, in plain torch."""
    row, arguments = parse(spec, argument)
    return row.function(z, *arguments)


def spec_of(value: ActivationLike, argument: str) -> str:
    """The spec of a string, an activation function or module, its class, or a ``functools.partial`` of one.

    Raises ValueError for an unknown spec, TypeError for anything that no row stands for.
    """
    if isinstance(value, str):
        parse(value, argument)
        return value
    made_by = value.func if isinstance(value, functools.partial) else value
    args, keywords = (value.args, value.keywords) if isinstance(value, functools.partial) else ((), {})
    kind = type(value) if isinstance(value, nn.Module) else _MODULES.get(made_by, made_by)
    describe = _MODULE_SPECS.get(kind) if isinstance(kind, type) else None
    if describe is None or (made_by in _MODULES and args):  # a function's first argument is z
        known = ", ".join(sorted(module.__name__ for module in _MODULE_SPECS))
        raise TypeError(
            f"{argument} is {value!r}; expected a name ({', '.join(ACTIVATIONS)}), one of nn.{known}, or the function "
            "of one"
        )
    spec = describe(value if isinstance(value, nn.Module) else kind(*args, **keywords))
    parse(spec, argument)
    return spec

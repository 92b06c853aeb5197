"""Activations told by their values, however somebody has written them."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from senet_fast.fusion.recognise.probing import UNBOUNDED, Probed, probe
from senet_fast.se.activations import ACTIVATIONS, apply

SIZES = (1, 3, 12, 400)  # elements of a piece: less and more than the values that are tried
SPECS = [
    *(name for name, row in ACTIVATIONS.items() if not row.arguments),
    *("leaky_relu(0.01)", "leaky_relu(0.2)", "leaky_relu(0.99)"),
    *("affine_clamp(0.25, 0.5, 0.0, 1.0)", "affine_clamp(-0.5, 0.1, -1.0, 0.75)", "affine_clamp(3.0, 0.0, -2.0, 2.0)"),
    f"affine_clamp(0.5, -0.25, {-UNBOUNDED}, {UNBOUNDED})",
    f"affine_clamp(2.0, 1.0, 0.0, {UNBOUNDED})",
    f"affine_clamp(2.0, 1.0, {-UNBOUNDED}, 3.0)",
]


def same_function(spec: str, wanted: str) -> bool:
    """Two specs, whose numbers may differ in their last digits, or which may be two names of one clamp."""
    z = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    return torch.allclose(apply(spec, z), apply(wanted, z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("add_one", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_every_activation_is_told(spec: str, add_one: bool, size: int) -> None:
    found = probe(lambda z: apply(spec, z) + add_one, size)
    assert found is not None
    clamps = "affine_clamp" in spec or (add_one and "affine_clamp" in found.spec)
    if clamps and found.add_one != add_one:  # 1 + clamp(z, 0, 1) is clamp(z + 1, 1, 2), which has a name of its own
        z = torch.linspace(-40, 40, 4001, dtype=torch.float64)
        assert torch.allclose(apply(found.spec, z) + found.add_one, apply(spec, z) + add_one, atol=1e-5)
    else:
        assert found.add_one == add_one
        assert found.spec == spec or (clamps and same_function(found.spec, spec))


WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "clamp": (lambda z: z.clamp(min=0), "relu"),
    "maximum": (lambda z: torch.maximum(z, torch.zeros_like(z)), "relu"),
    "half of the sum": (lambda z: (z + z.abs()) / 2, "relu"),
    "in place": (lambda z: z.relu_(), "relu"),
    "relu of relu6": (lambda z: F.relu(z).clamp(max=6), "relu6"),
    "exponential": (lambda z: 1 / (1 + torch.exp(-z)), "sigmoid"),
    "hyperbolic": (lambda z: 0.5 * (1 + torch.tanh(z / 2)), "sigmoid"),
    "in float32": (lambda z: torch.sigmoid(z.float()), "sigmoid"),
    "swish": (lambda z: z * torch.sigmoid(z), "silu"),
    "swish in place": (lambda z: z.mul_(torch.sigmoid(z)), "silu"),
    "relu6 of it": (lambda z: z * F.relu6(z + 3) / 6, "hardswish"),
    "a sixth": (lambda z: F.relu6(z + 3) / 6, "hardsigmoid"),
    "error function": (lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))), "gelu"),
    "cubic": (lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))), "gelu_tanh"),
    "softplus": (lambda z: z * torch.tanh(F.softplus(z)), "mish"),
    "prelu": (lambda z: F.prelu(z, torch.tensor(0.3, dtype=z.dtype)), "leaky_relu(0.3)"),
    "where": (lambda z: torch.where(z > 0, z, 0.1 * z), "leaky_relu(0.1)"),
    "keras": (lambda z: (0.2 * z + 0.5).clamp(0, 1), "affine_clamp(0.2, 0.5, 0.0, 1.0)"),
    "nothing": (lambda z: z, "identity"),
    "dropout that is off": (lambda z: F.dropout(z, 0.5, training=False), "identity"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_however_it_is_written(name: str) -> None:
    piece, spec = WRITTEN[name]
    assert probe(piece, 12) == Probed(spec, False)


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "twice sigmoid": lambda z: 2 * torch.sigmoid(z),
    "minus one": lambda z: torch.sigmoid(z) - 1,
    "square": lambda z: z * z,
    "constant": lambda z: torch.full_like(z, 0.5),
    "steep below zero": lambda z: F.leaky_relu(z, 1.5),
    "slope the other way": lambda z: F.leaky_relu(z, -0.2),
    "nearly relu": lambda z: F.relu(z) + 1e-4 * z.tanh(),
    "nearly sigmoid": lambda z: torch.sigmoid(1.0001 * z),
    "bent far out": lambda z: torch.where(z.abs() > 50, 2 * z, z),
    "softmax": lambda z: z.softmax(0),
    "mean taken off": lambda z: torch.sigmoid(z - z.mean()),
    "of a neighbour": lambda z: torch.relu(z).roll(1),
    "slopes of their own": lambda z: torch.where(z > 0, z, z * torch.linspace(0.1, 0.2, len(z), dtype=z.dtype)),
    "one element apart": lambda z: torch.cat([torch.relu(z[:1]) * 1.1, torch.relu(z[1:])]),
    "dropout": lambda z: F.dropout(z, 0.5),
    "noise": lambda z: z + 0.1 * torch.randn_like(z),
    "logarithm": torch.log,
    "infinite": lambda z: torch.exp(z * 100),
    "in bfloat16": lambda z: torch.sigmoid(z.bfloat16()),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_op_does_not_have(name: str) -> None:
    assert probe(UNKNOWN[name], 12) is None


def test_what_a_piece_is_given() -> None:
    """float64, of the size asked for; each element with several values and each value in several places."""
    seen: list[Tensor] = []

    def piece(z: Tensor) -> Tensor:
        seen.append(z.clone())
        return z.relu_()

    assert probe(piece, 5) == Probed("relu", False)
    assert {(tuple(z.shape), z.dtype) for z in seen} == {((5,), torch.float64)}
    values = torch.stack(seen)
    assert all(len(column.unique()) >= 3 for column in values.T)
    places = [(values == value).any(0).sum() for value in values.unique()]
    assert sum(bool(n > 1) for n in places) > len(places) / 2
    state = torch.get_rng_state()
    probe(torch.relu, 5)
    assert torch.equal(torch.get_rng_state(), state)


@given(st.floats(0.05, 3), st.booleans(), st.floats(-3, 3), st.floats(-7.5, 6), st.floats(0.3, 7))
def test_any_affine_clamp(a: float, falls: bool, b: float, begin: float, width: float) -> None:
    """Where it bends within the values that are tried, and has two of them between its plateaus."""
    a, b = (-a if falls else a), round(b, 6)
    lo, hi = sorted(round(a * z + b, 6) for z in (begin, min(begin + width, 7.5)))
    found = probe(lambda z: (a * z + b).clamp(lo, hi), 12)
    assert found is not None
    z = torch.linspace(-100, 100, 20001, dtype=torch.float64)
    assert torch.allclose(apply(found.spec, z) + found.add_one, (a * z + b).clamp(lo, hi), rtol=1e-5, atol=1e-5)


@given(st.floats(0.001, 0.999))
def test_any_slope(slope: float) -> None:
    found = probe(lambda z: F.leaky_relu(z, slope), 12)
    assert found is not None
    assert same_function(found.spec, f"leaky_relu({slope!r})")

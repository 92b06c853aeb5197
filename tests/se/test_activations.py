"""Every activation and gate row in every place it can stand, value and slope, over its whole range."""

from collections.abc import Callable

import pytest
import torch
from se_testing import BY_NAME, assert_as_exact_as_eager, exact, make_arguments
from torch import Tensor, nn

from senet_fast.se import reference, squeeze_excite
from senet_fast.se.activations import _MODULE_SPECS, ACTIVATIONS, apply, parse, spec_of

ARGUMENTS = {"affine_clamp": "(0.3, 0.4, -0.5, 1.25)"}  # of the rows that have no defaults
SPECS = [name + ARGUMENTS.get(name, "") for name in ACTIVATIONS] + ["leaky_relu(0.2)"]
PLACES = ["activation", "gate", "post_activation"]

# every kink of every row and what is next to it, and what lies beyond the range of exp
_KINKS = torch.tensor([-3.0, -0.0, 0.0, 3.0, 6.0, 20.0])
_FAR = torch.tensor([1e-40, 1e-30, 88.0, 90.0, 104.0, 120.0, 1e5])
_SWEEP = torch.cat(
    [
        torch.linspace(-12, 12, 1501),
        _KINKS,
        torch.nextafter(_KINKS, torch.tensor(float("inf"))),
        torch.nextafter(_KINKS, torch.tensor(float("-inf"))),
        _FAR,
        -_FAR,
        torch.tensor([float("nan"), float("inf"), float("-inf")]),
    ]
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("place", PLACES)
def test_in_every_place(dtype: torch.dtype, spec: str, place: str) -> None:
    assert_as_exact_as_eager(make_arguments(BY_NAME["nct"], dtype, residual=True, **{place: spec}))


def _reduced(function: Callable[..., Tensor], spec: str, place: str, z: Tensor) -> Tensor:
    """The op reduced to one activation at z [K]: z is a bias or the residual, and everything beside it 0 or 1."""
    K = len(z)
    ones, zeros = torch.ones(1, K, dtype=z.dtype), torch.zeros(K, K, dtype=z.dtype)
    if place == "post_activation":
        y = function(zeros[:1], zeros, residual=z[None], excitation="one_fc", gate="identity", post_activation=spec)
    elif place == "gate":
        y = function(ones, zeros, z, excitation="one_fc", gate=spec)
    else:
        y = function(ones, zeros, z, torch.eye(K, dtype=z.dtype), gate="identity", activation=spec)
    return y[0]


def _alone(function: Callable[..., Tensor], spec: str, place: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of an activation at each z."""
    z = z.clone().requires_grad_()
    value = _reduced(function, spec, place, z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_values_and_slopes(spec: str, place: str, kind: torch.dtype, isa: str) -> None:
    """A few ulp from torch in float64, torch's choice of slope at each kink, NaN and Inf where torch has them."""
    z = _SWEEP.to(kind)
    if place == "activation":  # in its matrix product a NaN would reach every element
        z = z[z.abs() <= 120][::5]
    ours = _alone(squeeze_excite, spec, place, z)
    same = exact({"spec": spec})["spec"]
    expected = _alone(reference.squeeze_excite, same, place, z.double())
    eager = _alone(reference.squeeze_excite, spec, place, z)
    _, limits = _alone(reference.squeeze_excite, same, place, z.double().clamp(-1e5, 1e5))
    tolerance = 32 * torch.finfo(kind).eps
    for name, value, right, theirs in zip(("value", "slope"), ours, expected, eager, strict=True):
        good = torch.isclose(value.double(), right, rtol=tolerance, atol=tolerance, equal_nan=True)
        # at kinks, NaN and Inf, and where float32 overflows, torch in this type has the word (the slopes it gives at
        # a NaN differ between its own scalar and vector loops: there only finite or not is compared)
        good |= torch.isclose(value, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
        if name == "slope":
            good |= z.isnan() & value.isfinite() & theirs.isfinite()
            good |= z.isinf() & torch.isclose(value.double(), limits)  # where torch multiplies infinity by 0
        assert good.all(), f"{name} at {z[~good][:8]} is {value[~good][:8]}; expected {right[~good][:8]}"


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("place", PLACES)
def test_composite_has_the_same_slopes(spec: str, place: str) -> None:
    """torch.func takes the composite: its derivative equals the kernel's also where an activation has a kink."""
    z = torch.cat([_KINKS, torch.linspace(-5, 7, 49)]).double()
    _, slope = _alone(squeeze_excite, spec, place, z)
    composite = torch.func.grad(lambda z: _reduced(squeeze_excite, spec, place, z).sum())(z)
    torch.testing.assert_close(composite, slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("spec", ["leaky_relu( 0.2 )", "affine_clamp(1,2,3,4)", "affine_clamp( 1e-1, -.5 ,0 , 1.)"])
def test_spelling_of_arguments(spec: str) -> None:
    """Both languages read the same numbers from a spec."""
    z = torch.linspace(-9, 9, 37, dtype=torch.float64)
    value, _ = _alone(squeeze_excite, spec, "gate", z)
    torch.testing.assert_close(value, apply(spec, z))


@pytest.mark.parametrize("kind", _MODULE_SPECS, ids=lambda kind: kind.__name__)
def test_modules_have_a_spec(kind: type[nn.Module]) -> None:
    z = torch.linspace(-9, 9, 37)
    assert torch.equal(apply(spec_of(kind, "gate"), z), kind()(z))
    assert torch.equal(apply(spec_of(kind(), "gate"), z), kind()(z))


def test_module_arguments_are_kept() -> None:
    assert parse(spec_of(nn.LeakyReLU(1e-5), "activation"))[1] == [1e-5]
    assert spec_of(nn.GELU(approximate="tanh"), "activation") == "gelu_tanh"

"""fuse() leaves what is quantized or complex as it is, and says why; x of another type gets what it got."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import counts_calls, randomize
from hosts import Attributes, Bottleneck
from torch import Tensor, fx, nn
from zoo import C, ConvMean, LinearExpand, R

from senet_fast import fuse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.ao import quantization

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, C, 5, 7)


def left(model: nn.Module, x: Tensor, path: str, reason: str, **options: object) -> None:
    """Reported at ``path``, unchanged, an error with strict=True."""
    kinds = [type(part) for part in model.modules()]
    before = model(x)
    report = fuse(model, **options)  # type: ignore[arg-type]
    assert not report.fused
    assert [(entry.path, entry.reason) for entry in report.skipped] == [(path, reason)]
    assert [type(part) for part in model.modules()] == kinds
    assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match=reason):
        fuse(model, strict=True)


def dynamic(model: nn.Module, dtype: torch.dtype = torch.qint8) -> nn.Module:
    return quantization.quantize_dynamic(randomize(model).eval(), {nn.Linear}, dtype=dtype)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
def test_linear_layers_quantized_dynamically(dtype: torch.dtype, x: Tensor) -> None:
    left(dynamic(LinearExpand(), dtype), x, "", "fc.0 is quantized")
    left(dynamic(LinearExpand(), dtype), x, "", "fc.0 is quantized", example_inputs=x)
    left(dynamic(nn.Sequential(nn.Conv2d(C, C, 1), LinearExpand()), dtype), x, "1", "fc.0 is quantized")
    left(dynamic(Bottleneck(), dtype), x, "se", "fc.0 is quantized")
    left(dynamic(Attributes(), dtype), x, "", "fc1 is quantized")
    left(fx.symbolic_trace(dynamic(LinearExpand(), dtype)), x, "", "fc.0 is quantized")


def test_one_of_two_layers(x: Tensor) -> None:
    model = randomize(LinearExpand()).eval()
    model.fc[2] = dynamic(nn.Sequential(nn.Linear(R, C)))[0]  # type: ignore[index]
    left(model, x, "", "fc.2 is quantized")


class Static(ConvMean):
    """As torchvision's: x itself is quantized, and the product a module's."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = quantization.QuantStub(), quantization.DeQuantStub()
        self.skip_mul = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        scale = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.leave(self.skip_mul.mul(x, scale))  # type: ignore[no-any-return]


def test_everything_quantized(x: Tensor) -> None:
    engines = torch.backends.quantized.supported_engines
    engine = next((engine for engine in ("x86", "fbgemm", "qnnpack") if engine in engines), None)
    if engine is None:
        pytest.skip("torch has no engine for quantized models")
    model = randomize(Static()).eval()
    model.qconfig = quantization.get_default_qconfig(engine)
    prepared = quantization.prepare(model)
    prepared(x)
    assert not fuse(prepared).fused
    left(quantization.convert(prepared), x, "", "expand is quantized")


class NotAGate(nn.Module):
    """Nothing is squeezed, so there is nothing to report."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x))


def test_other_quantized_products_are_not_mentioned() -> None:
    report = fuse(dynamic(NotAGate()))
    assert (report.fused, report.skipped) == ([], [])


class OfASubclass(Tensor):
    """As torchao's weights."""


def test_weights_of_a_tensor_subclass(x: Tensor) -> None:
    model = randomize(LinearExpand())
    model.fc[0].weight = nn.Parameter(model.fc[0].weight.data.as_subclass(OfASubclass))  # type: ignore[union-attr]
    report = fuse(model)
    assert not report.fused
    assert [entry.reason for entry in report.skipped] == ["fc.0.weight is a OfASubclass"]


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, R, dtype=torch.complex64), nn.Linear(R, C, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.tanh(self.fc1(x.mean((2, 3))))))[..., None, None]


class Enclosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.se = nn.Conv2d(C, C, 1, dtype=torch.complex64), Complex()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.conv(x)) + x  # type: ignore[no-any-return]


def test_complex_weights(x: Tensor) -> None:
    given = torch.complex(x, x.flip(0))
    left(Complex(), given, "", "fc1.weight is torch.complex64")
    left(Complex(), given, "", "fc1.weight is torch.complex64", example_inputs=given)
    left(Enclosing(), given, "se", "fc1.weight is torch.complex64")
    left(fx.symbolic_trace(Complex()), given, "", "fc1.weight is torch.complex64")
    left(torch.export.export(Complex(), (given,)).module(), given, "", "fc1.weight is torch.complex64")


class Parts(nn.Module):
    """Real and imaginary part by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.se = LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(self.se(x.real), self.se(x.imag))


class Magnitude(LinearExpand):
    """The gate is of the magnitudes: another squeeze, and the same where x is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.abs().mean((2, 3)))[..., None, None]


def test_complex_inputs(x: Tensor) -> None:
    given = torch.complex(x, x.flip(0))
    left(randomize(Magnitude()), given, "", "its squeeze is not the mean")
    plain = randomize(Parts())
    fused = copy.deepcopy(plain)
    assert [entry.path for entry in fuse(fused).fused] == ["se"]
    assert counts_calls(lambda: fused(given)) == 2
    torch.testing.assert_close(fused(given), plain(given))


@pytest.mark.parametrize("make", [LinearExpand, Bottleneck])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64], ids=str)
def test_an_x_that_the_block_never_took(make: Callable[[], nn.Module], dtype: torch.dtype, x: Tensor) -> None:
    """The error is the block's own."""
    plain = randomize(make()).eval()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    messages = []
    for model in (plain, fused):
        with torch.no_grad(), pytest.raises(RuntimeError) as caught:
            model(x.to(dtype))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_quantized_products_with_a_number() -> None:
    """As convert_fx makes them of x * 2: no excitation, and no reason to fail."""

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.quantized.mul(x, 2.0)

    report = fuse(fx.symbolic_trace(Doubled()))
    assert (report.fused, report.skipped) == ([], [])


class HalfBesideNorm(nn.Module):
    """Layers of half numbers with a norm of float32 behind the first, as for training in mixed precision by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(C, R, 1, bias=False), nn.Conv2d(R, C, 1)
        self.norm = nn.BatchNorm2d(R)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.norm(self.fc1(x.mean((2, 3), keepdim=True))))))


@pytest.mark.parametrize("exported", [False, True])
def test_half_layers_with_a_norm_of_float32(exported: bool, x: Tensor) -> None:
    model = randomize(HalfBesideNorm()).eval()
    model.fc1.bfloat16()
    model.fc2.bfloat16()
    x = x.bfloat16()
    with torch.no_grad():
        expected = model(x)
        given = torch.export.export(model, (x,)).module() if exported else model
        assert len(fuse(given).fused) == 1
        y = given(x)
    assert counts_calls(lambda: given(x)) >= 1
    assert y.dtype is torch.bfloat16
    assert float((y - expected).abs().max() / expected.abs().max()) < 2e-2

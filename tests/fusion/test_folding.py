"""BatchNorm folded into the layers beside it: the weights that the op gets, for every kind of norm and layer."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from fusion_testing import counts_calls, randomize
from torch import Tensor, nn

from senet_fast import fuse
from senet_fast.fusion.recognise.excitation import Excitation, Layer, Norm, Path

IN, OUT = 7, 4
EPS = (1e-5, 1e-3, 0.5)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}


def norm_at(path: str, module: nn.BatchNorm1d, *, weight: bool = True, bias: bool = True) -> Norm:
    at = Path.of(path)
    names = [Path((*at, name)) for name in ("running_mean", "running_var", "weight", "bias")]
    affine = (names[2] if module.affine and weight else None, names[3] if module.affine and bias else None)
    return Norm(at, names[0], names[1], *affine, module.eps)


def getter(module: nn.Module) -> Callable[[Path], Tensor]:
    return lambda path: path.tensor(module)  # type: ignore[return-value]


class Parts(nn.Module):
    """A layer with a norm behind it, or without."""

    def __init__(self, norm: bool, affine: bool, bias: bool, eps: float) -> None:
        super().__init__()
        self.fc = nn.Linear(IN, OUT, bias=bias)
        self.norm = nn.BatchNorm1d(OUT, eps, affine=affine) if norm else nn.Identity()
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d):
                nn.init.uniform_(part.running_mean, -1, 1)  # type: ignore[arg-type]
                nn.init.uniform_(part.running_var, 0.1, 2)  # type: ignore[arg-type]
                for parameter in part.parameters():
                    nn.init.uniform_(parameter, -1.5, 1.5)
        self.eval()

    def layer(self) -> Layer:
        return Layer(
            Path.of("fc.weight"),
            Path.of("fc.bias") if self.fc.bias is not None else None,
            norm=norm_at("norm", self.norm) if isinstance(self.norm, nn.BatchNorm1d) else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_layer_with_its_norm(norm: bool, affine: bool, bias: bool, eps: float, dtype: torch.dtype) -> None:
    module = Parts(norm, affine, bias, eps).to(dtype)
    x = torch.randn(9, IN, dtype=dtype)
    weight, shift = module.layer().tensors(getter(module))
    assert weight.dtype == dtype
    assert shift is None or shift.dtype == dtype
    assert (shift is None) == (not norm and not bias)
    exact = copy.deepcopy(module).double()
    exact.fc.to(dtype).double()
    expected = exact(x.double())
    actual = x.double() @ weight.double().t() + (0 if shift is None else shift.double())
    assert float((actual - expected).detach().abs().max()) <= TOLERANCES[dtype] * float(expected.detach().abs().max())


@pytest.mark.parametrize("shape", [(OUT, IN, 1), (OUT, IN, 1, 1), (OUT, IN, 1, 1, 1)], ids=str)
def test_weights_of_convolutions(shape: tuple[int, ...]) -> None:
    """As they are without a norm; [out, in] behind folding."""
    module = Parts(True, True, True, 1e-5)
    expected = module.layer().tensors(getter(module))
    module.fc.weight = nn.Parameter(module.fc.weight.detach().reshape(shape))
    for own, other in zip(module.layer().tensors(getter(module)), expected, strict=True):
        torch.testing.assert_close(own, other)
    plain = Layer(Path.of("fc.weight"), None)
    assert plain.tensors(getter(module))[0] is module.fc.weight


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [None, (OUT,), (1, OUT), (OUT, 1, 1), (1, OUT, 1, 1)], ids=str)
def test_transposed_weights_and_biases_apart(bias: tuple[int, ...] | None, norm: bool) -> None:
    """[in, out] as of x @ w, and a bias of the axes that somebody adds it with."""
    module = Parts(norm, True, bias is not None, 1e-3).double()
    x = torch.randn(9, IN, dtype=torch.float64)
    expected = module(x)
    kept = module.layer()
    module.fc.weight = nn.Parameter(module.fc.weight.detach().t().contiguous())
    if bias is not None:
        module.fc.bias = nn.Parameter(module.fc.bias.detach().reshape(bias))
    layer = Layer(kept.weight, kept.bias, True, bias is not None, kept.norm)
    weight, shift = layer.tensors(getter(module))
    torch.testing.assert_close(x @ weight.t() + (0 if shift is None else shift), expected)


@pytest.mark.parametrize(("weight", "bias"), itertools.product([False, True], repeat=2))
def test_a_norm_with_a_weight_or_a_bias_alone(weight: bool, bias: bool) -> None:
    """As functions may have it."""
    module = Parts(True, True, True, 0.1).double()
    norm = module.norm
    scale, shift = norm_at("norm", norm, weight=weight, bias=bias).affine(getter(module))  # type: ignore[arg-type]
    x = torch.randn(5, OUT, dtype=torch.float64)
    given = (norm.running_mean, norm.running_var, norm.weight if weight else None, norm.bias if bias else None)
    expected = nn.functional.batch_norm(x, *given, eps=0.1)  # type: ignore[arg-type]
    torch.testing.assert_close(x * scale + shift, expected)


def test_gradients_go_through() -> None:
    module = Parts(True, True, True, 1e-2).double()
    x = torch.randn(9, IN, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(9, OUT, dtype=torch.float64)
    inputs = [x, *module.parameters()]
    expected = torch.autograd.grad((module(x) * weights).sum(), inputs)
    weight, shift = module.layer().tensors(getter(module))
    assert shift is not None
    actual = torch.autograd.grad(((x @ weight.t() + shift) * weights).sum(), inputs)
    for own, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, other)


def test_layers_of_half_numbers_beside_norms_of_float32() -> None:
    """One type for all weights, the norm's: the op takes no two."""
    module = Parts(True, True, True, 1e-5)
    module.fc.bfloat16()
    other = nn.Linear(OUT, IN).bfloat16()
    module.other = other
    layers = (module.layer(), Layer(Path.of("other.weight"), Path.of("other.bias")))
    excitation = Excitation("two_fc", layers, "relu", "sigmoid", False, ((2, 1),), IN, OUT)
    weights = excitation.weights(getter(module))
    assert {tensor.dtype for tensor in weights if tensor is not None} == {torch.float32}
    x = torch.randn(3, IN)
    expected = module.norm(x @ module.fc.weight.float().t() + module.fc.bias.float())
    torch.testing.assert_close(x @ weights[0].t() + weights[1], expected)  # type: ignore[union-attr, operator]
    assert not excitation.is_plain
    assert len(excitation.norms) == 1


class Block(nn.Module):
    """A block with norms behind the layers named."""

    def __init__(self, where: tuple[str, ...], affine: bool, eps: float, bias: bool) -> None:
        super().__init__()
        rows: list[nn.Module] = [nn.Conv2d(IN, OUT, 1, bias=bias)]
        rows += [nn.BatchNorm2d(OUT, eps, affine=affine)] if "fc1" in where else []
        rows.append(nn.ReLU())
        rows.append(nn.Conv2d(OUT, IN, 1, bias=bias))
        rows += [nn.BatchNorm2d(IN, eps, affine=affine)] if "fc2" in where else []
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), *rows, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se(x)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("where", [("fc1",), ("fc2",), ("fc1", "fc2")], ids=", ".join)
def test_norms_of_a_whole_block(where: tuple[str, ...], affine: bool) -> None:
    """Statistics and weights that change later are folded as they are at each call."""
    plain = Block(where, affine, 0.01, bias="fc1" not in where).eval()
    if affine:
        randomize(plain)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert (len(report.fused), report.skipped) == (1, [])
    x = torch.randn(3, IN, 5, 4)
    for _ in range(2):
        assert counts_calls(lambda: fused(x)) == 1
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
        for norm, other in zip(plain.modules(), fused.modules(), strict=True):
            if isinstance(norm, nn.BatchNorm2d):
                for name, buffer in norm.named_buffers():
                    if buffer.is_floating_point():
                        changed = torch.rand_like(buffer) + 0.5
                        buffer.copy_(changed)
                        other.get_buffer(name).copy_(changed)

"""BatchNorm, SE, residual and ReLU in training against the modules one after the other."""

import copy
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from senet_fast.models import layers
from senet_fast.models.layers import NormSE
from senet_fast.se import _C, FusedSE
from senet_fast.se.norm import norm_se_relu, supported
from senet_fast.se.ops import fold_norm

SHAPES = [(3, 5, 7, 3), (1, 4, 2, 2), (2, 33, 1, 1), (4, 64, 9, 5)]


def parts(channels: int, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.BatchNorm2d, FusedSE]:
    momentum = options.pop("momentum", 0.1)
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    se = FusedSE(channels, hidden_channels=3, post_activation="relu", **options)
    return norm.to(dtype), se.to(dtype)


def one_by_one(x: Tensor, norm: nn.Module, se: FusedSE, residual: Tensor) -> Tensor:
    return se(norm(x), residual)


def run(function: Any, x: Tensor, norm: nn.BatchNorm2d, se: FusedSE, residual: Tensor, grad: Tensor) -> list[Tensor]:
    """y, all gradients, and what the norm keeps."""
    norm, se = copy.deepcopy(norm), copy.deepcopy(se)
    x, residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
    y = function(x, norm, se, residual)
    inputs = [x, residual, *norm.parameters(), *se.parameters()]
    return [y.detach(), *torch.autograd.grad(y, inputs, grad), *norm.buffers()]


def tensors(shape: tuple[int, ...], layout: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x with means far from 0, so that variances from plain squares would show."""
    x, residual, grad = torch.randn(3, *shape, dtype=dtype)
    x = x + 30 * torch.randn(shape[1], dtype=dtype)[:, None, None]
    if layout == "nhwc":
        return tuple(t.contiguous(memory_format=torch.channels_last) for t in (x, residual, grad))  # type: ignore[return-value]
    return x, residual, grad


@pytest.mark.parametrize("options", [{}, {"bias": False, "activation": "silu", "momentum": None}, {"gate": "tanh"}])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_composition(shape: tuple[int, ...], layout: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    norm, se = parts(shape[1], **options)
    x, residual, grad = tensors(shape, layout)
    assert supported(x, norm, se, residual)
    expected = run(one_by_one, x, norm, se, residual, grad)
    actual = run(norm_se_relu, x, norm, se, residual, grad)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert actual[0].stride() == x.stride()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_float32_is_as_exact_as_eager(layout: str) -> None:
    torch.manual_seed(0)
    norm, se = parts(64)
    arguments = tensors((4, 64, 28, 28), layout)
    arguments = (arguments[0], 20 * arguments[1].sign(), arguments[2])  # rounding puts nothing on the other side of 0
    exact = run(one_by_one, arguments[0], norm, se, *arguments[1:])
    single = [t.float() for t in arguments]
    norm, se = norm.float(), se.float()
    eager = run(one_by_one, single[0], norm, se, *single[1:])
    ours = run(norm_se_relu, single[0], norm, se, *single[1:])
    for a, b, c in zip(ours, eager, exact, strict=True):
        if a.is_floating_point():
            size = c.abs().max()
            assert (a - c).abs().max() <= 4 * (b - c).abs().max() + 1e-6 * size


def test_other_layouts_of_residual_and_gradient() -> None:
    torch.manual_seed(0)
    norm, se = parts(6)
    x, residual, _ = tensors((2, 6, 4, 5), "nchw")
    expected = run(one_by_one, x, norm, se, residual, torch.ones_like(x))
    residual = residual.contiguous(memory_format=torch.channels_last)
    actual = run(norm_se_relu, x, norm, se, residual, torch.ones(1, dtype=x.dtype).expand(x.shape))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def passes(layout: str, dtype: torch.dtype) -> list[Tensor]:
    """What the four ops make of the same tensors."""
    torch.manual_seed(0)
    x, residual, grad = tensors((5, 35, 11, 7), layout, dtype)
    ops = torch.ops.senet_fast
    moments = ops.norm_moments(x)
    numbers = torch.randn(3, *moments[0].shape, dtype=dtype)
    y = ops.norm_apply(x, moments[0], numbers[0], numbers[1], residual)
    return [*moments, y, *ops.norm_sums(grad, y, x, moments[0]), *ops.norm_gradients(grad, y, x, moments[0], *numbers)]


def same_bits(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_bits_do_not_depend_on_threads(layout: str, dtype: torch.dtype) -> None:
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            _C.force_plan(threads=threads)
            results.append(passes(layout, dtype))
    finally:
        torch.set_num_threads(before)
        _C.force_plan()
    assert all(same_bits(results[0], results[1]) + same_bits(results[0], results[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_chosen_isa_is_used(layout: str, dtype: torch.dtype) -> None:
    """x86-64's baseline has no fused multiply-adds, so its bits tell; all others agree. In a new process the variable
    chooses."""
    isas, before = _C.isas(), _C.isa()
    if "baseline" not in isas or len(isas) < 2:
        pytest.skip(f"needs an x86-64 processor with more than its baseline; has {isas}")
    try:
        results = {}
        for isa in isas:
            _C.select_isa(isa)
            results[isa] = passes(layout, dtype)
    finally:
        _C.select_isa(before)
    for isa in isas[2:]:
        assert all(same_bits(results[isa], results[isas[1]]))
    for at, name in enumerate(["mean", "squares", "y", "grads", "products", "grad_x", "grad_residual"]):
        one, other = results["baseline"][at], results[isas[-1]][at]
        torch.testing.assert_close(one, other)
        assert torch.equal(one, other) == (name in ("mean", "grads", "grad_residual")), name  # which multiply nothing


@pytest.mark.slow
def test_the_variable_chooses_the_isa() -> None:
    if len(_C.isas()) < 2:
        pytest.skip(f"needs a second instruction set; has {_C.isas()}")
    program = """
import sys, torch, test_norm
for t in test_norm.passes("nchw", torch.float32):
    sys.stdout.buffer.write(t.numpy().tobytes())
"""
    before = _C.isa()
    for isa in (_C.isas()[0], _C.isas()[-1]):
        environment = {**os.environ, "SENET_FAST_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        try:
            _C.select_isa(isa)
            assert done.stdout == b"".join(t.numpy().tobytes() for t in passes("nchw", torch.float32))
        finally:
            _C.select_isa(before)


def test_derivatives_of_both_orders() -> None:
    torch.manual_seed(0)
    norm, se = parts(3, activation="silu", momentum=0.0)
    x, residual, _ = tensors((2, 3, 3, 2), "nchw")
    x, residual = x.requires_grad_(), residual.requires_grad_()

    def function(x: Tensor, residual: Tensor, *parameters: Tensor) -> Tensor:
        return norm_se_relu(x, norm, se, residual)

    inputs = (x, residual, *norm.parameters(), *se.parameters())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_nan_stays() -> None:
    norm, se = parts(4)
    x, residual, _ = tensors((2, 4, 3, 3), "nchw")
    residual[1, 2, 0, 0] = torch.nan
    y = norm_se_relu(x, norm, se, residual)
    assert y.isnan().nonzero().tolist() == [[1, 2, 0, 0]]
    x[0, 1, 0, 0] = torch.nan
    assert norm_se_relu(x, norm, se, residual)[:, 1].isnan().all()


def test_the_network_uses_it_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small = torch.randn(2, 8, 5, 5)
    assert type(NormSE(8, True, 4, relu_last=True)(small, small).grad_fn).__name__ != "_NormSEBackward"
    monkeypatch.setattr(layers, "LEAST_FUSED", 0)
    tail = NormSE(8, True, 4, relu_last=True)
    x, residual = torch.randn(2, 2, 8, 5, 5)

    def name(y: Tensor) -> str:
        return type(y.grad_fn).__name__

    assert name(tail(x, residual)) == "_NormSEBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert name(tail(x.bfloat16(), residual.bfloat16())) != "_NormSEBackward"
    assert name(tail.eval()(x, residual)) != "_NormSEBackward"
    tail.train().norm.register_forward_hook(lambda *given: None)
    assert name(tail(x, residual)) != "_NormSEBackward"
    tangent = torch.func.jvp(lambda x: NormSE(8, True, 4, relu_last=True)(x, residual), (x,), (x,))[1]
    assert tangent.shape == x.shape


def test_refusals() -> None:
    norm, se = parts(4)
    x, residual, grad = tensors((2, 4, 3, 3), "nchw")
    with pytest.raises(TypeError, match=r"norm is a SyncBatchNorm; expected torch\.nn\.BatchNorm2d itself"):
        norm_se_relu(x, nn.SyncBatchNorm(4), se, residual)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"(?s)x is torch\.float64 \[2, 4, 3, 3\] on cpu, norm is BatchNorm2d.*supported"
    ):
        norm_se_relu(x, norm.eval(), se, residual)
    numbers = torch.zeros(2, 4, dtype=x.dtype)
    with pytest.raises(ValueError, match=r"residual is .*; expected shape, strides and type of x"):
        torch.ops.senet_fast.norm_apply(x, numbers, numbers, numbers, residual.float())
    with pytest.raises(ValueError, match=r"scale is .*; expected contiguous torch\.DoubleTensor\[2, 4\]"):
        torch.ops.senet_fast.norm_gradients(grad, x, x, numbers, numbers[:1], numbers, numbers)
    with pytest.raises(ValueError, match=r"x has strides .*; expected a contiguous or channels_last tensor"):
        torch.ops.senet_fast.norm_moments(x[:, :, ::2])


FOLD = torch.ops.senet_fast.fold_norm.default


def folded(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    return fold_norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("grad", [True, False])
def test_fold_norm_is_batch_norm_at_inference(affine: bool, dtype: torch.dtype, grad: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(37, affine=affine, eps=0.01).to(dtype).eval()
    for t in norm.state_dict().values():
        t.copy_(torch.rand(t.shape) + 0.5)
    x = torch.randn(2, 37, 3, 5, dtype=dtype)
    with torch.set_grad_enabled(grad):
        scale, shift = folded(norm)
    expected = nn.functional.batch_norm(
        x.double(),
        norm.running_mean.double(),  # type: ignore[union-attr]
        norm.running_var.double(),  # type: ignore[union-attr]
        *((norm.weight.double(), norm.bias.double()) if affine else (None, None)),
        eps=norm.eps,
    )
    given = x.double() * scale.double()[:, None, None] + shift.double()[:, None, None]
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)
    assert (scale.dtype, shift.dtype) == (dtype, dtype)
    assert scale.requires_grad == (grad and affine)


def test_fold_norm_where_something_watches() -> None:
    """Derivatives, modes and subclasses see small ops; plain tensors get one loop. The numbers are the same."""
    norm = nn.BatchNorm2d(5).eval()
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.library.opcheck(FOLD, (*tensors, norm.eps))
    with torch.no_grad():
        plain = folded(norm)
        tangent = torch.ones(5)
        _, (changed, _) = torch.func.jvp(
            lambda w: FOLD(tensors[0], tensors[1], w, None, 0.0), (tensors[2],), (tangent,)
        )
        torch.testing.assert_close(changed, torch.rsqrt(norm.running_var))  # type: ignore[arg-type]
        compiled = torch.compile(lambda: folded(norm), fullgraph=True, backend="eager")()
        with warnings.catch_warnings():
            # Without a rule of its own it would be run once for each, and say so.
            warnings.simplefilter("error", UserWarning)
            batched = torch.vmap(lambda mean: FOLD(mean, *tensors[1:], norm.eps))(torch.stack([tensors[0]] * 3))  # type: ignore[list-item]
        negative = FOLD(torch._neg_view(-tensors[0]), *tensors[1:], norm.eps)  # type: ignore[operator]
        zero = FOLD(torch._efficientzerotensor(5), *tensors[1:], norm.eps)
    for i, one in enumerate(plain):
        torch.testing.assert_close(batched[i], torch.stack([one] * 3))
        assert torch.equal(negative[i], one)
        torch.testing.assert_close(zero[i], one)
    for a, b in zip(plain, folded(norm), strict=True):
        torch.testing.assert_close(a, b.detach())
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)

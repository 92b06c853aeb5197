"""The prologue where something is differentiated: the op composes it, so every derivative and transform is there."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from se_testing import BY_NAME, EXCITATIONS, TENSORS, Arguments, Function, Layout, make_arguments, value_and_grads
from torch import Tensor

from senet_fast.se import FusedSE, reference, squeeze_excite

Call = Callable[..., Tensor]
NAMES = (*TENSORS, "pre_scale", "pre_shift")
OP = torch.ops.senet_fast.squeeze_excite_prologue.default


def arguments_of(layout: Layout, dtype: torch.dtype = torch.float64, **options: Any) -> Arguments:
    made = make_arguments(layout, dtype, **options)
    x, dim = made["x"], made["dim"]
    K = x.shape[dim]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = {"pre_scale": torch.rand(K, dtype=wide) + 0.5, "pre_shift": torch.randn(K, dtype=wide)}
    return {**made, **numbers, "pre_activation": options.get("pre_activation", "silu")}


def small(layout: str = "nchw", **options: Any) -> tuple[list[Tensor], Call, Call]:
    """A double case for numerical derivatives: its tensors, and op and reference as functions of them."""
    arguments = arguments_of(BY_NAME[layout], B=2, K=3, R=2, activation="silu", **options)
    arguments["x"] = arguments["x"][:, :, :2, :3] if arguments["x"].dim() == 4 else arguments["x"][:, :3]
    if "residual" in arguments:
        arguments["residual"] = torch.randn_like(arguments["x"])
    names = [name for name in NAMES if name in arguments]
    rest = {name: value for name, value in arguments.items() if name not in names}

    def bind(function: Function) -> Call:
        return lambda *tensors: function(**dict(zip(names, tensors, strict=True)), **rest)

    return [arguments[name] for name in names], bind(squeeze_excite), bind(reference.squeeze_excite)


def tracked(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


ALL = {"residual": True, "add_one": True, "post_activation": "silu"}


@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("pre_activation", ["identity", "silu", "affine_clamp(0.5, 0.25, -1, 1)"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "btc"])
def test_numerical(layout: str, pre_activation: str, excitation: str) -> None:
    tensors, op, _ = small(layout, excitation=excitation, pre_activation=pre_activation, **ALL)
    assert torch.autograd.gradcheck(op, tracked(tensors))


@pytest.mark.parametrize("options", [{}, ALL, {"residual": True, "post_activation": "relu"}])
def test_numerical_of_second_order_and_forward_mode(options: dict[str, Any]) -> None:
    tensors, op, _ = small(**options)
    assert torch.autograd.gradgradcheck(op, tracked(tensors), fast_mode=True)
    assert torch.autograd.gradcheck(
        op, tracked(tensors), check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )


@pytest.mark.parametrize("wanted", NAMES)
def test_of_one_input(wanted: str, layout: Layout) -> None:
    arguments = arguments_of(layout, residual=True, post_activation="relu")
    grad_y = torch.randn_like(arguments["x"])
    ours, expected = (
        value_and_grads(function, arguments, grad_y, [wanted])
        for function in (squeeze_excite, reference.squeeze_excite)
    )
    torch.testing.assert_close(ours, expected)
    assert ours["y"].stride() == torch.empty_like(arguments["x"]).stride()


def test_of_every_type(dtype: torch.dtype) -> None:
    """u is rounded to the type of x with and without gradients, so y has the same bits where torch's activation has."""
    arguments = arguments_of(BY_NAME["channels_last"], dtype, K=67, R=9, residual=True, pre_activation="relu")
    grad_y = torch.randn_like(arguments["x"])
    ours, expected = (
        value_and_grads(function, arguments, grad_y, NAMES) for function in (squeeze_excite, reference.squeeze_excite)
    )
    half = dtype.itemsize == 2
    for name, value in ours.items():
        size = expected[name].abs().max().item()
        tolerance = 2e-2 if half else 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance * size)
    assert torch.equal(ours["y"], squeeze_excite(**arguments))


def test_the_op_itself_has_derivatives() -> None:
    """Whoever calls it: a compiled graph or an export, not only the function of this name in Python."""
    arguments = arguments_of(BY_NAME["nchw"])
    tensors = [arguments.pop(name, None) for name in TENSORS]
    inputs = [arguments["pre_scale"].requires_grad_(), tensors[0].requires_grad_()]
    found = torch.autograd.grad(OP(*tensors, **arguments).sum(), inputs)
    expected = torch.autograd.grad(
        reference.squeeze_excite(*tensors[:5], **arguments).sum(),  # type: ignore[arg-type]
        inputs,
    )
    torch.testing.assert_close(found, expected)


TRANSFORMS: dict[str, Callable[[Call, list[Tensor]], Any]] = {
    "grad": lambda f, t: torch.func.grad(lambda *a: f(*a).square().sum(), argnums=tuple(range(len(t))))(*t),
    "jvp": lambda f, t: torch.func.jvp(f, tuple(t), tuple(torch.ones_like(one) for one in t)),
    "jacrev": lambda f, t: torch.func.jacrev(f, argnums=len(t) - 2)(*t),
    "hessian": lambda f, t: torch.func.hessian(lambda s: f(*t[:-2], s, t[-1]).sum())(t[-2]),
    "vmap": lambda f, t: torch.func.vmap(f, (0, *[None] * (len(t) - 1)))(torch.stack([t[0]] * 3), *t[1:]),
    "vmap_of_scales": lambda f, t: torch.func.vmap(lambda s: f(*t[:-2], s, t[-1]))(torch.stack([t[-2], 2 * t[-2]])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("layout", ["nchw", "btc"])
def test_transforms(layout: str, transform: str) -> None:
    tensors, op, ref = small(layout, residual=True, post_activation="silu")
    with warnings.catch_warnings():
        # Without a rule of its own vmap would run the op once for each, and say so.
        warnings.simplefilter("error", UserWarning)
        found = TRANSFORMS[transform](op, tensors)
    torch.testing.assert_close(found, TRANSFORMS[transform](ref, tensors))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training(backend: str) -> None:
    arguments = arguments_of(BY_NAME["nchw"], torch.float32, residual=True)
    grad_y = torch.randn_like(arguments["x"])
    run = torch.compile(squeeze_excite, fullgraph=True, backend=backend)
    torch.testing.assert_close(
        value_and_grads(run, arguments, grad_y, NAMES), value_and_grads(squeeze_excite, arguments, grad_y, NAMES)
    )


def test_export_in_training() -> None:
    """The graph calls the op, which still has its derivatives."""

    class Behind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.se, self.scale = FusedSE(8, 2), torch.nn.Parameter(torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.se(x, pre_scale=self.scale, pre_activation="relu")
            return y

    module, x = Behind(), torch.randn(2, 8, 5, 5)
    exported = torch.export.export(module, (x,)).module()
    grads = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (module, exported)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_with_a_residual_of_another_type(grad: bool) -> None:
    """u is rounded to the type of x, and then the wider type wins, as in torch's addition."""
    block, x = FusedSE(8, 2), torch.randn(2, 8, 5, 5, dtype=torch.bfloat16)
    residual, numbers = torch.randn(2, 8, 5, 5), torch.rand(8) + 0.5
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        y = block(x, residual, pre_scale=numbers, pre_activation="relu")
        u = reference.prologue(x, numbers, None, "relu", 1)
        assert torch.equal(y, block(u, residual))
    assert y.dtype == torch.float32


def test_errors_with_gradients() -> None:
    """Those of the fused prologue, not whatever torch's own multiplication says."""
    arguments = arguments_of(BY_NAME["nchw"], torch.float32)
    arguments["x"].requires_grad_()
    K = arguments["pre_scale"].shape[0]
    for change, kind, message in [
        ({"pre_scale": torch.ones(1)}, ValueError, f"pre_scale has shape [1]; expected [{K}]"),
        (
            {"pre_shift": torch.ones(K, dtype=torch.int64)},
            TypeError,
            "pre_shift is Long; expected a floating-point tensor",
        ),
        ({"pre_activation": "swoosh"}, ValueError, "pre_activation is 'swoosh'; expected one of"),
        ({"dim": 4}, ValueError, "dim is 4; expected an axis of x (4-D) other than 0, the batch"),
        ({"residual": arguments["x"].double()}, TypeError, "residual is Double; expected the dtype of x (Float)"),
    ]:
        with pytest.raises(kind, match=re.escape(message)):
            squeeze_excite(**{**arguments, **change})


def test_without_memory() -> None:
    """On the meta device, gradients included."""
    block, x = FusedSE(8, 2, device="meta"), torch.randn(2, 8, 5, 5, device="meta", requires_grad=True)
    y = block(x, pre_scale=torch.ones(8, device="meta"), pre_activation="relu")
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (y.shape, grad.shape, grad.device.type) == (x.shape, x.shape, "meta")

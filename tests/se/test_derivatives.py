"""Derivatives beyond the first plain backward: numerical checks, second order, forward mode, torch.func."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from se_testing import BY_NAME, EXCITATIONS, TENSORS, Arguments, Function, make_arguments
from torch import Tensor, nn

from senet_fast.se import FusedSE, SEBlock, reference, squeeze_excite

Call = Callable[..., Tensor]

EPILOGUES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"residual": True, "add_one": True, "post_activation": "silu"},
    "from_y": {"residual": True, "add_one": True, "post_activation": "relu"},
}
LAYOUTS = ["nchw", "channels_last", "btc"]


def split(arguments: Arguments) -> tuple[list[Tensor], Callable[[Function], Call]]:
    """The tensors of the arguments, and how to make of the op or the reference a function of them alone."""
    names = [name for name in TENSORS if name in arguments]
    rest = {name: value for name, value in arguments.items() if name not in names}

    def bind(function: Function) -> Call:
        return lambda *tensors: function(**dict(zip(names, tensors, strict=True)), **rest)

    return [arguments[name] for name in names], bind


def small(layout: str = "nchw", **options: Any) -> tuple[list[Tensor], Call, Call]:
    """A double case small enough for numerical derivatives: its tensors, and op and reference over them."""
    arguments = make_arguments(BY_NAME[layout], torch.float64, B=2, K=3, R=2, activation="silu", **options)
    arguments["x"] = arguments["x"][:, :, :2, :3] if arguments["x"].dim() == 4 else arguments["x"][:, :3]
    if "residual" in arguments:
        arguments["residual"] = torch.randn_like(arguments["x"])
    tensors, bind = split(arguments)
    return tensors, bind(squeeze_excite), bind(reference.squeeze_excite)


def tracked(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def squared(function: Call) -> Call:
    return lambda *tensors: function(*tensors).square().sum()


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """Tensors this small are faster without threads."""
    torch.set_num_threads(1)


@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numerical(excitation: str, epilogue: str, layout: str) -> None:
    tensors, op, _ = small(layout, excitation=excitation, **EPILOGUES[epilogue])
    assert torch.autograd.gradcheck(op, tracked(tensors))


@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_numerical_second_order(excitation: str, epilogue: str) -> None:
    tensors, op, _ = small(excitation=excitation, **EPILOGUES[epilogue])
    fast = excitation == "channel_conv"  # torch's own second derivative of conv1d takes most of 10 seconds
    assert torch.autograd.gradgradcheck(op, tracked(tensors), fast_mode=fast)


@pytest.mark.parametrize("post_activation", ["relu6", "leaky_relu(0.25)"])
def test_numerical_with_other_kinks(post_activation: str) -> None:
    tensors, op, _ = small(residual=True, post_activation=post_activation)
    assert torch.autograd.gradcheck(op, tracked(tensors))
    assert torch.autograd.gradgradcheck(op, tracked(tensors))


@pytest.mark.parametrize("excitation", EXCITATIONS)
def test_numerical_forward_mode(excitation: str) -> None:
    tensors, op, _ = small(excitation=excitation, **EPILOGUES["all"])
    assert torch.autograd.gradcheck(
        op, tracked(tensors), check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )


@pytest.mark.parametrize("wanted", [0, 1, 2, 5], ids=["x", "fc1_weight", "fc1_bias", "residual"])
@pytest.mark.parametrize("epilogue", ["all", "from_y"])
def test_second_order_of_one_input(wanted: int, epilogue: str) -> None:
    """Only one input wants gradients, twice: the other inputs' first gradients are still part of the graph."""
    tensors, op, ref = small(**EPILOGUES[epilogue])
    results = []
    for function in (op, ref):
        inputs = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        (first,) = torch.autograd.grad(squared(function)(*inputs), inputs[wanted], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), inputs[wanted])
        results.append((first.detach(), second))
    torch.testing.assert_close(*results)


def test_gradient_penalty() -> None:
    """A loss on grad_x, trained through the weights, in half the calls beside the plain loss."""
    results = []
    x = torch.randn(3, 8, 4, 4)
    for make in (FusedSE, SEBlock):
        torch.manual_seed(1)
        module, given = make(8, 2), x.clone().requires_grad_()
        y = module(given)
        (grad_x,) = torch.autograd.grad(y.sum(), given, create_graph=True)
        (y.square().sum() + grad_x.square().sum()).backward()
        results.append({name: parameter.grad for name, parameter in module.named_parameters()} | {"x": given.grad})
    torch.testing.assert_close(*results)


TRANSFORMS: dict[str, Callable[[Call, list[Tensor]], Any]] = {
    "grad": lambda f, t: torch.func.grad(squared(f), argnums=tuple(range(len(t))))(*t),
    "grad_and_value": lambda f, t: torch.func.grad_and_value(squared(f))(*t),
    "grad_of_a_weight": lambda f, t: torch.func.grad(lambda w: squared(f)(t[0], w, *t[2:]))(t[1]),
    "grad_of_grad": lambda f, t: torch.func.grad(
        lambda x: torch.func.grad(lambda w: squared(f)(x, w, *t[2:]))(t[1]).square().sum()
    )(t[0]),
    "vjp": lambda f, t: torch.func.vjp(f, *t)[1](torch.ones_like(t[0])),
    "jvp": lambda f, t: torch.func.jvp(f, tuple(t), tuple(torch.cos(s) for s in t)),
    "jvp_of_a_weight": lambda f, t: torch.func.jvp(lambda w: f(t[0], w, *t[2:]), (t[1],), (torch.cos(t[1]),)),
    "jvp_of_grad": lambda f, t: torch.func.jvp(
        torch.func.grad(lambda x: squared(f)(x, *t[1:])), (t[0],), (t[0].cos(),)
    ),
    "jacrev": lambda f, t: torch.func.jacrev(f, argnums=1)(*t),
    "jacfwd": lambda f, t: torch.func.jacfwd(f, argnums=1)(*t),
    "hessian": lambda f, t: torch.func.hessian(squared(f), argnums=2)(*t),
    "vmap": lambda f, t: torch.vmap(f)(*[torch.stack([s, s.cos(), s.sin()]) for s in t]),
    "vmap_of_x": lambda f, t: torch.vmap(f, (0, *[None] * (len(t) - 1)))(torch.stack([t[0], t[0].cos()]), *t[1:]),
    "vmap_of_a_weight": lambda f, t: torch.vmap(lambda w: f(t[0], w, *t[2:]))(torch.stack([t[1], t[1].cos()])),
    "vmap_of_inner_axis": lambda f, t: torch.vmap(lambda x: f(x, *t[1:]), 2)(torch.stack([t[0], t[0].cos()], 2)),
    "vmap_of_grad": lambda f, t: torch.vmap(torch.func.grad(squared(f)))(*[torch.stack([s, s.cos()]) for s in t]),
    "vmap_of_vmap": lambda f, t: torch.vmap(torch.vmap(lambda x: f(x, *t[1:])))(t[0].expand(2, 3, *t[0].shape)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_torch_func(transform: str, excitation: str, epilogue: str) -> None:
    tensors, op, ref = small(excitation=excitation, **EPILOGUES[epilogue])
    run = TRANSFORMS[transform]
    torch.testing.assert_close(run(op, tensors), run(ref, tensors))


@pytest.mark.parametrize("dim", [1, -1, 2], ids=str)
def test_vmap_counts_axes_without_the_mapped_one(dim: int) -> None:
    """``dim`` is an axis of one sample, as the caller of vmap wrote it."""
    x, weight = torch.randn(3, 2, 5, 5, 5), torch.randn(5, 5)
    each = [squeeze_excite(sample, weight, excitation="one_fc", dim=dim) for sample in x]
    mapped = torch.vmap(lambda sample: squeeze_excite(sample, weight, excitation="one_fc", dim=dim))(x)
    torch.testing.assert_close(mapped, torch.stack(each))


def test_transforms_check_arguments_too() -> None:
    x, fc1, fc2 = torch.randn(2, 6, 4), torch.randn(2, 5), torch.randn(6, 2)
    for transform in (lambda f: torch.func.grad(lambda x: f(x).sum())(x), lambda f: torch.vmap(f)(x[None])):
        with pytest.raises(ValueError, match=r"fc1_weight has shape \[2, 5\]"):
            transform(lambda x: squeeze_excite(x, fc1, None, fc2))


@pytest.mark.parametrize("epilogue", ["all", "from_y"])
def test_batched_grads(epilogue: str) -> None:
    """Many grad_y at once (is_grads_batched), and with them the whole Jacobian."""
    tensors, op, ref = small(**EPILOGUES[epilogue])
    inputs = tracked(tensors)
    rows = torch.randn(4, *tensors[0].shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(op(*inputs), inputs, rows, is_grads_batched=True),
        torch.autograd.grad(ref(*inputs), inputs, rows, is_grads_batched=True),
    )
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(op, tuple(tensors), vectorize=True),
        torch.autograd.functional.jacobian(ref, tuple(tensors)),
    )


@pytest.mark.parametrize("dual", [(0,), (1,), (4,), (5,), (0, 1, 2, 3, 4, 5)], ids=str)
def test_dual_tensors(dual: tuple[int, ...]) -> None:
    """Forward mode by hand; a tangent on any one input alone is not lost."""
    tensors, op, ref = small(**EPILOGUES["all"])
    tangents = [torch.randn_like(tensor) for tensor in tensors]
    results = []
    for function in (op, ref):
        with forward_ad.dual_level():
            inputs = [forward_ad.make_dual(t, tangents[i]) if i in dual else t for i, t in enumerate(tensors)]
            y, tangent = forward_ad.unpack_dual(function(*inputs))
            assert tangent is not None
            results.append((y.clone(), tangent.clone()))
    torch.testing.assert_close(*results)


def _modules() -> tuple[FusedSE, SEBlock]:
    block = SEBlock(8, 2)
    return FusedSE.from_block(block), block


def test_functional_call() -> None:
    x = torch.randn(3, 8, 4, 4)
    results = []
    for module in _modules():
        parameters = {name: p.detach() for name, p in module.named_parameters()}
        results.append(
            torch.func.grad(lambda p, m=module: torch.func.functional_call(m, p, (x,)).square().sum())(parameters)
        )
    torch.testing.assert_close(*results)


def test_per_sample_gradients() -> None:
    x = torch.randn(3, 8, 4, 4)
    fused, block = _modules()
    parameters = {name: p.detach() for name, p in fused.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(fused, parameters, (sample[None],)).square().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        block.zero_grad()
        block(sample[None]).square().sum().backward()
        for name, parameter in block.named_parameters():
            torch.testing.assert_close(each[name][i], parameter.grad)


def test_model_ensemble() -> None:
    """vmap over stacked parameters: three models in one call."""
    models: list[nn.Module] = [FusedSE(8, 2) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, 8, 4, 4)
    y = torch.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([model(x) for model in models]))

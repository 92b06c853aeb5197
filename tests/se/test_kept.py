"""What the op keeps for backward, beside what eager keeps: bytes, and what may be written to before backward runs."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from se_testing import BY_NAME, TENSORS, Arguments, make_arguments, value_and_grads
from torch import Tensor

from senet_fast.se import FusedSE, reference, squeeze_excite

OPS = torch.ops.senet_fast
# How eager writes an activation behind an addition, and which of two maps it keeps: z, which goes in, or y.
EAGER: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "relu": (F.relu, "y"),
    "relu6": (F.relu6, "z"),
    "leaky_relu(0.25)": (lambda z: F.leaky_relu(z, 0.25), "z"),
    "silu": (F.silu, "z"),
}
SECOND = r"fc\d_bias was changed in place after the forward pass \(it is at version 1; expected version 0\)"


def tracked(arguments: Arguments) -> Arguments:
    return {k: v.clone().requires_grad_() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def kept(function: Callable[..., Tensor], arguments: Arguments) -> tuple[dict[int, int], Tensor]:
    """Bytes of each storage that a call saves for its backward, by address; and y."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(**arguments)
    return storages, y


def eager(post_activation: str, residual: Tensor, **rest: Any) -> Tensor:
    """The reference, with the activation as people write it."""
    return EAGER[post_activation][0](reference.squeeze_excite(**rest) + residual)


@pytest.mark.parametrize("post_activation", EAGER)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "btc"])
def test_no_more_is_kept_than_in_eager(post_activation: str, layout: str) -> None:
    """Of the size of x: x itself, and y where eager keeps y, which the next layer keeps as well. Else the residual."""
    arguments = tracked(make_arguments(BY_NAME[layout], residual=True, post_activation=post_activation))
    size = arguments["x"].untyped_storage().nbytes()
    ours, y = kept(squeeze_excite, arguments)
    other = y if EAGER[post_activation][1] == "y" else arguments["residual"]
    assert {at for at, nbytes in ours.items() if nbytes == size} == {arguments["x"].data_ptr(), other.data_ptr()}
    theirs, _ = kept(eager, arguments)
    assert sum(ours.values()) <= sum(theirs.values())


@pytest.mark.parametrize("kind", [{}, {"excitation": "channel_conv", "add_one": True}], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced_batch", "frequency"])
def test_gradients_from_y(kind: Arguments, layout: str, dtype: torch.dtype) -> None:
    """As eager's, whose ReLU sees what the addition rounded to the type of x: here sums that need no rounding."""
    arguments = make_arguments(BY_NAME[layout], dtype, residual=True, post_activation="relu", **kind)
    for name in ("x", "residual"):
        arguments[name].mul_(8).round_().div_(8)  # a third of the sums is 0, or each other's opposite
    arguments["gate"] = "affine_clamp(0, 1, 1, 1)"
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(reference.squeeze_excite, arguments, grad_y)
    for name, value in value_and_grads(squeeze_excite, arguments, grad_y).items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_slope_is_that_of_the_rounded_result() -> None:
    """What float16 rounds to 0 has relu's slope at 0, as in eager, and a NaN passes the gradient on."""
    tiny = 2.0**-14  # a gate of 2^-14 makes of it what float16 cannot hold
    x = torch.tensor([[[tiny, -tiny, 1, 0, 0, 0, 0]]], dtype=torch.float16)
    residual = torch.tensor([[[0, 0, 0, 1e-7, -0.0, torch.nan, torch.inf]]], dtype=torch.float16)
    found = []
    for function in (squeeze_excite, reference.squeeze_excite):
        given = residual.clone().requires_grad_()
        weight = torch.zeros(1, 1, dtype=torch.float16)
        options = {"excitation": "one_fc", "gate": f"affine_clamp(0, {tiny}, 0, 1)", "post_activation": "relu"}
        y = function(x, weight, residual=given, **options)
        found.append((y.detach(), *torch.autograd.grad(y, given, torch.full_like(y, 3))))
    assert found[0][0][0, 0, 0] == 0
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("post_activation", EAGER)
def test_y_changed_in_place(post_activation: str) -> None:
    """An error where it is one in eager, where y is not kept the gradients of before."""
    arguments = make_arguments(BY_NAME["nchw"], residual=True, post_activation=post_activation)
    for function in (squeeze_excite, eager):
        given = tracked(arguments)
        expected = torch.autograd.grad(function(**given).sum(), given["x"])
        y = function(**given)
        y += 1
        if EAGER[post_activation][1] == "y":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()
        else:
            assert torch.equal(torch.autograd.grad(y.sum(), given["x"])[0], expected[0])


def test_the_residual_may_be_changed_in_place_with_relu_as_in_eager() -> None:
    arguments = make_arguments(BY_NAME["nchw"], residual=True, post_activation="relu")
    found = []
    for function, factor in ((squeeze_excite, 1), (squeeze_excite, -3), (eager, -3)):
        given = tracked(arguments)
        y = function(**given)
        with torch.no_grad():
            given["residual"].mul_(factor)
        inputs = [given[name] for name in TENSORS if name in given]
        found.append(torch.autograd.grad(y.square().sum(), inputs))
    for unchanged, changed in zip(found[0], found[1], strict=True):
        assert torch.equal(unchanged, changed)
    torch.testing.assert_close(found[1], found[2])


# ---- biases ----


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("excitation", ["two_fc", "one_fc", "channel_conv"])
def test_biases_may_be_changed_in_place_as_in_eager(excitation: str, frozen: bool, leaf: bool) -> None:
    """First derivatives are those of the forward pass, twice."""
    arguments = make_arguments(BY_NAME["nchw"], torch.float64, excitation=excitation)
    biases = [name for name in arguments if name.endswith("bias")]
    found = []
    for function in (squeeze_excite, reference.squeeze_excite):
        given = tracked(arguments)
        for name in biases:
            given[name] = given[name].detach() if frozen else given[name]
        used = given if leaf else given | {name: given[name] * 1 for name in biases}
        loss = function(**used).square().sum()
        with torch.no_grad():
            for name in biases:
                used[name].add_(5)
        inputs = [value for value in given.values() if isinstance(value, Tensor) and value.requires_grad]
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, inputs), strict=True))
        found.append(first)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["fc1_bias", "fc2_bias"])
def test_second_derivatives_need_the_biases_of_the_forward_pass(name: str) -> None:
    given = tracked(make_arguments(BY_NAME["nchw"]))
    loss = squeeze_excite(**given).square().sum()
    torch.autograd.grad(loss, given["x"], create_graph=True)
    with torch.no_grad():
        given[name].add_(1)
    torch.autograd.grad(loss, given["x"], retain_graph=True)
    with pytest.raises(RuntimeError, match=SECOND.replace(r"\d", name[2])):
        torch.autograd.grad(loss, given["x"], create_graph=True)


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_kept_when_y_is_gone(leaf: bool, backward: bool) -> None:
    """No reference cycle through what the op keeps: y, biases and what these are computed from die with y."""
    given = tracked(make_arguments(BY_NAME["nchw"], residual=True, post_activation="relu"))
    if not leaf:
        given |= {name: value * 1 for name, value in given.items() if isinstance(value, Tensor)}
    gc.collect()
    gc.disable()
    try:
        y = squeeze_excite(**given)
        if backward:
            y.sum().backward()
        tensors = [y, *(value for value in given.values() if isinstance(value, Tensor))]
        alive = [weakref.ref(tensor) for tensor in tensors]
        storages = [weakref.ref(tensor.untyped_storage()) for tensor in tensors]
        del y, given, tensors
        assert not any(reference() for reference in [*alive, *storages])
    finally:
        gc.enable()


def test_biases_of_inference_mode() -> None:
    """They have no version; eager takes them, too."""
    arguments = make_arguments(BY_NAME["nchw"])
    with torch.inference_mode():
        arguments |= {name: arguments[name].clone() for name in ("fc1_bias", "fc2_bias")}
    results = []
    for function in (squeeze_excite, reference.squeeze_excite):
        x = arguments["x"].clone().requires_grad_()
        results.append(torch.autograd.grad(function(**arguments | {"x": x}).square().sum(), x))
    torch.testing.assert_close(*results)


# ---- the backward op ----


def test_backward_op_says_what_it_expects_of_y() -> None:
    arguments = make_arguments(BY_NAME["nchw"], residual=True, post_activation="relu")
    x, residual = arguments["x"], arguments.pop("residual")
    y, saved = OPS.squeeze_excite_forward(**arguments, residual=residual)

    def backward(**given: Any) -> Any:
        return OPS.squeeze_excite_backward(x, saved, [True] * 6, **arguments | given)

    assert backward(y=y)[5].shape == x.shape
    with pytest.raises(ValueError, match="y was given beside a residual; expected it in the residual's place"):
        backward(y=y, residual=residual)
    with pytest.raises(ValueError, match="y was given with post_activation 'silu'; expected 'relu'"):
        backward(y=y, post_activation="silu")
    with pytest.raises(ValueError, match=r"y has shape \[1, 19, 5, 13\]; expected the shape of x \[3, 19, 5, 13\]"):
        backward(y=y[:1])
    with pytest.raises(TypeError, match=r"y is Double; expected the dtype of x \(Float\)"):
        backward(y=y.double())


def test_second_derivatives_after_another_memory_of_a_bias() -> None:
    """Setting ``.data`` moves no version."""
    block = FusedSE(8, 2).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    y = block(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    block.fc1.bias.data = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], first)
    with pytest.raises(RuntimeError, match=r"fc1_bias\.data was set after the forward pass, and second derivatives"):
        torch.autograd.grad(y.sum(), x, create_graph=True)

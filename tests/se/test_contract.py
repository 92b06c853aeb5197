"""What torch expects of an operator: opcheck, modes, what it saves, dispatch modes and subclasses."""

from typing import Any

import pytest
import torch
from se_testing import (
    BY_NAME,
    EXCITATIONS,
    TENSORS,
    Arguments,
    make_arguments,
    value_and_grads,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from senet_fast.se import FusedSE, squeeze_excite

OPS = torch.ops.senet_fast
SAMPLES = ["nchw", "channels_last", "btc", "nct_transposed", "batch_transposed", "sliced_channels", "sliced_batch"]


def positional(arguments: Arguments, track: bool) -> tuple[list[Tensor | None], dict[str, Any]]:
    """The arguments as the ops take them: tensors by position, then options by name."""
    given = {k: v.detach().requires_grad_(track) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    return [given.pop(name, None) for name in TENSORS], given


@pytest.mark.slow
@pytest.mark.parametrize("layout", SAMPLES)
@pytest.mark.parametrize("track", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("kind", ["two_fc", "channel_conv", "all", "from_y"])
def test_opcheck(layout: str, track: bool, kind: str) -> None:
    epilogues = {"all": "silu", "from_y": "relu"}
    options = {"residual": True, "post_activation": epilogues[kind]} if kind in epilogues else {"excitation": kind}
    tensors, options = positional(make_arguments(BY_NAME[layout], torch.float64, B=2, K=4, R=2, **options), track)
    torch.library.opcheck(OPS.squeeze_excite.default, tensors, options)
    if not track:  # no formula of its own: it is called below autograd
        torch.library.opcheck(OPS.squeeze_excite_forward.default, tensors, options)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SAMPLES)
@pytest.mark.parametrize("track", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("mask", [0b111111, 0b100010], ids=bin)
@pytest.mark.parametrize("post_activation", ["silu", "relu"])
def test_opcheck_backward(layout: str, track: bool, mask: int, post_activation: str) -> None:
    given = {"residual": True, "post_activation": post_activation}
    arguments = make_arguments(BY_NAME[layout], torch.float64, B=2, K=4, R=2, **given)
    tensors, options = positional(arguments, track)
    with torch.no_grad():
        y, saved = OPS.squeeze_excite_forward(*tensors, **options)
    if post_activation == "relu":
        tensors[-1], options["y"] = None, y.requires_grad_(track)
    grad_y = torch.randn_like(arguments["x"]).requires_grad_(track)
    wanted = [bool(mask >> i & 1) for i in range(6)]
    torch.library.opcheck(OPS.squeeze_excite_backward.default, (grad_y, saved, wanted, *tensors), options)


@pytest.mark.parametrize("from_y", [False, True])
def test_backward_op_gives_only_what_the_mask_asks(from_y: bool) -> None:
    tensors, options = positional(make_arguments(BY_NAME["nchw"], residual=True, post_activation="relu"), False)
    y, saved = OPS.squeeze_excite_forward(*tensors, **options)
    if from_y:
        tensors[-1], options["y"] = None, y
    everything = OPS.squeeze_excite_backward(tensors[0], saved, [True] * 6, *tensors, **options)
    for i, gradient in enumerate(everything):
        mask = [j == i for j in range(6)]
        only = OPS.squeeze_excite_backward(tensors[0], saved, mask, *tensors, **options)
        assert torch.equal(only[i], gradient)
        assert all(other.numel() == 0 for j, other in enumerate(only) if j != i)


def test_modes_without_gradients() -> None:
    arguments = make_arguments(BY_NAME["nchw"])
    arguments["fc1_weight"].requires_grad_()
    with torch.no_grad():
        assert not squeeze_excite(**arguments).requires_grad
    with torch.inference_mode():
        y = squeeze_excite(**arguments)
    assert y.is_inference()
    assert not y.requires_grad
    tracked = squeeze_excite(**arguments)
    assert tracked.requires_grad
    assert torch.equal(y, tracked)


def test_unused_output_and_undefined_gradients() -> None:
    """A result that no loss uses gives no gradient, and no error."""
    module, x = FusedSE(8, 2), torch.randn(2, 8, 3, 3, requires_grad=True)
    module(x)
    x.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("excitation", EXCITATIONS)
def test_backward_twice_and_freed(excitation: str) -> None:
    arguments = make_arguments(BY_NAME["nchw"], excitation=excitation)
    x = arguments["x"].requires_grad_()
    loss = squeeze_excite(**arguments).square().sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_stale_inputs_are_detected() -> None:
    """What backward reads, changed in place before it, is an error and not a wrong gradient."""
    for name in ("x", "fc1_weight", "fc2_weight", "residual"):
        arguments = make_arguments(BY_NAME["nchw"], residual=True, post_activation="silu")
        arguments = {k: v.requires_grad_() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        y = squeeze_excite(**arguments)
        with torch.no_grad():
            arguments[name].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize(
    "options",
    [{}, {"post_activation": "relu"}, {"residual": True, "post_activation": "silu"}],
    ids=str,
)
def test_result_may_be_changed_in_place(options: dict[str, Any]) -> None:
    """``y += shortcut`` is what residual networks do: y is not among what backward needs. Behind ReLU: test_kept."""
    arguments = make_arguments(BY_NAME["nchw"], **options)
    grad_y = torch.randn_like(arguments["x"])

    def changed(**given: Any) -> Tensor:
        y = squeeze_excite(**given)
        y += 1
        return y.mul_(3)

    expected = value_and_grads(squeeze_excite, arguments, 3 * grad_y)
    for name, value in value_and_grads(changed, arguments, grad_y).items():
        if name != "y":
            assert torch.equal(value, expected[name]), name


def test_only_x_and_small_tensors_are_saved() -> None:
    arguments = make_arguments(BY_NAME["nchw"], residual=True)
    arguments["x"].requires_grad_()
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = squeeze_excite(**arguments)
    large = [tensor for tensor in packed if tensor.numel() >= arguments["x"].numel()]
    assert [tensor.data_ptr() for tensor in large] == [arguments["x"].data_ptr()]
    y.sum().backward()


def test_saved_tensors_may_move() -> None:
    """Hooks that hand back copies, as offloading does."""
    arguments = make_arguments(BY_NAME["channels_last"], residual=True, post_activation="silu")
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(squeeze_excite, arguments, grad_y)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (t.stride(), t.clone()), lambda p: p[1].as_strided_(p[1].shape, p[0])
    ):
        results = value_and_grads(squeeze_excite, arguments, grad_y)
    assert all(torch.equal(value, expected[name]) for name, value in results.items())


def test_dispatch_mode_sees_both_directions() -> None:
    seen: list[str] = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    arguments = make_arguments(BY_NAME["nchw"])
    with Log():
        value_and_grads(squeeze_excite, arguments, torch.ones_like(arguments["x"]))
    assert "senet_fast.squeeze_excite_forward.default" in seen
    assert "senet_fast.squeeze_excite_backward.default" in seen
    assert not any("aten.mean" in op or "aten.linear" in op for op in seen)


def test_tensor_subclass() -> None:
    class Named(Tensor):
        pass

    arguments = make_arguments(BY_NAME["nchw"])
    y = squeeze_excite(**arguments | {"x": arguments["x"].as_subclass(Named)})
    assert type(y) is Named
    assert torch.equal(y.as_subclass(Tensor), squeeze_excite(**arguments))

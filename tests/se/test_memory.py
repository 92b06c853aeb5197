"""Memory: strides in and out, copies of odd inputs, what is written and what is not, empty tensors, NaN and Inf."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from se_testing import (
    BY_NAME,
    EXCITATIONS,
    LAYOUTS,
    Layout,
    convert,
    make_arguments,
    value_and_grads,
    weights,
)
from torch import Tensor
from torch._subclasses import FakeTensorMode

from senet_fast.se import reference, squeeze_excite

DENSE = [layout for layout in LAYOUTS if layout.dense]


@pytest.mark.parametrize("layout", DENSE, ids=lambda layout: layout.name)
@pytest.mark.parametrize("post_activation", ["identity", "relu"])
def test_dense_strides_are_kept(layout: Layout, dtype: torch.dtype, post_activation: str) -> None:
    arguments = make_arguments(layout, dtype, residual=True, post_activation=post_activation)
    x, residual = arguments["x"].requires_grad_(), arguments["residual"].requires_grad_()
    y = squeeze_excite(**arguments)
    assert y.stride() == x.stride()
    grad_x, grad_residual = torch.autograd.grad(y, (x, residual), torch.randn_like(y))
    assert grad_x.stride() == x.stride()
    assert grad_residual.stride() == residual.stride()


def test_results_have_the_strides_of_eager(layout: Layout) -> None:
    """Also where x is not dense: what torch's own elementwise operations give."""
    x = layout.make(3, 19)
    y = squeeze_excite(x, **weights("two_fc", 19, 5), dim=layout.dim)
    assert y.stride() == torch.empty_like(x).stride() == (x * 1).stride()


def _expanded_batch(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def _expanded_map(x: Tensor) -> Tensor:
    return x[:, :, :1, :1].expand(x.shape)


def _offset(x: Tensor) -> Tensor:
    """Not at the start of its storage, nor aligned to a vector."""
    flat = torch.empty(x.numel() + 3, dtype=x.dtype)
    return flat[3:].view(x.shape).copy_(x)


def _gap_between_images(x: Tensor) -> Tensor:
    larger = torch.full((len(x), x[0].numel() + 5), float("nan"), dtype=x.dtype)
    return larger[:, : x[0].numel()].view(x.shape).copy_(x)


def _crop(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (1, 2, 3, 1), value=float("nan"))[:, :, 3:-1, 1:-2]


def _channels_last_crop(x: Tensor) -> Tensor:
    return _crop(x.contiguous(memory_format=torch.channels_last))


def _batch_innermost(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


ODD = [_expanded_batch, _expanded_map, _offset, _gap_between_images, _crop, _channels_last_crop, _batch_innermost]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["x", "residual", "grad_y"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_odd_strides(
    odd: Callable[[Tensor], Tensor], name: str, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """Each of x, residual and grad_y in every odd layout beside ordinary others: the bits of the dense call."""
    tensors = {name: torch.randn(3, 20, 5, 7, dtype=dtype) for name in ("x", "residual", "grad_y")}
    tensors[name] = odd(tensors[name])
    assert odd is _offset or not tensors[name].is_contiguous()
    others = {k: v if k == name else v.contiguous(memory_format=memory_format) for k, v in tensors.items()}
    rest = weights("two_fc", 20, 5, dtype) | {"post_activation": "silu"}

    def results(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {"x": tensors["x"], "residual": tensors["residual"]} | rest
        return value_and_grads(squeeze_excite, given, tensors["grad_y"])

    ours = results(others)
    # sums run in the order of x in memory, so the dense twin has x's order: contiguous where x is odd and is copied
    dense_x = others["x"] if name != "x" else others["x"].contiguous()
    if odd is _channels_last_crop and name == "x":
        rounding = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {}
    else:
        rounding = {"rtol": 0, "atol": 0}
    expected = results({k: v.contiguous() for k, v in others.items()} | {"x": dense_x.clone()})
    for key, value in ours.items():
        torch.testing.assert_close(value, expected[key], **rounding)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_sum_backward(layout: str) -> None:
    """y.sum().backward() hands over a grad_y without memory of its own: every stride is 0."""
    arguments = make_arguments(BY_NAME[layout])
    results = []
    for function in (squeeze_excite, reference.squeeze_excite):
        x = arguments["x"].detach().requires_grad_()
        function(**arguments | {"x": x}).sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"])
def test_strided_weights(name: str) -> None:
    arguments = make_arguments(BY_NAME["nchw"])
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(squeeze_excite, arguments, grad_y)
    weight = arguments[name]
    strided = torch.stack([weight, torch.full_like(weight, float("nan"))], -1)[..., 0]
    assert not strided.is_contiguous()
    for key, value in value_and_grads(squeeze_excite, arguments | {name: strided}, grad_y).items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.slow
def test_copy_is_said_once() -> None:
    """In a fresh process: one warning that names the shape and strides, for the first copy only."""
    program = """
import torch
from senet_fast.se import squeeze_excite
x = torch.randn(2, 8, 4, 6)
squeeze_excite(x, torch.randn(2, 8), None, torch.randn(8, 2))
for _ in range(3):
    squeeze_excite(x[..., ::2], torch.randn(2, 8), None, torch.randn(8, 2))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("squeeze_excite") == 1, done.stderr
    assert "(shape [2, 8, 4, 3], strides [192, 24, 6, 2]) are not dense in memory; x is copied" in done.stderr


def test_inputs_are_untouched(layout: Layout, dtype: torch.dtype) -> None:
    arguments = make_arguments(layout, dtype, residual=True, post_activation="relu")
    grad_y = torch.randn_like(arguments["x"])
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    versions = {name: arguments[name]._version for name in before}
    grad_before = grad_y.clone()
    value_and_grads(squeeze_excite, arguments, grad_y)
    assert torch.equal(grad_y, grad_before)
    for name, value in before.items():
        assert torch.equal(arguments[name], value), name
        assert arguments[name]._version == versions[name], name


@pytest.mark.parametrize("track", [False, True])
def test_results_never_alias_inputs(layout: Layout, track: bool) -> None:
    """Even where the op changes nothing: a gate of 1 and no epilogue."""
    x = layout.make(2, 4).requires_grad_(track)
    y = squeeze_excite(x, torch.zeros(4, 4), torch.ones(4), excitation="one_fc", gate="identity", dim=layout.dim)
    assert torch.equal(y, x)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    if track:
        grad_y = torch.ones_like(y)
        (grad_x,) = torch.autograd.grad(y, x, grad_y)
        assert grad_x.untyped_storage().data_ptr() != grad_y.untyped_storage().data_ptr()


@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("post_activation", ["identity", "silu"])
def test_every_element_is_written(layout: Layout, excitation: str, post_activation: str) -> None:
    """Outputs start as NaN (torch fills fresh memory in deterministic mode), and none is left."""
    arguments = make_arguments(
        layout, B=2, K=37, R=3, excitation=excitation, residual=True, post_activation=post_activation
    )
    grad_y = torch.randn_like(arguments["x"])
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        assert torch.empty(3).isnan().all()
        results = value_and_grads(squeeze_excite, arguments, grad_y)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in results.items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((0, 6, 5, 7), 1),
        ((2, 6, 0, 7), 1),
        ((2, 6, 5, 0), 1),
        ((0, 6, 0, 7), 1),
        ((0, 6), 1),
        ((2, 0, 6), -1),
        ((0, 5, 6, 3), 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("post_activation", ["identity", "relu"])
def test_empty(excitation: str, shape: tuple[int, ...], dim: int, post_activation: str, dtype: torch.dtype) -> None:
    """An empty batch or map gives what eager gives, gradients included (a mean of nothing is NaN)."""
    arguments = {"x": torch.randn(shape, dtype=dtype), "residual": torch.randn(shape, dtype=dtype)}
    arguments |= weights(excitation, 6, 3, dtype)
    arguments |= {"excitation": excitation, "dim": dim, "post_activation": post_activation}
    grad_y = torch.randn(shape, dtype=dtype)
    expected = value_and_grads(reference.squeeze_excite, arguments, grad_y)
    for name, value in value_and_grads(squeeze_excite, arguments, grad_y).items():
        torch.testing.assert_close(value, expected[name], equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "btc", "frequency"])
@pytest.mark.parametrize("post_activation", ["identity", "relu"])
def test_nan_and_inf_stay_in_their_image(special: float, layout: str, post_activation: str, dtype: torch.dtype) -> None:
    """The same elements are NaN or infinite as eager's, and the other images do not notice."""
    options = {"residual": True, "activation": "silu", "post_activation": post_activation}
    arguments = make_arguments(BY_NAME[layout], dtype, B=4, K=21, **options)
    grad_y = torch.randn_like(arguments["x"])
    clean = value_and_grads(squeeze_excite, arguments, grad_y)
    arguments["x"][(2, *(3 % size for size in arguments["x"].shape[1:]))] = special
    ours = value_and_grads(squeeze_excite, arguments, grad_y)
    eager = value_and_grads(reference.squeeze_excite, arguments, grad_y)
    assert not ours["y"][2].isfinite().all()
    for name in ("y", "x", "residual"):
        for image in (0, 1, 3):
            assert torch.equal(ours[name][image], clean[name][image]), name
        assert torch.equal(ours[name].isnan(), eager[name].isnan()), name
        assert torch.equal(ours[name].isinf(), eager[name].isinf()), name


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("post_activation", ["relu", "relu6", "affine_clamp(1, 0, 0, 1)"])
def test_closed_activation_stops_nan_gradients(special: float, layout: str, post_activation: str) -> None:
    """Where the activation is flat its gradient is 0, whatever arrives: eager selects and does not multiply by 0."""
    arguments = make_arguments(BY_NAME[layout], residual=True, post_activation=post_activation)
    arguments["residual"] = torch.full_like(arguments["x"], -100)  # closed everywhere
    grad_y = torch.full_like(arguments["x"], special)
    expected = value_and_grads(reference.squeeze_excite, arguments, grad_y)
    assert not expected["x"].any()
    for name, value in value_and_grads(squeeze_excite, arguments, grad_y).items():
        assert torch.equal(value, expected[name]), name


def test_signed_zeros_and_denormals(dtype: torch.dtype, isa: str) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 4, -tiny / 4, 1.0], dtype=dtype).repeat(3)[None, None]
    arguments = {"x": x, "fc1_weight": torch.zeros(1, 1, dtype=dtype), "excitation": "one_fc"}  # a scale of 0.5
    y = squeeze_excite(**arguments)
    expected = x * 0.5
    assert torch.equal(y, expected)
    assert torch.equal(y.signbit(), expected.signbit())


@pytest.mark.parametrize("track", [False, True])
def test_fake_tensors_have_the_real_strides(layout: Layout, track: bool) -> None:
    """y, saved and every gradient: the compiler plans with what the kernels return."""
    arguments = make_arguments(layout, residual=True, post_activation="silu")

    def strides(arguments: dict[str, object]) -> dict[str, tuple[int, ...]]:
        x = arguments["x"]
        if not track:
            return {"y": squeeze_excite(**arguments).stride()}
        return {k: v.stride() for k, v in value_and_grads(squeeze_excite, arguments, x).items()}

    real = strides(arguments)
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        assert strides(fake) == real
    meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    if layout.dense:  # .to("meta") makes others dense
        assert strides(meta) == real


def test_float64_is_not_computed_in_float32() -> None:
    arguments = make_arguments(BY_NAME["nchw"], torch.float64)
    y = squeeze_excite(**arguments)
    assert not torch.allclose(squeeze_excite(**convert(arguments, torch.float32)).double(), y, rtol=1e-12, atol=0)
    torch.testing.assert_close(y, reference.squeeze_excite(**arguments), rtol=1e-13, atol=1e-13)

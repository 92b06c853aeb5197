"""The op on a GPU against the reference in float64. Without a GPU, only that the build has the ops it says it has."""

from typing import Any

import pytest
import torch
from se_testing import (
    BY_NAME,
    EXCITATIONS,
    Arguments,
    Layout,
    assert_same_bits,
    exact,
    make_arguments,
    value_and_grads,
)
from torch import Tensor

from senet_fast.se import _C, reference, squeeze_excite

DEVICE = "cuda"
OPS = ["", "_into", "_forward", "_backward"]
needs_gpu = pytest.mark.skipif(
    _C.build_info()["cuda"] is None or not torch.cuda.is_available(), reason="needs a GPU and a build with CUDA"
)
# of a result, relative to its largest number: half types are rounded twice where an activation follows the scale
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def on_gpu(arguments: Arguments) -> Arguments:
    """The same arguments with their strides on the GPU."""
    moved = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            moved[name] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=DEVICE)
            moved[name].copy_(value)
    return arguments | moved


def assert_close(arguments: Arguments) -> None:
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(reference.squeeze_excite, exact(arguments), grad_y.double())
    actual = value_and_grads(squeeze_excite, on_gpu(arguments), grad_y.to(DEVICE))
    largest = {name: value.abs().max().item() for name, value in expected.items()}
    of_weights = max(size for name, size in largest.items() if name.startswith("fc"))  # a bias's sum may cancel
    for name, value in actual.items():
        error = (value.cpu().double() - expected[name]).abs().max().item()
        assert error <= TOLERANCES[value.dtype] * (of_weights if name.startswith("fc") else largest[name]), name


@pytest.mark.parametrize("op", OPS)
def test_ops_are_registered_as_built(op: str) -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"senet_fast::squeeze_excite{op}", "CUDA")
    assert registered == (_C.build_info()["cuda"] is not None)


def test_plan_cuda() -> None:
    plan = _C.plan_cuda(B=32, O=1, K=2048, I=49, item_bytes=2)
    ticket = {"tile": (167, 1, 49), "tiles": (13, 1, 1), "lanes": 8, "images_ahead": 31, "blocks": 396}
    assert {name: plan[name] for name in ticket} == ticket
    small = _C.plan_cuda(B=32, O=1, K=2048, I=49, item_bytes=2, processors=40, l2_bytes=4 << 20)
    assert small["tile"] == (83, 1, 49)
    assert small["blocks"] == 80
    with pytest.raises(ValueError, match="item_bytes is 3; expected 2, 4 or 8"):
        _C.plan_cuda(B=1, O=1, K=1, I=1, item_bytes=3)


def test_plan_cuda_chooses_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    weights_dominate = {"B": 256, "O": 1, "K": 2048, "I": 49, "R": 128, "item_bytes": 2}
    plan = _C.plan_cuda(**weights_dominate)
    assert plan["kernel"] == "cluster"
    assert plan["cluster"] is not None
    assert (plan["cluster"]["blocks"], plan["cluster"]["images"]) == (8, 4)
    assert plan["cluster"]["slice"] == (256, 1, 49)
    ticket = _C.plan_cuda(**weights_dominate, kernel="ticket")
    assert (ticket["kernel"], ticket["cluster"]) == ("ticket", None)
    assert plan["microseconds"] < 0.9 * ticket["microseconds"]
    without_clusters = _C.plan_cuda(**weights_dominate, shared_bytes=0)
    assert without_clusters["kernel"] == "ticket"
    large = {"B": 256, "O": 1, "K": 256, "I": 3136, "R": 16, "item_bytes": 2}
    assert _C.plan_cuda(**large)["kernel"] == "ticket"  # the model's gain is too small to ask more of a GPU
    monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", "cluster")
    assert _C.plan_cuda(**large)["kernel"] == "cluster"
    for what in ({}, {"backward": True}, {"residual": True}, {"backward": True, "residual": True}):
        assert _C.plan_cuda(**large, **what)["kernel"] == "cluster"
    with pytest.raises(ValueError, match="no cluster can hold"):
        _C.plan_cuda(B=1, O=1, K=1, I=1 << 24)
    with pytest.raises(ValueError, match="kernel is 'clusters'; expected 'auto', 'ticket' or 'cluster'"):
        _C.plan_cuda(B=1, O=1, K=1, I=1, kernel="clusters")


@needs_gpu
@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("post_activation", ["identity", "relu", "silu"])
def test_layouts_and_types(layout: Layout, dtype: torch.dtype, excitation: str, post_activation: str) -> None:
    arguments = make_arguments(
        layout, dtype, excitation=excitation, residual=post_activation == "relu", post_activation=post_activation
    )
    assert_close(arguments)


REAL: list[dict[str, Any]] = [
    {"shape": (8, 256, 56, 56), "R": 16},
    {"shape": (5, 2048, 7, 7), "R": 128},
    {"shape": (2, 48, 190, 190), "R": 12},
    {"shape": (257, 72, 28, 28), "R": 24},
]


@needs_gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("real", REAL, ids=lambda real: "x".join(map(str, real["shape"])))
def test_real_shapes(real: dict[str, Any], channels_last: bool, dtype: torch.dtype) -> None:
    B, K, H, W = real["shape"]
    arguments = make_arguments(BY_NAME["nchw"], dtype, B=1, K=K, R=real["R"], residual=True, post_activation="relu")
    form = torch.channels_last if channels_last else torch.contiguous_format
    for name in ("x", "residual"):
        arguments[name] = (torch.randn(B, K, H, W) + 0.2).to(dtype, memory_format=form)
    for name in ("fc1_weight", "fc2_weight"):
        arguments[name] /= arguments[name].shape[1] ** 0.5
    assert_close(arguments)


@needs_gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("post_activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize(
    "shape", [(8, 256, 56, 56), (37, 2048, 7, 7), (5, 72, 28, 28), (3, 1, 300, 40), (9, 30, 15, 15)]
)
def test_clusters(
    shape: tuple[int, int, int, int],
    post_activation: str,
    channels_last: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if torch.cuda.get_device_capability() < (9, 0) or dtype == torch.float64:
        pytest.skip("needs sm_90 and another type than float64")
    B, K, H, W = shape
    arguments = make_arguments(BY_NAME["nchw"], dtype, B=1, K=K, R=max(1, K // 16), residual=post_activation == "relu")
    arguments["post_activation"] = post_activation
    form = torch.channels_last if channels_last else torch.contiguous_format
    for name in ("x", "residual"):
        if isinstance(arguments.get(name), Tensor):
            arguments[name] = (torch.randn(B, K, H, W) + 0.2).to(dtype, memory_format=form)
    for name in ("fc1_weight", "fc2_weight"):
        arguments[name] /= arguments[name].shape[1] ** 0.5
    monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", "cluster")
    assert_close(arguments)


@needs_gpu
def test_kernels_are_named(case: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", "fast")
    with pytest.raises(ValueError, match="SENET_FAST_CUDA_KERNEL is 'fast'; expected 'auto', 'ticket' or 'cluster'"):
        squeeze_excite(**case)


@pytest.fixture(params=["ticket", "cluster"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cluster" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs sm_90")
    monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", request.param)
    return str(request.param)


@pytest.fixture
def case() -> Arguments:
    return on_gpu(make_arguments(BY_NAME["nchw"], B=37, K=200, R=12, residual=True, post_activation="relu"))


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_same_bits_on_streams_beside_others(case: Arguments) -> None:
    grad_y = torch.randn_like(case["x"])
    first = value_and_grads(squeeze_excite, case, grad_y)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for turn in range(100):
        with torch.cuda.stream(streams[turn % len(streams)]):
            results.append(value_and_grads(squeeze_excite, case, grad_y))
    torch.cuda.synchronize()
    for result in results:
        for name, value in result.items():
            assert_same_bits(value, first[name])


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_graph(case: Arguments) -> None:
    with torch.no_grad():
        squeeze_excite(**case)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = squeeze_excite(**case)
        for _ in range(50):
            case["x"].normal_()
            graph.replay()
            assert_same_bits(y, squeeze_excite(**case))


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_in_place_and_prologue(case: Arguments) -> None:
    scale, shift = torch.rand(200, device=DEVICE) + 0.5, torch.randn(200, device=DEVICE)
    with torch.no_grad():
        expected = squeeze_excite(**case, pre_scale=scale, pre_shift=shift, pre_activation="relu")
        x = case["x"]
        y = squeeze_excite(**case, pre_scale=scale, pre_shift=shift, pre_activation="relu", out=x)
        assert y is x
        assert_same_bits(x, expected)


@needs_gpu
def test_more_than_two_to_the_31_elements() -> None:
    x = torch.ones(700, 256, 112, 112, dtype=torch.float16, device=DEVICE)
    weights = {"fc1_weight": torch.ones(1, 256, device=DEVICE) / 256, "fc2_weight": torch.zeros(256, 1, device=DEVICE)}
    with torch.no_grad():
        squeeze_excite(x, **weights, out=x)
    assert x.min().item() == x.max().item() == 0.5


@needs_gpu
def test_device_of_another_tensor_is_refused(case: Arguments) -> None:
    with pytest.raises(ValueError, match="fc1_weight is on cpu; expected the device of x"):
        squeeze_excite(**(case | {"fc1_weight": case["fc1_weight"].cpu()}))

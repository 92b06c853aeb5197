"""The op on a GPU against the reference in float64. Without a GPU, only that the build has the ops it says it has, and
what a call says where there is no driver; `make stand-in` runs all of it without one, with fewer numbers.
"""

from typing import Any

import pytest
import torch
from cuda_testing import DEVICE, assert_close, needs_gpu, on_gpu, poisoned  # noqa: F401
from se_testing import (
    BY_NAME,
    EXCITATIONS,
    STAND_IN,
    Arguments,
    Layout,
    assert_same_bits,
    make_arguments,
    value_and_grads,
)
from torch import Tensor

from senet_fast.se import _C, squeeze_excite

OPS = ["", "_into", "_forward", "_backward"]


@pytest.mark.parametrize("op", OPS)
def test_ops_are_registered_as_built(op: str) -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"senet_fast::squeeze_excite{op}", "CUDA")
    assert registered == (_C.build_info()["cuda"] is not None)


@pytest.mark.skipif(
    (_C.build_info()["cuda"] or {"driver": 1})["driver"] > 0, reason="needs a build with CUDA, no driver"
)
def test_without_a_driver_the_error_is_clear() -> None:
    arguments = make_arguments(BY_NAME["nchw"])
    tensors = [arguments[name] for name in ("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")]
    op, keys = torch.ops.senet_fast.squeeze_excite.default, torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for _ in range(2):  # nor does the first error change what the second says
        with pytest.raises(RuntimeError, match=r"squeeze_excite: asking for the GPU's properties failed: .*driver"):
            op.redispatch(keys, *tensors)


def test_plan_cuda() -> None:
    plan = _C.plan_cuda(B=32, O=1, K=2048, I=49, item_bytes=2)
    ticket = {"tile": (160, 1, 49), "tiles": (13, 1, 1), "lanes": 8, "images_ahead": 21, "blocks": 264}
    assert {name: plan[name] for name in ticket} == ticket
    small = _C.plan_cuda(B=32, O=1, K=2048, I=49, item_bytes=2, processors=40, l2_bytes=4 << 20)
    assert small["tile"] == (80, 1, 49)
    assert small["blocks"] == 80
    one = {"B": 1, "O": 1, "K": 2048, "I": 49, "R": 128, "item_bytes": 2}
    assert _C.plan_cuda(**one)["blocks"] == 26
    assert _C.plan_cuda(**one, backward=True)["blocks"] == 264  # for the gradients of the weights
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


STAGES = [(256, 56), (512, 28), (1024, 14), (2048, 7)]  # of a ResNet-50: channels, pixels of a side


@pytest.mark.parametrize("item_bytes", [2, 4])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_model_of_time_is_near_a_copy(backward: bool, channels_last: bool, item_bytes: int) -> None:
    """By the planner's model, not by a measurement: 32 images, an H100, `pytest -s` prints the table."""
    print(f"\n{'backward' if backward else 'forward'}, {item_bytes} bytes an item, {channels_last=}; us by the model")
    judged = 0
    for channels, side in STAGES:
        rows, columns = (side * side, 1) if channels_last else (1, side * side)
        plan = _C.plan_cuda(32, rows, channels, columns, item_bytes=item_bytes, backward=backward, kernel="auto")
        ours, copy, unfused = plan["microseconds"], plan["microseconds_of_copy"], plan["microseconds_unfused"]
        megabytes = 32 * channels * side * side * item_bytes / 1e6
        print(f"{channels:5}x{side}x{side} {megabytes:6.1f} MB  {plan['kernel']:7} {ours:6.1f}  ", end="")
        print(f"copy {copy:6.1f}  three kernels {unfused:6.1f}")
        if megabytes >= 25:
            judged += 1
            assert ours <= 1.25 * copy, (channels, side, plan)
            assert ours < unfused
    assert judged == (3 if item_bytes == 4 else 2)


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
CLUSTERS = [(8, 256, 56, 56), (37, 2048, 7, 7), (5, 72, 28, 28), (3, 1, 300, 40), (9, 30, 15, 15)]
TURNS = 100
if STAND_IN:  # planes of the same sizes, fewer of them
    REAL = [
        {"shape": (2, 5, 56, 56), "R": 2},
        {"shape": (2, 170, 7, 7), "R": 8},
        {"shape": (1, 2, 190, 190), "R": 1},
        {"shape": (7, 6, 28, 28), "R": 3},
    ]
    CLUSTERS = [(2, 9, 28, 28), (9, 40, 7, 7), (2, 1, 60, 40), (3, 6, 15, 15)]
    TURNS = 5


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
@pytest.mark.parametrize("shape", CLUSTERS)
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


@pytest.fixture
def case() -> Arguments:
    B, K = (5, 40) if STAND_IN else (37, 200)
    return on_gpu(make_arguments(BY_NAME["nchw"], B=B, K=K, R=12, residual=True, post_activation="relu"))


@needs_gpu
@pytest.mark.parametrize("post_activation", ["relu", "silu"], ids=["clamped", "general"])
@pytest.mark.parametrize("wide", [False, True], ids=["", "wide"])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_variants(kernel: str, dtype: torch.dtype, wide: bool, form: torch.memory_format, post_activation: str) -> None:
    """Every compiled kernel, with many tiles an image, 16-byte and single accesses. compute-sanitizer runs these."""
    if kernel == "cluster" and dtype == torch.float64:
        pytest.skip("float64 has no cluster kernels")
    for B, K, side in ((3, 24, 7), (1, 24, 32)) if STAND_IN else ((3, 72, 7), (3, 72, 32)):
        arguments = make_arguments(BY_NAME["nchw"], dtype, K=K, weight_dtype=torch.float32 if wide else dtype)
        arguments |= {"post_activation": post_activation}
        for name in ("x", "residual"):
            arguments[name] = (torch.randn(B, K, side, side) + 0.2).to(dtype, memory_format=form)
        arguments["fc1_weight"] /= 8
        assert_close(arguments)
        given = on_gpu(arguments)
        with torch.no_grad():
            expected = squeeze_excite(**given, pre_activation="relu")
            assert_same_bits(squeeze_excite(**given, pre_activation="relu", out=given["x"]), expected)


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_same_bits_on_streams(case: Arguments) -> None:
    grad_y = torch.randn_like(case["x"])
    first = value_and_grads(squeeze_excite, case, grad_y)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for turn in range(TURNS):
        with torch.cuda.stream(streams[turn % len(streams)]):
            results.append(value_and_grads(squeeze_excite, case, grad_y))
    torch.cuda.synchronize()
    for result in results:
        for name, value in result.items():
            assert_same_bits(value, first[name])


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_same_bits_beside_another_kernel(case: Arguments) -> None:
    """Kernels of another stream hold the processors: few of our blocks run at a time, and none may wait for ever."""
    grad_y, busy = torch.randn_like(case["x"]), torch.randn(1 << (8 if STAND_IN else 28), device=DEVICE)
    first = value_and_grads(squeeze_excite, case, grad_y)
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    results, beside = [], 0
    for _ in range(TURNS):
        with torch.cuda.stream(other):
            busy.mul_(1)  # 2 GB of traffic: longer than our turn takes to be launched
        results.append(value_and_grads(squeeze_excite, case, grad_y))
        beside += not other.query()
    torch.cuda.synchronize()
    assert beside or STAND_IN, "nothing ran beside our kernels"
    for result in results:
        for name, value in result.items():
            assert_same_bits(value, first[name])


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_graphs(case: Arguments) -> None:
    """Two graphs with forward and backward take turns, x changes between the replays."""
    cases = [case, case | {"x": torch.randn_like(case["x"])}]
    grad_y = torch.randn_like(case["x"])
    value_and_grads(squeeze_excite, case, grad_y)
    recorded = []
    for one in cases:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded.append((graph, one, value_and_grads(squeeze_excite, one, grad_y)))
    for _ in range(TURNS // 2):
        for graph, one, results in recorded:
            one["x"].normal_()
            graph.replay()
            for name, value in value_and_grads(squeeze_excite, one, grad_y).items():
                assert_same_bits(results[name], value)


@needs_gpu
def test_a_nan_stays_in_its_image(case: Arguments) -> None:
    expected = squeeze_excite(**case)
    case["x"][3, 5, 0, 0] = float("nan")
    y = squeeze_excite(**case)
    others = [b for b in range(len(y)) if b != 3]
    assert_same_bits(y[others], expected[others])
    assert y[3].isnan().all()


@needs_gpu
def test_no_images(case: Arguments) -> None:
    case |= {"x": case["x"][:0], "residual": case["residual"][:0]}
    result = value_and_grads(squeeze_excite, case, case["x"])
    assert result["y"].shape == case["x"].shape
    assert not result["fc1_weight"].any()


@needs_gpu
def test_compiled_and_under_autocast(case: Arguments, fresh_dynamo: None) -> None:
    compiled = torch.compile(squeeze_excite, fullgraph=True, backend="aot_eager" if STAND_IN else "inductor")
    assert_same_bits(compiled(**case), squeeze_excite(**case))
    half = case | {"x": case["x"].bfloat16(), "residual": case["residual"].bfloat16()}
    with torch.autocast("cuda", torch.bfloat16):
        assert_same_bits(squeeze_excite(**half), squeeze_excite(**half))
        assert squeeze_excite(**half).dtype == torch.bfloat16


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu(case: Arguments) -> None:
    """While the first is the current one."""
    grad_y = torch.randn_like(case["x"])
    first = value_and_grads(squeeze_excite, case, grad_y)
    moved = {name: v.to("cuda:1") if isinstance(v, Tensor) else v for name, v in case.items()}
    for name, value in value_and_grads(squeeze_excite, moved, grad_y.to("cuda:1")).items():
        assert value.device.index == 1
        assert_same_bits(value.to(DEVICE), first[name])


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_in_place_and_prologue(case: Arguments) -> None:
    K = case["x"].shape[1]
    scale, shift = torch.rand(K, device=DEVICE) + 0.5, torch.randn(K, device=DEVICE)
    with torch.no_grad():
        expected = squeeze_excite(**case, pre_scale=scale, pre_shift=shift, pre_activation="relu")
        x = case["x"]
        y = squeeze_excite(**case, pre_scale=scale, pre_shift=shift, pre_activation="relu", out=x)
        assert y is x
        assert_same_bits(x, expected)


@needs_gpu
def test_more_than_two_to_the_31_elements() -> None:
    """4.5 GB, a number of its own in each image: its gate is that number's."""
    if torch.cuda.get_device_properties().total_memory < 24 << 30:
        pytest.skip("needs 24 GB")
    values = torch.arange(700, device=DEVICE).remainder(9).sub(4).half()
    x = values.view(-1, 1, 1, 1).expand(-1, 256, 112, 112).contiguous().requires_grad_()
    weights = {"fc1_weight": torch.ones(1, 256, device=DEVICE) / 256, "fc2_weight": torch.ones(256, 1, device=DEVICE)}
    y = squeeze_excite(x, **weights, activation="identity")
    z = values.double()
    scale = z.sigmoid()
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    # of sum(x * sigmoid(mean x)): the scale, and through the gate 256 channels' worth of x * sigmoid', shared by 256
    for actual, expected in ((y, z * scale), (grad, scale + z * scale * (1 - scale))):
        least, most = actual.flatten(1).aminmax(dim=1)
        assert torch.equal(least, most)
        torch.testing.assert_close(least.double(), expected, rtol=2e-3, atol=2e-3)


@needs_gpu
def test_device_of_another_tensor_is_refused(case: Arguments) -> None:
    with pytest.raises(ValueError, match="fc1_weight is on cpu; expected the device of x"):
        squeeze_excite(**(case | {"fc1_weight": case["fc1_weight"].cpu()}))

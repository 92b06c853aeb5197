"""Values and gradients of the op against the reference, over types, layouts, excitations, epilogues and sizes."""

import itertools
import threading

import pytest
import torch
from se_testing import (
    BY_NAME,
    EXCITATIONS,
    TENSORS,
    Arguments,
    Layout,
    assert_as_exact_as_eager,
    exact,
    make_arguments,
    value_and_grads,
)

from senet_fast.se import _C, reference, squeeze_excite

ALL = {"residual": True, "add_one": True, "post_activation": "leaky_relu(0.25)"}
KINDS = {
    "two_fc": {},
    "residual": {"residual": True},
    "add_one": {"add_one": True},
    "post_activation": {"post_activation": "silu"},
    "all": ALL,
    "one_fc": {"excitation": "one_fc"},
    "one_fc_all": {"excitation": "one_fc", **ALL},
    "channel_conv": {"excitation": "channel_conv"},
    "channel_conv_all": {"excitation": "channel_conv", **ALL},
}
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("kind", KINDS)
def test_layouts(dtype: torch.dtype, layout: Layout, kind: str) -> None:
    assert_as_exact_as_eager(make_arguments(layout, dtype, **KINDS[kind]))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize(("weight_dtype", "bias"), [("same", True), ("float32", True), ("same", False)])
def test_weights(dtype: torch.dtype, isa: str, layout: str, excitation: str, weight_dtype: str, bias: bool) -> None:
    """float32 weights beside any x, missing biases, on each instruction set, with channels beyond a vector's width."""
    kind = dtype if weight_dtype == "same" else torch.float32
    assert_as_exact_as_eager(
        make_arguments(BY_NAME[layout], dtype, K=67, R=33, excitation=excitation, weight_dtype=kind, bias=bias)
    )


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (1, 1, 5, 13), (2, 8, 7, 7), (5, 3, 1, 1), (1, 70, 1, 17), (17, 16, 3, 3), (2, 3, 29, 31)],
    ids=str,
)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_sizes(dtype: torch.dtype, isa: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    B, K, *_ = shape
    layout = Layout("", 1, lambda B, K: shape, lambda x: x.contiguous(memory_format=memory_format))
    assert_as_exact_as_eager(make_arguments(layout, dtype, B=B, K=K, R=max(1, K // 3), post_activation="tanh"))


@pytest.mark.parametrize("taps", [1, 5, 9, 41])
def test_channel_conv_widths(taps: int) -> None:
    """Also wider than twice the 19 channels, where most taps meet only padding."""
    arguments = make_arguments(BY_NAME["nchw"], excitation="channel_conv", taps=taps)
    assert_as_exact_as_eager(arguments)
    flat = arguments | {"fc1_weight": arguments["fc1_weight"].flatten()}
    assert torch.equal(squeeze_excite(**flat), squeeze_excite(**arguments))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("mean", [0, 1])
def test_long_sums(memory_format: torch.memory_format, mean: float) -> None:
    """Over large maps the squeeze and the gradients that sum are no less exact than eager's, which sums in cascades.
    Root mean square over the channels, so that one lucky channel of eager's does not decide.
    """
    x = (torch.randn(1, 16, 700, 700) + mean).contiguous(memory_format=memory_format)
    grad_y = (torch.randn_like(x) + mean) / 700
    arguments: Arguments = {"x": x, "fc1_weight": torch.eye(16), "fc1_bias": torch.zeros(16)}
    arguments |= {"excitation": "one_fc", "gate": "identity"}
    wanted = ["fc1_bias"]  # its gradient is the plain sum of grad_y * x; y over x is the plain mean
    expected = value_and_grads(reference.squeeze_excite, exact(arguments), grad_y.double(), wanted)
    eager = value_and_grads(reference.squeeze_excite, arguments, grad_y, wanted)
    ours = value_and_grads(squeeze_excite, arguments, grad_y, wanted)
    for name, value in ours.items():

        def rms(result: torch.Tensor, name: str = name) -> float:
            return (result.double() - expected[name]).square().mean().sqrt().item()

        rounding = torch.finfo(torch.float32).eps * expected[name].square().mean().sqrt().item()
        assert rms(value) <= 1.5 * rms(eager[name]) + rounding, name


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"], ids=str)
def test_half_results_are_rounded_once(half: torch.dtype, layout: str, isa: str) -> None:
    """Each element of y is the nearest half to the exact value, but for those a float32 rounding away from a tie."""
    arguments = make_arguments(BY_NAME[layout], half, B=4, K=33, residual=True, post_activation="silu")
    expected = reference.squeeze_excite(**exact(arguments))
    y = squeeze_excite(**arguments)
    assert (y != expected.to(half)).float().mean() < 2e-3
    # largest absolute term before the sum, so that cancellation is not counted as an error
    tiny = 1e-6 * (arguments["x"].abs() + arguments["residual"].abs()).double() + torch.finfo(half).smallest_normal
    spacing = torch.finfo(half).eps * expected.abs()
    assert ((y.double() - expected).abs() <= 0.5 * spacing + tiny).all()


@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("post_activation", ["identity", "relu"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"], ids=str)
def test_frozen_inputs(excitation: str, post_activation: str, layout: str) -> None:
    """Whichever inputs want a gradient, they get the same one, bit for bit."""
    arguments = make_arguments(BY_NAME[layout], excitation=excitation, residual=True, post_activation=post_activation)
    names = [name for name in TENSORS if name in arguments]
    grad_y = torch.randn_like(arguments["x"])
    everything = value_and_grads(squeeze_excite, arguments, grad_y)
    subsets = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(1, len(names)))
    for wanted in subsets:
        for name, value in value_and_grads(squeeze_excite, arguments, grad_y, wanted).items():
            assert torch.equal(value, everything[name]), (wanted, name)


def test_instruction_sets_agree(dtype: torch.dtype, layout: Layout) -> None:
    """The same bits from every instruction set with fused multiply-add. x86-64's baseline has none: it rounds twice."""
    before = _C.isa()
    arguments = make_arguments(layout, dtype, K=67, R=33, residual=True, activation="silu", post_activation="gelu_tanh")
    grad_y = torch.randn_like(arguments["x"])
    results = {}
    try:
        for isa in set(_C.isas()) - {"baseline"}:
            _C.select_isa(isa)
            results[isa] = value_and_grads(squeeze_excite, arguments, grad_y)
    finally:
        _C.select_isa(before)
    first, *others = results.values()
    for other in others:
        for name, value in other.items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("kind", ["two_fc", "residual", "all", "one_fc", "channel_conv_all"])
def test_plans_agree(dtype: torch.dtype, layout: Layout, kind: str) -> None:
    """The same bits however the call is cut: teams, tiles, streamed, overlapped; forced, as inputs are too small."""
    arguments = make_arguments(layout, dtype, K=67, R=33, **KINDS[kind])
    grad_y = torch.randn_like(arguments["x"])
    results = []
    try:
        cuts = [
            (1, 100, False, False),
            (2, 100, True, False),
            (3, 1, False, True),
            (1, 2, True, False),
            (2, 2, True, True),
        ]
        for threads, tile, stream, overlap in cuts:
            _C.force_plan(threads=threads, images_per_tile=tile, stream=stream, overlap=overlap)
            results.append(value_and_grads(squeeze_excite, arguments, grad_y))
    finally:
        _C.force_plan()
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), name


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(4, 256, 28, 28), (2, 64, 97, 61), (1, 7, 301, 150)], ids=str)
def test_threads_agree(excitation: str, memory_format: torch.memory_format, shape: tuple[int, ...]) -> None:
    """The same bits with any number of threads. Every shape has work for several: a thread gets 16k elements."""
    layout = Layout("", 1, lambda B, K: (B, K, *shape[2:]), lambda x: x.contiguous(memory_format=memory_format))
    arguments = make_arguments(
        layout, B=shape[0], K=shape[1], R=64, excitation=excitation, residual=True, post_activation="silu"
    )
    grad_y = torch.randn_like(arguments["x"])
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(value_and_grads(squeeze_excite, arguments, grad_y))
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), name


def test_callers_threads() -> None:
    """Eight Python threads at once, each with its own tensors, get what one alone gets."""
    cases = [make_arguments(BY_NAME[name], residual=True) for name in ("nchw", "channels_last", "btc", "nct") * 2]
    alone = [value_and_grads(squeeze_excite, case, torch.ones_like(case["x"])) for case in cases]
    together: dict[int, dict[str, torch.Tensor]] = {}

    def work(i: int) -> None:
        for _ in range(20):
            together[i] = value_and_grads(squeeze_excite, cases[i], torch.ones_like(cases[i]["x"]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert all(torch.equal(together[i][name], value) for name, value in expected.items())

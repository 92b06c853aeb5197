"""What the GPU's binding must do beside computing: memory, streams, graphs, errors. Run by `make stand-in`.

The stand-in's own rules hold in every test (cuda_stand_in.py); the last tests show that it notices what breaks them.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cuda_stand_in
import pytest
import torch
from cuda_stand_in import device, settings
from se_testing import BY_NAME, Arguments, assert_same_bits, make_arguments, value_and_grads
from torch import Tensor

from senet_fast.se import squeeze_excite

HERE = Path(__file__).resolve().parent
KINDS = ["ticket", "cluster"]


def arguments(index: int = 0, **options: int) -> Arguments:
    made = make_arguments(BY_NAME["nchw"], **({"B": 2, "K": 12, "R": 3} | options))
    return {name: v.to(f"cuda:{index}") if isinstance(v, Tensor) else v for name, v in made.items()}


@pytest.fixture(params=KINDS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", request.param)
    return str(request.param)


@pytest.fixture
def tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", "ticket")


def run(source: str, *, code: int = 0) -> str:
    """A program of its own, which finds the stand-in and the helpers of the tests."""
    begin = "import cuda_stand_in, os, sys, torch\nfrom binding_tests import *\n"
    path = os.pathsep.join([str(HERE), str(cuda_stand_in.ROOT / "tests/se"), str(cuda_stand_in.ROOT)])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", begin + source], capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr


# ---- which kernels ran ----


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_kernel_that_is_named_runs(kernel: str, backward: bool) -> None:
    given = arguments()
    launches, clusters = settings.launches, settings.clusters
    if backward:
        value_and_grads(squeeze_excite, given, torch.randn_like(given["x"]))
    else:
        squeeze_excite(**given)
    assert settings.clusters - clusters == (0 if kernel == "ticket" else 1 + backward)
    # the gradients of the weights are a launch more
    assert settings.launches - launches == (1 + backward if kernel == "ticket" else 1 + 2 * backward)


# ---- graphs ----


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("warm", [False, True], ids=["", "warm"])
def test_a_graph_holds_kernels_alone(warm: bool) -> None:
    given = arguments()
    expected = squeeze_excite(**given) if warm else None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = squeeze_excite(**given)
    assert graph.kinds == ["kernel"]  # type: ignore[attr-defined]
    for _ in range(2):
        graph.replay()
        assert_same_bits(y, squeeze_excite(**given) if expected is None else expected)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_nothing_is_kept_in_a_pool(backward: bool) -> None:
    """What torch.compile(mode="reduce-overhead") checks after the warm-up in a graph's pool, and raises about."""
    given = arguments(B=3)  # of this shape for the first time
    grad_y = torch.randn_like(given["x"])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.Stream())
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), cuda_stand_in.Pool() as pool:
        if backward:
            results = [*value_and_grads(squeeze_excite, given, grad_y).values()]
        else:
            with torch.no_grad():
                results = [squeeze_excite(**given)]
    assert pool.live() == sorted(t.data_ptr() for t in results)


@pytest.mark.usefixtures("kernel")
def test_the_first_call_may_be_recorded() -> None:
    run(
        """
given = arguments()
graph = torch.cuda.CUDAGraph()
with torch.no_grad(), torch.cuda.graph(graph):
    y = squeeze_excite(**given)
graph.replay()
assert_same_bits(y, squeeze_excite(**given))
assert not device.take_faults()
"""
    )


@pytest.mark.usefixtures("kernel")
def test_graphs_run_beside_each_other_and_beside_calls() -> None:
    given = [arguments(B=batch) for batch in (2, 3, 2)]
    expected = [squeeze_excite(**one) for one in given]
    graphs, results = [], []
    for one in given:
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            results.append(squeeze_excite(**one))
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    for turn in range(3):
        for place, graph in enumerate(graphs):  # nothing orders the streams
            with torch.cuda.stream(streams[(place + turn) % 3]):
                graph.replay()
        with torch.cuda.stream(streams[3]):
            y = squeeze_excite(**given[0])
        torch.cuda.synchronize()
        for actual, wanted in zip([*results, y], [*expected, expected[0]], strict=True):
            assert_same_bits(actual, wanted)
            actual.fill_(0)


@pytest.mark.usefixtures("kernel")
def test_a_graph_runs_beside_calls_on_the_stream_that_recorded_it() -> None:
    given = arguments()
    stream, other = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        expected = squeeze_excite(**given)
    with torch.cuda.graph(graph, stream=stream):
        y = squeeze_excite(**given)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        again = squeeze_excite(**given)
    with torch.cuda.stream(other):  # nothing orders the two
        graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(y, expected)
    assert_same_bits(again, expected)


@pytest.mark.usefixtures("tickets")
def test_a_graph_that_ends_gives_its_counters_back() -> None:
    given = arguments()
    for turn in range(20):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = squeeze_excite(**given)
        graph.replay()
        assert_same_bits(y, squeeze_excite(**given))
        torch.cuda.synchronize()
        if turn == 0:
            mallocs = settings.mallocs
        del graph
    assert settings.mallocs == mallocs


# ---- counters ----


@pytest.mark.usefixtures("tickets")
def test_counters_are_a_streams_own() -> None:
    given = arguments(B=4)
    expected = squeeze_excite(**given)
    torch.cuda.synchronize()
    results = []
    for stream in [torch.cuda.Stream() for _ in range(3)]:
        with torch.cuda.stream(stream):
            results.append(squeeze_excite(**given))
    torch.cuda.synchronize()
    for y in results:
        assert_same_bits(y, expected)


@pytest.mark.usefixtures("tickets")
def test_counters_are_allocated_once() -> None:
    given = arguments(B=5)
    squeeze_excite(**given)
    mallocs = settings.mallocs
    for _ in range(5):
        squeeze_excite(**given)
    assert settings.mallocs == mallocs


@pytest.mark.usefixtures("tickets")
def test_counters_grow_with_the_batch() -> None:
    small, large = arguments(), make_arguments(BY_NAME["matrix"], B=1500, K=2, R=1)
    large = {name: v.cuda() if isinstance(v, Tensor) else v for name, v in large.items()}
    before, y = squeeze_excite(**small), squeeze_excite(**large)
    assert_same_bits(squeeze_excite(**small), before)
    torch.testing.assert_close(
        y.cpu(), squeeze_excite(**{n: getattr(v, "cpu", lambda v=v: v)() for n, v in large.items()})
    )


@pytest.mark.usefixtures("tickets")
def test_after_a_launch_that_failed_counters_are_zero_again() -> None:
    given = arguments()
    expected = squeeze_excite(**given)
    settings.failure, settings.half_done = 719, True
    failed = 0
    for calls in range(20):
        settings.fail_after = calls
        try:
            squeeze_excite(**given)
        except RuntimeError as error:
            assert "failed: unspecified launch failure" in str(error)  # noqa: PT017
            failed += 1
        settings.fail_after = -1
        assert_same_bits(squeeze_excite(**given), expected)
    assert failed > 3


def test_the_process_releases_its_counters() -> None:
    """The stand-in ends a process otherwise in which memory of cudaMalloc's is left."""
    run("os.environ['SENET_FAST_CUDA_KERNEL'] = 'ticket'\nfor i in range(2): squeeze_excite(**arguments(i)).cpu()")


def test_a_forked_process_leaves_its_parents_counters_alone() -> None:
    run(
        """
os.environ["SENET_FAST_CUDA_KERNEL"] = "ticket"
squeeze_excite(**arguments()).cpu()
child = os.fork()
if child == 0:
    sys.exit(0)  # with all that is done at the end; the stand-in ends a process with 86 that calls CUDA after a fork
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
squeeze_excite(**arguments()).cpu()
"""
    )


# ---- errors ----


def test_a_question_without_an_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is out of memory for a moment does not end the cluster kernels for this shape."""
    settings.failure = 2
    for calls in range(12):
        given = arguments(B=1, K=20 + calls)  # plans are kept by shape
        monkeypatch.setenv("SENET_FAST_CUDA_KERNEL", "cluster")
        settings.fail_after = calls
        with contextlib.suppress(RuntimeError, ValueError):  # it may fail or do without clusters: the next call counts
            squeeze_excite(**given)
        settings.fail_after = -1
        clusters = settings.clusters
        squeeze_excite(**given)
        assert settings.clusters == clusters + 1


@pytest.mark.usefixtures("kernel")
def test_an_answer_is_asked_for_once() -> None:
    given = arguments(K=50)
    squeeze_excite(**given)
    probes = settings.probes
    squeeze_excite(**given)
    assert settings.probes == probes


@pytest.mark.usefixtures("kernel")
def test_an_error_is_said_and_not_left_behind() -> None:
    given = arguments()
    expected = squeeze_excite(**given)
    settings.fail_after, settings.failure = 0, 719
    with pytest.raises(RuntimeError, match=r"squeeze_excite: .* failed: unspecified launch failure"):
        squeeze_excite(**given)
    assert_same_bits(squeeze_excite(**given), expected)


@pytest.mark.usefixtures("kernel")
def test_any_number_of_resident_blocks() -> None:
    given = arguments(B=3)
    expected = squeeze_excite(**given)
    torch.cuda.synchronize()
    for resident in (1, 2, 8):
        settings.resident = resident
        assert_same_bits(squeeze_excite(**given), expected)


# ---- torch ----


@pytest.mark.usefixtures("kernel")
def test_opcheck_on_the_device() -> None:
    given = {name: v.detach().requires_grad_() for name, v in arguments().items() if isinstance(v, Tensor)}
    torch.library.opcheck(torch.ops.senet_fast.squeeze_excite.default, tuple(given.values()))


def test_compiled_without_inductor(fresh_dynamo: None) -> None:
    """Inductor itself would want Triton for this device."""
    given = arguments()
    compiled: Callable[..., Tensor] = torch.compile(squeeze_excite, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(**given), squeeze_excite(**given))


def test_work_is_done_on_the_current_stream() -> None:
    given = arguments()
    expected = squeeze_excite(**given)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = squeeze_excite(**given)
    assert not stream.query()
    stream.synchronize()
    assert_same_bits(y, expected)


# ---- that the stand-in notices ----


def test_a_stream_that_is_not_waited_for_is_noticed() -> None:
    given = arguments()
    stream = torch.cuda.Stream()
    given["x"] = squeeze_excite(**given)
    with torch.cuda.stream(stream):
        squeeze_excite(**given)
    assert set(device.take_faults()) == {"a launch is given memory of a stream that it does not wait for"}
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        squeeze_excite(**given)
    torch.cuda.synchronize()


def test_host_code_cannot_touch_the_device() -> None:
    source = "import ctypes\nctypes.string_at(arguments()['x'].data_ptr(), 4)"
    run(source, code=-11)


RUNTIME = """
import ctypes
library, p = ctypes.CDLL(str(cuda_stand_in.BUILD / "libstand_in.so")), ctypes.c_void_p()
malloc, free = library._Z10cudaMallocPPvm, library._Z8cudaFreePv
malloc(ctypes.byref(p), 64)
"""


def test_memory_that_is_left_at_exit_is_noticed() -> None:
    assert "1 allocations of cudaMalloc are left at exit" in run(RUNTIME, code=86)


def test_cuda_in_a_forked_process_is_noticed() -> None:
    fork = "child = os.fork()\nif child:\n    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    assert "is called in a forked process" in run(RUNTIME + "free(p)\n" + fork + "malloc(ctypes.byref(p), 64)", code=86)


@pytest.mark.usefixtures("tickets")
def test_counters_that_are_not_zero_are_noticed() -> None:
    given = arguments()
    stream = torch.cuda.Stream()  # has none yet
    torch.cuda.synchronize()
    settings.garbage = 0x55555555
    with torch.cuda.stream(stream):
        y = squeeze_excite(**given)
    torch.cuda.synchronize()
    assert y.isnan().all()


def test_a_deadlock_is_noticed() -> None:
    """The first ticket is never drawn, so that the second, of the same image, waits for ever: the process ends."""
    source = """
os.environ["SENET_FAST_CUDA_KERNEL"] = "ticket"
cuda_stand_in.settings.garbage = 1
squeeze_excite(**arguments(B=1)).cpu()
"""
    said = run(source, code=86)
    assert "deadlock: no thread can go on" in said
    assert "tickets.cuh" in said  # where each block waits

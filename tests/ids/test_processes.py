"""Threads, forks, signals, imports, and calls from other Cython code."""

import multiprocessing
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from functools import partial
from pathlib import Path

import needs
import numpy as np
import pytest
from ids_testing import LIMIT_S, ROOT, FakeClock, Generator, Program, in_child, in_threads, join, run_program

from senet_fast.ids import LOCAL, TWITTER, WIDE, ForkedError, Layout, Snowflake, SnowflakeTimeout


@pytest.mark.parametrize("bulk", [False, True], ids=["next_id", "fill"])
@pytest.mark.parametrize("layout", [TWITTER, LOCAL], ids=["TWITTER", "LOCAL"])
def test_threads(generator_class: Generator, layout: Layout, bulk: bool, worker_id: int) -> None:
    generator = generator_class(min(worker_id, layout.worker.max), layout)
    outs = np.zeros((4, 5000), np.int64)
    barrier = threading.Barrier(4)

    def work(out: np.ndarray) -> None:
        barrier.wait(LIMIT_S)
        if bulk:
            for part in np.split(out, 10):
                generator.fill(part)
        else:
            for i in range(out.size):
                out[i] = generator.next_id()

    in_threads(partial(work, out) for out in outs)
    assert (np.diff(outs) > 0).all()
    assert np.unique(outs).size == outs.size


def test_generators_that_are_made_at_once(generator_class: Generator, own_layout: Layout) -> None:
    """They find one state, also without the GIL."""
    outs = np.zeros((8, 300), np.int64)
    barrier = threading.Barrier(len(outs))

    def work(out: np.ndarray) -> None:
        barrier.wait(LIMIT_S)
        for i in range(out.size):
            out[i] = generator_class(i, own_layout).next_id()

    in_threads(partial(work, out) for out in outs)
    assert np.unique(outs).size == outs.size


def test_the_gil_stays_off() -> None:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("needs a free-threaded CPython")
    run_program("import sys, senet_fast.ids; assert not sys._is_gil_enabled()", options="-W error")


def test_a_forked_child_is_refused(generator_class: Generator, worker_id: int) -> None:
    generator = generator_class(worker_id)
    before = generator.next_id()
    out = np.zeros(1000, np.int64)
    assert in_child(generator.next_id) == ForkedError
    assert in_child(generator.try_next) == ForkedError
    assert in_child(lambda: generator.next_ids(3)) == ForkedError
    assert in_child(lambda: generator.fill(out)) == ForkedError
    assert in_child(lambda: next(generator)) == ForkedError
    assert in_child(lambda: generator_class(worker_id)) == ForkedError
    assert generator.next_id() > before


def test_a_forked_child_may_use_another_worker(generator_class: Generator, worker_id: int) -> None:
    generator_class(worker_id).next_id()
    assert in_child(lambda: generator_class(worker_id + 300).next_ids(5000)) is None


def expect_forked_error(generator: Snowflake) -> None:
    try:
        generator.next_id()
    except ForkedError:
        sys.exit(7)


def test_multiprocessing(generator_class: Generator, worker_id: int) -> None:
    generator = generator_class(worker_id)
    child = multiprocessing.get_context("fork").Process(target=expect_forked_error, args=(generator,))
    child.start()
    child.join(LIMIT_S)
    child.kill()
    assert child.exitcode == 7
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        multiprocessing.get_context("spawn").Process(target=expect_forked_error, args=(generator,)).start()


class Alarm(Exception):
    pass


@pytest.mark.parametrize("bulk", [False, True], ids=["next_id", "fill"])
def test_a_signal_handler_ends_the_wait(generator_class: Generator, bulk: bool, fake_clock: FakeClock) -> None:
    def handler(number: int, frame: object) -> None:
        raise Alarm

    generator = generator_class(1, clock=fake_clock, timeout=LIMIT_S)
    generator.next_ids(4096)
    previous = signal.signal(signal.SIGALRM, handler)
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Alarm):
            generator.next_ids(1000) if bulk else generator.next_id()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - started < 10


def test_ctrl_c_ends_a_long_fill() -> None:
    program = """
        import numpy as np
        from senet_fast.ids import Snowflake
        out = np.zeros(100_000_000, np.int64)  # half a minute at 4.1 million a second
        print("filling", flush=True)
        Snowflake(1).fill(out)
    """
    with Program(program) as filling:
        assert filling.line() == "filling"
        time.sleep(0.1)
        filling.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        filling.process.wait(LIMIT_S)
        assert time.monotonic() - started < 10  # it takes 0.1 s where nothing else runs
        assert "KeyboardInterrupt" in filling.errors()


def test_a_signal_that_another_thread_receives_ends_a_fill(generator_class: Generator) -> None:
    """It interrupts no sleep of the main thread, where its handler must run; the fill has to look for it."""
    generator = generator_class(layout=Layout(timestamp=41, sequence=2, epoch_ms=1_600_000_000_000))
    out = np.zeros(4000, np.int64)  # a second
    done = threading.Event()
    receiver = threading.Thread(target=done.wait, daemon=True)
    receiver.start()
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt):
            generator.fill(out)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.signal(signal.SIGALRM, previous)
        done.set()
        join(receiver)
    issued = np.flatnonzero(out).size
    assert 0 < issued < out.size
    assert (out[:issued] > 0).all()


@pytest.mark.parametrize("bulk", [False, True], ids=["next_id", "fill"])
def test_waiting_costs_little_cpu(bulk: bool) -> None:
    generator = Snowflake(layout=Layout(timestamp=41, sequence=4, epoch_ms=1_600_000_000_000 + bulk))
    out = np.zeros(3200, np.int64)
    generator.next_id()
    cpu, started = time.thread_time(), time.monotonic()
    if bulk:
        generator.fill(out)
    else:
        for _ in range(out.size):
            generator.next_id()
    elapsed = time.monotonic() - started
    assert elapsed > 0.19  # 200 ticks of 16
    assert (time.thread_time() - cpu) / elapsed < 0.25


@pytest.mark.parametrize("bulk", [False, True], ids=["next_id", "fill"])
def test_others_run_while_a_call_waits(generator_class: Generator, bulk: bool) -> None:
    layout = Layout(timestamp=2, sequence=1, epoch_ms=1_600_000_000_000 + bulk, tick_ms=10**12)  # 31 years
    generator = generator_class(layout=layout, timeout=1)
    generator.next_ids(2)
    call = (lambda: generator.next_ids(1)) if bulk else generator.next_id
    turns: list[int] = []

    def count_turns() -> None:
        while not waited:
            turns.append(1)
            time.sleep(0.001)

    def wait() -> None:
        try:
            with pytest.raises(SnowflakeTimeout):
                call()
        finally:
            waited.append(1)

    waited: list[int] = []
    in_threads([wait, count_turns])
    assert len(turns) > 20  # of about 900


def test_imports() -> None:
    program = """
        import sys
        import senet_fast.ids
        generator = senet_fast.ids.Snowflake(1)
        generator.decode(generator.next_id())
        import array
        generator.fill(array.array("q", [0] * 5000))
        unwanted = {"torch", "numpy", "senet_fast.se"} & sys.modules.keys()
        assert not unwanted, unwanted
        generator.next_ids(3)
        assert "numpy" in sys.modules
    """
    run_program(program)


def test_next_ids_without_numpy(generator_class: Generator, worker_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_class(worker_id)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"senet-fast\[ids\].*`pip install numpy`"):
        generator.next_ids(3)


def test_without_the_compiled_module() -> None:
    program = """
        import sys
        sys.modules["senet_fast.ids._snowflake"] = None
        try:
            import senet_fast.ids
        except ImportError as error:
            assert "SENET_FAST_SE=0 pip install ." in str(error), error
            assert "make build" in str(error), error
        else:
            raise SystemExit("imported")
    """
    run_program(program)


CALLER = """
from libc.stdint cimport int64_t
from senet_fast.ids._snowflake cimport Snowflake


def issue_sum(Snowflake generator, int n):
    cdef int64_t last = 0, number
    with nogil:
        for _ in range(n):
            number = generator.issue()
            assert number > last
            last = number
    return last


def issue_into(Snowflake generator, int64_t[::1] out):
    with nogil:
        generator.issue_run(&out[0], out.shape[0], False)
"""


@pytest.mark.slow
def test_cimport(tmp_path: Path, worker_id: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Cython module calls the generator without Python, in plain C and without any header."""
    cython = needs.library("Cython.Compiler.Main")
    source = tmp_path / "caller.pyx"
    source.write_text("# cython: language_level=3, freethreading_compatible=True\n" + CALLER)
    monkeypatch.chdir(tmp_path)
    result = cython.compile([str(source)], cython.CompilationOptions(include_path=[str(ROOT)]))
    assert result.num_errors == 0
    library = tmp_path / f"caller{sysconfig.get_config_var('EXT_SUFFIX')}"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(
        [*compiler, "-O0", "-shared", "-fPIC", include, "caller.c", "-o", str(library)], check=True, timeout=240
    )
    monkeypatch.syspath_prepend(tmp_path)
    import caller

    generator = Snowflake(worker_id % 64, WIDE)
    last = caller.issue_sum(generator, 100_000)
    out = np.zeros(100_000, np.int64)
    caller.issue_into(generator, out)
    assert last < out[0]
    assert (np.diff(out) > 0).all()

"""What signal handlers, finalizers and other threads may do in the midst of anything: each step of the code is
interrupted once, by a call that a handler could make there.
"""

import gc
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from ids_testing import LIMIT_S, FakeClock, Generator, Table, in_child, run_program, wait_for

from senet_fast.ids import Grant, Layout, LeaseExpired, PythonSnowflake
from senet_fast.ids.leases import LockFile

PACKAGE = str(Path(sys.modules[PythonSnowflake.__module__].__file__ or "").parent)


def interrupted(call: Callable[[], object], step: int, handler: Callable[[], object]) -> bool:
    """Runs `call`, and `handler` before its bytecode of number `step` in the package; whether there is such a one."""
    steps = itertools.count()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(steps) == step:
            handler()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return next(steps) > step


def test_the_means_of_these_tests(worker_id: int) -> None:
    generator = PythonSnowflake(worker_id)
    reached = []
    steps = [step for step in range(0, 2000, 100) if interrupted(generator.next_id, step, lambda: reached.append(1))]
    assert len(steps) == len(reached) > 1


@pytest.mark.parametrize("kind", ["raise", "share", "file"])
def test_a_claim_within_a_claim(kind: str, worker_id: int, tmp_path: Path) -> None:
    """Of the twin; the compiled class claims in one instruction."""
    clock = FakeClock(1_800_000_000_000)
    options: dict[str, Any] = {"file": tmp_path / "last"} if kind == "file" else {"on_fork": kind}
    generator = PythonSnowflake(worker_id, clock=clock, **options)
    ids: list[int] = []
    draw = lambda: ids.append(generator.next_id())  # noqa: E731
    claim = lambda: ids.extend(generator._claim(3, 0))  # noqa: E731
    for step in itertools.count():
        clock.now_ms += 1
        more = interrupted(claim, step, draw)
        latest = max(ids)
        draw()
        assert ids[-1] > latest
        if not more:
            break
    assert step > 100
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_a_generator_made_while_one_is_made(generator_class: Generator, own_layout: Layout) -> None:
    """Of a new worker, and of one that was given back: both issue from one state."""
    clock = FakeClock(1_800_000_000_000)
    for step in itertools.count():
        made: list[Any] = []

        def make(worker_id: int = step // 2 % 1024, made: list[Any] = made) -> None:
            made.append(
                generator_class(lease=Table(Grant(worker_id), renew_every=None), layout=own_layout, clock=clock)
            )

        more = interrupted(make, step, make)
        ids = [number for _ in range(3) for generator in made for number in generator.next_ids(2).tolist()]
        assert len(set(ids)) == len(ids)
        made[0].close()  # for all: the next step finds it closed
        with pytest.raises(LeaseExpired):
            made[-1].next_id()
        clock.now_ms += 1
        if not more:
            break
    assert step > 50


@pytest.mark.parametrize("threaded", [False, True])
def test_closing_within_closing(threaded: bool, generator_class: Generator, own_layout: Layout) -> None:
    class Counted(Table):
        held = 0

        def acquire(self, layout: Layout) -> Grant:
            self.held += 1
            return super().acquire(layout)

        def release(self, unused_from_ms: int) -> None:
            super().release(unused_from_ms)
            self.held -= 1

    for step in itertools.count():
        until_ms = time.time_ns() // 1_000_000 + 60_000 if threaded else None
        lease = Counted(Grant(step % 1024, 0, until_ms), renew_every=60)
        generator = generator_class(lease=lease, layout=own_layout)
        more = interrupted(generator.close, step, lambda generator=generator: (generator.close(), generator.close()))  # type: ignore[misc]
        assert lease.held == 0
        assert len(lease.released) == 1
        with pytest.raises(LeaseExpired, match="was given back"):
            generator.next_id()
        if not more:
            break
    assert step > 30


@pytest.fixture
def quick_gc() -> Iterator[None]:
    """A collection looks at what the test makes, and not at all that others have imported, which takes 0.3 s."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_gc")
def test_closing_while_a_lock_file_is_looked_at(generator_class: Generator, own_layout: Layout, tmp_path: Path) -> None:
    """The handler comes while the call renews, or acquires again what was lost; nothing stays locked."""
    clock = FakeClock(0)
    for lost in (False, True):
        for step in itertools.count(0, 5 if lost else 1):
            clock.now_ms = time.time_ns() // 1_000_000
            generator = generator_class.acquire(LockFile(tmp_path), own_layout, clock=clock)
            assert generator.worker_id == 0
            clock.now_ms += 500  # to the end of the first look; a last ID a second ahead is passed over
            if lost:
                next((tmp_path).glob("*/0")).unlink()
            try:
                more = interrupted(generator.try_next, step, generator.close)
            except LeaseExpired:
                more = True
            generator.close()
            with pytest.raises(LeaseExpired):
                generator.next_id()
            if step % 50 == 0:
                gc.collect()  # the function that traces holds itself, and the generator
            if not more:
                break
        assert step > (200 if lost else 50)


def test_another_thread_waits_until_it_is_closed(generator_class: Generator, worker_id: int) -> None:
    began, go_on = threading.Event(), threading.Event()

    class Slow(Table):
        def release(self, unused_from_ms: int) -> None:
            began.set()
            go_on.wait(LIMIT_S)
            super().release(unused_from_ms)

    lease = Slow(Grant(worker_id))
    generator = generator_class(lease=lease)
    closers = [threading.Thread(target=generator.close) for _ in range(2)]
    closers[0].start()
    began.wait(LIMIT_S)
    closers[1].start()
    time.sleep(0.05)
    assert closers[1].is_alive()
    go_on.set()
    for closer in closers:
        closer.join(LIMIT_S)
    assert lease.released
    assert not any(closer.is_alive() for closer in closers)


def test_a_fork_while_another_thread_looks(generator_class: Generator, own_layout: Layout, tmp_path: Path) -> None:
    """The thread is not there in the child, which must not wait for it."""
    began, go_on = threading.Event(), threading.Event()

    class Slow(LockFile):
        is_slow = False

        def renew(self) -> int:
            if self.is_slow:
                began.set()
                go_on.wait(LIMIT_S)
            return super().renew()

    clock = FakeClock(time.time_ns() // 1_000_000)
    lease = Slow(tmp_path)
    generator = generator_class.acquire(lease, own_layout, clock=clock)
    clock.now_ms += 1000
    lease.is_slow = True
    thread = threading.Thread(target=generator.next_id)
    thread.start()
    began.wait(LIMIT_S)

    def draw() -> None:
        go_on.set()  # of the child
        assert generator.try_next() is not None

    assert in_child(draw) is None
    go_on.set()
    thread.join(LIMIT_S)
    generator.close()


def test_signals_that_close_what_is_being_closed(generator_class: Generator) -> None:
    """SIGTERM again and again, while a store takes a while to answer."""
    program = f"""
import os, signal, threading, time
from senet_fast.ids import {generator_class.__name__} as Generator
from senet_fast.ids.leases import Grant
class Slow:
    renew_every = 60
    def acquire(self, layout): return Grant(5, 0, 2**42)
    def renew(self): return 2**42
    def release(self, unused): time.sleep(0.3); print("released", flush=True)
ids = Generator.acquire(Slow())
ids.next_id()
handled = 0
def handler(*_):
    global handled
    handled += 1
    ids.close()
signal.signal(signal.SIGTERM, handler)
done = threading.Event()
def storm():
    while not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.0005)
threading.Thread(target=storm, daemon=True).start()
ids.close()
done.set()
print("closed", handled > 0)
"""
    assert run_program(program).split() == ["released", "closed", "True"]


def test_ids_in_a_signal_handler(generator_class: Generator, worker_id: int) -> None:
    generator = generator_class(worker_id)
    within: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: within.append(generator.next_id()))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    ids: list[int] = []
    try:
        wait_for(lambda: ids.extend(generator.next_id() for _ in range(100)) or len(within) > 100)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len({*ids, *within}) == len(ids) + len(within)

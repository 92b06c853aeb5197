"""One state for several processes: shared with forked children, or in a file. And what comes of bursts."""

import json
import os
import threading
import time
from array import array
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ids_testing import FakeClock, Generator, Program, in_child, join, run_program, wait_for

from senet_fast.ids import (
    LOCAL,
    SONYFLAKE,
    TWITTER,
    WIDE,
    ClockMovedBackwards,
    ClockOutOfRange,
    ForkedError,
    Layout,
    Snowflake,
    SnowflakeTimeout,
    _system,
    _wordfile,
)

# libc's fork() runs no hook of Python's, which is what these tests are about, and why each runs in an interpreter of
# one thread: if another had just asked for the GIL, the child would wait for it to take it, for ever.
FORKS = """
import ctypes, mmap, os, sys
import numpy as np
from senet_fast import ids
fork = {"os.fork": os.fork, "libc fork": ctypes.PyDLL(None).fork}[sys.argv[1]]
def wait(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""

SHARE = (
    FORKS
    + """
generator = getattr(ids, sys.argv[2])(1, on_fork="share")
first = generator.next_id()
outs = np.frombuffer(mmap.mmap(-1, 4 * 3000 * 8), np.int64).reshape(4, 3000)
children = []
for out in outs[1:]:
    pid = fork()
    if pid == 0:
        for part in np.split(out, 3):
            generator.fill(part)
        os._exit(0)
    children.append(pid)
generator.fill(outs[0])
for pid in children:
    wait(pid)
assert (np.diff(outs) > 0).all()
assert np.unique(outs).size == outs.size
assert first < outs.min() <= outs.max() < generator.next_id()
"""
)


@pytest.mark.parametrize("fork", ["os.fork", "libc fork"])
def test_forked_children_share_the_state(generator_class: Generator, fork: str) -> None:
    run_program(SHARE, fork, generator_class.__name__)


REFUSE = (
    FORKS
    + """
generator = ids.Snowflake(1)
before = generator.next_id()
pid = fork()
if pid == 0:
    try:
        generator.next_id()
    except ids.ForkedError:
        os._exit(0)
    os._exit(1)
wait(pid)
assert generator.next_id() > before
"""
)


def test_a_child_of_libc_fork_is_refused() -> None:
    run_program(REFUSE, "libc fork")


@pytest.mark.slow
def test_a_fork_while_another_thread_fills(worker_id: int) -> None:
    generator, shared = Snowflake(worker_id), Snowflake(worker_id % 64, WIDE, on_fork="share")
    stop = threading.Event()

    def fill() -> None:
        while not stop.is_set():
            generator.next_ids(5000)
            shared.next_ids(50_000)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        for _ in range(20):
            assert in_child(generator.next_id) == ForkedError
            assert in_child(lambda: shared.fill(array("q", [0] * 1000))) is None
    finally:
        stop.set()
        join(thread)


def test_the_kinds_of_one_worker_do_not_mix(generator_class: Generator, worker_id: int, tmp_path: Path) -> None:
    generator_class(worker_id)
    with pytest.raises(ValueError, match=r"on_fork='raise'.* not on_fork='share'"):
        generator_class(worker_id, on_fork="share")
    with pytest.raises(ValueError, match="not another file"):
        generator_class(worker_id, file=tmp_path / "last")
    layout = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1_500_000_000_000 + worker_id)
    generator_class(1, layout, file=tmp_path / "other")
    generator_class(1, layout, file=tmp_path / "other")
    with pytest.raises(ValueError, match="lives elsewhere"):
        generator_class(1, layout, file=tmp_path / "third")


DRAW = """
import json, sys
from senet_fast import ids
name, layout, path, n, bulk = sys.argv[1:]
generator = getattr(ids, name)(3, getattr(ids, layout), file=path)
sys.stdin.readline()
n = int(n)
drawn = generator.next_ids(n).tolist() if bulk == "bulk" else [generator.next_id() for _ in range(n)]
assert drawn == sorted(set(drawn))
json.dump(drawn, sys.stdout)
"""


def test_unrelated_processes_share_a_file(generator_class: Generator, tmp_path: Path) -> None:
    path = tmp_path / "last"
    with ExitStack() as running:
        programs = [
            running.enter_context(Program(DRAW, generator_class.__name__, "TWITTER", path, 4000, bulk))
            for bulk in ("bulk", "one", "bulk")
        ]
        for program in programs:
            program.go()
        drawn = [json.loads(program.ended()) for program in programs]
    assert len({number for part in drawn for number in part}) == 12_000
    later = generator_class(3, TWITTER, file=path, clock=FakeClock(1_500_000_000_000), max_backward_ms=0)
    with pytest.raises(ClockMovedBackwards):  # the file outlives the processes
        later.next_id()


def test_a_file_of_another_layout_worker_or_class_is_refused(generator_class: Generator, tmp_path: Path) -> None:
    path, clock = tmp_path / "last", FakeClock(1_800_000_000_000)
    generator_class(3, TWITTER, file=path, clock=clock)
    with pytest.raises(ValueError, match=r"says 'worker_id=3 .*; expected 'worker_id=4 "):
        generator_class(4, TWITTER, file=path, clock=clock)
    moved = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=TWITTER.epoch_ms + 1)
    with pytest.raises(ValueError, match=rf"epoch_ms={TWITTER.epoch_ms}\).*; expected .*epoch_ms={moved.epoch_ms}\)"):
        generator_class(3, moved, file=path, clock=clock)
    before = path.read_bytes()
    path.write_bytes(before.replace(b"Snowflake\n", b"Sandflake\n"))
    with pytest.raises(ValueError, match=r"says '(Python)?Sandflake'; expected '(Python)?Snowflake'"):
        generator_class(3, TWITTER, file=path, clock=FakeClock(0))
    for damage in (b"", before[:100], before + b"x", b"\0" * len(before), os.urandom(4096)):
        path.write_bytes(damage)
        if damage:
            with pytest.raises(ValueError, match="is not the last ID of a generator"):
                generator_class(3, TWITTER, file=path, clock=FakeClock(0))
            assert path.read_bytes() == damage


def test_bad_files(generator_class: Generator, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="file is 5"):
        generator_class(1, file=5)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        generator_class(1, file=tmp_path / "none" / "last")
    with pytest.raises(IsADirectoryError):
        generator_class(1, file=tmp_path)


def test_a_locked_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wordfile, "_ATTACH_S", 0.02)
    fd = _wordfile.open_file(tmp_path / "last")
    _wordfile.lock(fd, "")
    with pytest.raises(Exception, match="held by another process, which leased"):
        Snowflake(5, file=tmp_path / "last")
    os.close(fd)


STORM = """
import os, sys
from senet_fast.ids import WIDE, Snowflake
from senet_fast.ids.leases import LockFile
how, path, record = sys.argv[1:]
generator = Snowflake(3, WIDE, file=path) if how == "shared" else Snowflake.acquire(LockFile(path), WIDE)
out = os.open(record, os.O_WRONLY | os.O_APPEND)
while True:
    os.write(out, generator.next_ids(3).tobytes())
    os.write(out, generator.next_id().to_bytes(8, sys.byteorder))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["shared", "leased"])
def test_a_storm_of_kills(how: str, tmp_path: Path) -> None:
    """Processes that are killed at any instruction lose IDs at most. A killed holder's worker is the next one's."""
    record = tmp_path / "record"
    record.touch()
    with ExitStack() as storm:
        start = lambda: storm.enter_context(Program(STORM, how, tmp_path / "last", record))  # noqa: E731
        running = [start() for _ in range(3)]
        for killed in range(12):
            size = record.stat().st_size
            wait_for(lambda size=size: record.stat().st_size > size)
            time.sleep(0.01 + killed % 5 * 0.003)
            running.pop(0).kill()
            running.append(start())
    data = record.read_bytes()
    numbers = np.frombuffer(data[: len(data) // 8 * 8], np.int64)
    assert numbers.size > 10_000
    assert np.unique(numbers).size == numbers.size
    if how == "shared":
        assert Snowflake(3, WIDE, file=tmp_path / "last").next_id() > numbers.max()
    else:
        assert set(WIDE.decode(numbers).worker_id.tolist()) <= {0, 1, 2, 3}


def test_a_burst_begins_before_now(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = generator_class(1, clock=fake_clock, max_lag_ms=3, timeout=0)
    start_ms = fake_clock.now_ms
    fake_clock.now_ms += 10
    burst = generator.next_ids(4 * 4096)
    assert (np.diff(burst) > 0).all()
    times = TWITTER.decode(burst).timestamp_ms
    assert (np.unique(times, return_counts=True)[0] == start_ms + np.arange(7, 11)).all()
    assert (TWITTER.decode(burst).worker_id == 1).all()
    with pytest.raises(SnowflakeTimeout):
        generator.next_id()
    fake_clock.now_ms += 10
    assert TWITTER.decode(generator.next_ids(4096)).timestamp_ms.min() == start_ms + 20  # it fits: nothing is late
    fake_clock.now_ms += 2
    assert TWITTER.decode(generator.next_ids(4097)).timestamp_ms.min() == start_ms + 21


def test_a_burst_does_not_begin_before_the_generator(generator_class: Generator, fake_clock: FakeClock) -> None:
    """The worker's last process may have issued until just now."""
    generator = generator_class(1, clock=fake_clock, max_lag_ms=1000, timeout=0)
    out = np.zeros(8192, np.int64)
    with pytest.raises(SnowflakeTimeout):
        generator.fill(out)
    assert np.flatnonzero(out).size == 4096
    fake_clock.now_ms = 0
    with pytest.raises(ClockOutOfRange):
        generator_class(2, clock=fake_clock, max_lag_ms=1)


def test_borrowing_needs_a_mark_and_survives_a_restart(
    generator_class: Generator, fake_clock: FakeClock, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="max_drift_ms = 5, and nothing remembers the last ID"):
        generator_class(1, max_drift_ms=5)
    path = tmp_path / "last"
    generator = generator_class(1, clock=fake_clock, max_drift_ms=5, timeout=0, file=path, max_backward_ms=0)
    burst = generator.next_ids(6 * 4096)
    assert (TWITTER.decode(burst).timestamp_ms == fake_clock.now_ms + np.arange(6).repeat(4096)).all()
    assert generator.try_next() is None
    fake_clock.now_ms -= 1
    with pytest.raises(ClockMovedBackwards, match="6 ms before the last ID; max_backward_ms = 0, max_drift_ms = 5"):
        generator.next_id()
    # Another clock stands for another process: it has no place yet.
    restarted = generator_class(1, clock=FakeClock(fake_clock.now_ms + 1), max_drift_ms=6, file=path)
    assert restarted.next_id() > burst.max()


def test_a_power_cut_costs_the_drift(
    generator_class: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel did not write the file back: what may have been borrowed is skipped."""
    path = tmp_path / "last"
    generator_class(1, file=path, max_drift_ms=700, clock=FakeClock(1_700_000_000_000))
    as_written_back = path.read_bytes()
    monkeypatch.setattr(_system, "boot", lambda: "the-next-boot")
    before_ms = time.time_ns() // 1_000_000
    again = generator_class(1, file=path, max_drift_ms=5000, clock=FakeClock(before_ms + 3000))
    first = TWITTER.decode(again.next_id()).timestamp_ms
    assert first == before_ms + 3000
    path.write_bytes(as_written_back)
    patient = generator_class(1, file=path, clock=FakeClock(before_ms), timeout=0, max_backward_ms=5000)
    with pytest.raises(SnowflakeTimeout):
        patient.next_id()


@pytest.mark.parametrize("clock", ["coarse", "tsc"])
@pytest.mark.parametrize("layout", [TWITTER, SONYFLAKE, LOCAL], ids=["TWITTER", "SONYFLAKE", "LOCAL"])
def test_cheaper_clocks(generator_class: Generator, layout: Layout, clock: str, worker_id: int) -> None:
    try:
        generator = generator_class(worker_id if layout.worker.width else 0, layout, clock=clock)
    except ValueError as error:
        assert clock == "tsc"
        pytest.skip(str(error))
    numbers = []
    for _ in range(3):
        before_ms = time.time_ns() // 1_000_000
        numbers += [generator.next_id() for _ in range(300)]
        last_ms = layout.decode(numbers[-1]).timestamp_ms
        assert before_ms - 20 <= last_ms <= time.time_ns() // 1_000_000
        numbers += generator.next_ids(300).tolist()
    assert numbers == sorted(set(numbers))


def test_bad_options(generator_class: Generator) -> None:
    with pytest.raises(ValueError, match="clock is 'sundial'; expected 'coarse', 'tsc'"):
        generator_class(1, clock="sundial")
    with pytest.raises(ValueError, match="on_fork is 'spoon'; expected 'raise' or 'share'"):
        generator_class(1, on_fork="spoon")
    for name in ("max_lag_ms", "max_drift_ms"):
        with pytest.raises(ValueError, match=f"{name} = -1"):
            generator_class(1, **{name: -1})  # type: ignore[arg-type]

"""Worker ids of this host's lock files: the default lease."""

import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest
from ids_testing import FakeClock, Forked, Generator, Program, Table, wait_for

from senet_fast.ids import Grant, Layout, LeaseError, LeaseExpired, Snowflake
from senet_fast.ids.leases import LockFile


def test_lock_files(own_layout: Layout, tmp_path: Path) -> None:
    """Each process has a worker of its own; a killed one's is free at once, and goes on behind its last ID."""
    program = f"""
import sys
from senet_fast.ids import Layout, Snowflake
from senet_fast.ids.leases import LockFile
generator = Snowflake.acquire(LockFile({str(tmp_path)!r}), {own_layout!r})
print(generator.worker_id, generator.next_id(), flush=True)
sys.stdin.read()
"""
    take = lambda workers=None: Snowflake.acquire(LockFile(tmp_path, workers=workers), own_layout)  # noqa: E731
    with Program(program) as one, Program(program) as killed, Program(program) as three:
        said = [[int(word) for word in holder.line().split()] for holder in (one, killed, three)]
        assert sorted(worker for worker, _ in said) == [0, 1, 2]
        killed.kill()
        with take() as generator, take() as other:
            assert generator.worker_id == said[1][0]
            assert generator.next_id() > said[1][1]
            assert other.worker_id == 3
            with pytest.raises(LeaseError, match="2 of 2 worker ids are held"):
                take([3, said[0][0]])
        one.ended()
        three.ended()
    last = []
    for _ in range(3):  # again and again in one process
        with take([3]) as generator:
            last.append(generator.next_id())
        with pytest.raises(LeaseExpired):
            generator.next_id()
    assert last == sorted(set(last))


def test_the_default_is_a_lock_file(
    generator_class: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENET_FAST_LEASES", str(tmp_path))
    layout = Layout(worker=3, timestamp=30, sequence=8, epoch_ms=1_700_000_000_000, tick_ms=100)
    with generator_class.acquire(layout=layout, timeout=3.0) as generator:
        assert generator.decode(generator.next_id()).worker_id == generator.worker_id == 0
        assert [path.name for path in tmp_path.iterdir()] == ["worker3-timestamp30-sequence8-1700000000000-tick100"]
        assert next(tmp_path.iterdir()).stat().st_mode & 0o7777 == 0o1777


def test_forked_children_of_a_lock_file_share_it(own_layout: Layout, tmp_path: Path) -> None:
    generator = Snowflake.acquire(LockFile(tmp_path), own_layout)
    drawn = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64)
    reader, writer = os.pipe()

    def draw() -> None:
        drawn[0] = generator.next_id()
        os.read(reader, 1)

    child = Forked(draw)
    wait_for(lambda: drawn[0])
    assert generator.next_id() > drawn[0]
    generator.close()
    with Snowflake.acquire(LockFile(tmp_path), own_layout) as generator:
        assert generator.worker_id == 0
    os.write(writer, b"x")
    assert child.raised() is None


def test_a_worker_whose_last_id_lies_in_the_future_is_passed_over(own_layout: Layout, tmp_path: Path) -> None:
    ahead = FakeClock(time.time_ns() // 1_000_000 + 3_600_000)
    with Snowflake.acquire(LockFile(tmp_path), own_layout, clock=ahead) as generator:
        assert generator.worker_id == 0
        generator.next_id()
    with Snowflake.acquire(LockFile(tmp_path), own_layout) as generator:
        assert generator.worker_id == 1
    with pytest.raises(LeaseError, match="0 of 1 worker ids are held, and the last ID of 1 lies ahead of the clock"):
        LockFile(tmp_path, workers=[0]).acquire(own_layout)


def test_a_damaged_lock_file_is_named(own_layout: Layout, tmp_path: Path) -> None:
    with Snowflake.acquire(LockFile(tmp_path), own_layout):
        (path,) = (next(tmp_path.iterdir())).iterdir()
    path.write_bytes(path.read_bytes()[:200])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=f"{path}' is not the last ID of a generator"):
        Snowflake.acquire(LockFile(tmp_path), own_layout)
    assert len(os.listdir("/proc/self/fd")) == before
    with Snowflake.acquire(LockFile(tmp_path, workers=[1]), own_layout) as generator:
        assert generator.worker_id == 1
    with pytest.raises(ValueError, match="workers is empty; expected worker ids, or None"):
        LockFile(tmp_path, workers=iter([]))


def test_what_was_closed_takes_no_room(generator_class: Generator, own_layout: Layout, tmp_path: Path) -> None:
    def room() -> tuple[int, int]:
        return len(Path("/proc/self/maps").read_text().splitlines()), len(os.listdir("/proc/self/fd"))

    taken = []
    for _ in range(40):
        with generator_class.acquire(LockFile(tmp_path), own_layout) as generator:
            generator.next_id()
        with generator_class.acquire(Table(Grant(1)), own_layout) as generator:
            generator.next_id()
        del generator
        taken.append(room())
    assert taken[-1][0] <= taken[3][0] + 8  # the interpreter's own
    assert taken[-1][1] == taken[3][1]


def test_one_lock_file_holds_one_worker(own_layout: Layout, tmp_path: Path) -> None:
    lease = LockFile(tmp_path)
    with (
        Snowflake.acquire(lease, own_layout),
        pytest.raises(LeaseError, match="already holds a worker id; expected one LockFile for each"),
    ):
        Snowflake.acquire(lease)

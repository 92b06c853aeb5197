"""Lock files that were deleted and made again, and leases that share one: what a review found."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ids_testing import LIMIT_S, Generator, Table, wait_for

from senet_fast.ids import Grant, Layout, LeaseError, LeaseExpired, LeaseStatus, Snowflake
from senet_fast.ids.leases import Environment, LockFile, _held
from senet_fast.ids.leases._store import layout_name


def word(folder: Path, layout: Layout) -> Path:
    return folder / layout_name(layout) / "0"


@pytest.mark.parametrize("options", [{}, {"max_lag_ms": 10}, {"clock": "coarse"}])
def test_a_new_file_waits_whatever_else_was_skipped(
    options: dict[str, Any], generator_class: Generator, own_layout: Layout, tmp_path: Path
) -> None:
    """Also where this process had the worker before, and remembers its last tick."""
    before = generator_class.acquire(LockFile(tmp_path, workers=[0]), own_layout)
    before.next_id()
    for _ in range(2):
        word(tmp_path, own_layout).unlink()
        made_ms = time.time_ns() // 1_000_000
        generator = generator_class.acquire(LockFile(tmp_path, workers=[0]), own_layout, **options)
        assert own_layout.decode(generator.next_id()).timestamp_ms >= made_ms + _held.LOOK_MS
        generator.close()
    before.close()


def test_generators_of_a_process_share_the_word(
    generator_class: Generator, own_layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENET_FAST_LEASES", str(tmp_path))
    take = lambda: generator_class.acquire(Environment(environ={"RANK": "5"}, shared=True), own_layout)  # noqa: E731
    one, two = take(), take()
    ids = [generator.next_id() for _ in range(50) for generator in (one, two)]
    assert ids == sorted(set(ids))
    assert {status.losses for status in (one.lease, two.lease) if status} == {0}
    one.close()
    with pytest.raises(LeaseExpired, match="given back"):
        one.next_id()
    assert two.next_id() > ids[-1]  # at once, or acquired again
    two.close()


@pytest.mark.slow
@pytest.mark.parametrize("tick_ms", [700, 1500])
def test_long_ticks_in_a_groups_folder(tick_ms: int, generator_class: Generator, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2770)
    layout = Layout(timestamp=30, worker=8, sequence=15, epoch_ms=1_700_000_000_000, tick_ms=tick_ms)
    generator = generator_class.acquire(LockFile(folder), layout)
    ids = []
    until = time.monotonic() + 2 * tick_ms / 1000  # over the end of the first grant
    while time.monotonic() < until:
        ids.append(generator.next_id())
        time.sleep(0.05)
    assert ids == sorted(set(ids))
    generator.close()


def test_a_thread_that_cannot_start(
    generator_class: Generator, worker_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lease = Table(Grant(worker_id, 0, time.time_ns() // 1_000_000 + 60_000))
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        generator_class(lease=lease)
    assert len(lease.released) == 1


def test_a_callback_that_exits(generator_class: Generator, worker_id: int, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Exception] = [LeaseError("another holds it")]
    until_ms = time.time_ns() // 1_000_000 + 60_000

    def renew() -> int:
        if answers:
            raise answers.pop()
        return until_ms

    def leave(status: LeaseStatus) -> None:
        raise SystemExit(3)

    lease = Table(Grant(worker_id, 0, until_ms), renew)
    generator = generator_class(lease=lease, on_lease_change=leave)
    wait_for(lambda: generator.lease and generator.lease.losses and generator.lease.state == "held")
    assert "the callback of a changed lease failed" in caplog.text
    generator.close()
    assert lease.released


def test_what_a_signal_handler_raises_reaches_the_caller(
    generator_class: Generator, own_layout: Layout, tmp_path: Path
) -> None:
    class Slow(LockFile):
        is_slow = False

        def acquire(self, layout: Layout) -> Grant:
            if self.is_slow:
                os.kill(os.getpid(), signal.SIGALRM)
                time.sleep(LIMIT_S)
            return super().acquire(layout)

    def handler(*_: object) -> None:
        raise TimeoutError("my deadline")

    lease = Slow(tmp_path)
    generator = generator_class.acquire(lease, own_layout)
    generator.next_id()
    word(tmp_path, own_layout).unlink()
    lease.is_slow = True
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(TimeoutError, match="my deadline"):
            list(generator)
    finally:
        signal.signal(signal.SIGALRM, before)
    lease.is_slow = False
    assert generator.next_id() > 0
    generator.close()


def test_odd_names(own_layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="directory is empty"):
        LockFile("")
    with Snowflake.acquire(LockFile(f"/{tmp_path}/two"), own_layout):
        assert (tmp_path / "two").is_dir()
    with pytest.raises(LeaseError, match="is the root of all folders"):
        LockFile("/").acquire(own_layout)
    with pytest.raises(LeaseError, match="expected a number"):
        Environment(environ={"RANK": "9" * 5000}).acquire(own_layout)

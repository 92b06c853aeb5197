"""Leased worker ids: what a claim may issue, how a lease is renewed and lost, and the leases that need no server."""

import gc
import os
import threading
import time
from pathlib import Path

import pytest
from ids_testing import LIMIT_S, FakeClock, Forked, Generator, Table, in_child, run_program, wait_for

from senet_fast.ids import (
    TWITTER,
    ForkedError,
    Grant,
    Layout,
    LeaseError,
    LeaseExpired,
    Snowflake,
    SnowflakeTimeout,
)
from senet_fast.ids.leases import LockFile, _held

NOW_MS = 1_800_000_000_000


def test_no_id_lies_outside_the_lease(generator_class: Generator, worker_id: int, fake_clock: FakeClock) -> None:
    lease = Table(Grant(worker_id, NOW_MS, NOW_MS + 3))
    generator = generator_class(lease=lease, clock=fake_clock, timeout=0, max_drift_ms=50, max_lag_ms=50)
    assert generator.worker_id == worker_id
    burst = generator.next_ids(3 * 4096)
    assert set(TWITTER.decode(burst).timestamp_ms.tolist()) == {NOW_MS, NOW_MS + 1, NOW_MS + 2}
    with pytest.raises(SnowflakeTimeout):  # the lease may still be renewed
        generator.next_id()
    fake_clock.now_ms += 3
    for call in (generator.next_id, generator.try_next, lambda: generator.next_ids(1000)):
        with pytest.raises(
            LeaseExpired, match=f"worker {worker_id} was leased until {NOW_MS + 3} ms.*reads {NOW_MS + 3}"
        ):
            call()
    fake_clock.now_ms += 5000
    lease.granted = Grant(worker_id, NOW_MS, NOW_MS + 10_000)
    wait_for(lambda: not _expired(generator))
    generator.close()


def _expired(generator: Snowflake) -> bool:
    try:
        generator.try_next()
    except LeaseExpired:
        return True
    return False


def test_ticks_that_only_partly_lie_in_the_lease(generator_class: Generator) -> None:
    layout = Layout(timestamp=40, worker=4, sequence=4, epoch_ms=1_600_000_000_000, tick_ms=10)
    clock = FakeClock(NOW_MS)
    generator = generator_class(lease=Table(Grant(1, NOW_MS + 5, NOW_MS + 28)), layout=layout, clock=clock, timeout=0)
    times = []
    for clock.now_ms in range(NOW_MS, NOW_MS + 40):
        try:
            if (number := generator.try_next()) is not None:
                times.append(layout.decode(number).timestamp_ms)
        except LeaseExpired:
            assert clock.now_ms >= NOW_MS + 20
    assert set(times) == {NOW_MS + 10}
    generator.close()


def test_a_predecessor_that_was_ahead_is_waited_for(
    generator_class: Generator, worker_id: int, fake_clock: FakeClock
) -> None:
    with generator_class(lease=Table(Grant(worker_id, NOW_MS + 400, NOW_MS + 900)), clock=fake_clock) as generator:
        assert generator.try_next() is None
        fake_clock.now_ms += 400
        assert generator.next_id() == TWITTER.encode(NOW_MS + 400, worker_id, 0)
    late = Table(Grant(worker_id, NOW_MS + 9000, NOW_MS + 9900))
    with pytest.raises(LeaseError, match=r"runs behind the last holder's by more than max_backward_ms = 1000"):
        generator_class(lease=late, clock=fake_clock)
    early = Table(Grant(worker_id, NOW_MS - 900, NOW_MS + 400))
    with pytest.raises(LeaseError, match=r"it runs ahead of the store's"):
        generator_class(lease=early, clock=fake_clock)
    assert late.released == [NOW_MS + 9000]
    assert early.released == [NOW_MS - 900]


def test_close_tells_the_successor_where_to_begin(
    generator_class: Generator, worker_id: int, fake_clock: FakeClock
) -> None:
    lease = Table(Grant(worker_id, NOW_MS - 50, NOW_MS + 500))
    generator, second = generator_class(lease=lease, clock=fake_clock), None
    second = generator_class(worker_id, clock=fake_clock)
    fake_clock.now_ms += 7
    last = second.next_id()
    generator.close()
    generator.close()
    assert lease.released == [NOW_MS + 8]
    for closed in (generator, second):
        with pytest.raises(LeaseExpired, match=f"worker {worker_id} was given back"):
            closed.next_id()
    with pytest.raises(LeaseExpired):
        generator_class(worker_id, clock=fake_clock)
    again = generator_class(lease=Table(Grant(worker_id)), clock=fake_clock)  # a lease that knows of no time
    assert again.try_next() is None
    fake_clock.now_ms += 1
    assert again.next_id() > last
    with pytest.raises(LeaseExpired):
        generator.next_id()


def test_nothing_issued_gives_everything_back(
    generator_class: Generator, worker_id: int, fake_clock: FakeClock
) -> None:
    lease = Table(Grant(worker_id, NOW_MS - 50, NOW_MS + 500))
    generator_class(lease=lease, clock=fake_clock).close()
    assert lease.released == [NOW_MS - 50]


def test_lost_renewals(generator_class: Generator, worker_id: int, fake_clock: FakeClock) -> None:
    answers: list[Exception | int] = [ConnectionError("no route"), NOW_MS + 200, LeaseError("another holds it")]
    asked: list[int] = []

    def renew() -> int:
        asked.append(1)
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    lease = Table(Grant(worker_id, 0, NOW_MS + 100), renew)
    generator = generator_class(lease=lease, clock=fake_clock, reacquire=False)
    wait_for(lambda: len(asked) == 3)
    fake_clock.now_ms += 150
    generator.next_id()  # the second answer counts
    fake_clock.now_ms += 50
    with pytest.raises(LeaseExpired, match="its renewal failed: another holds it"):
        generator.next_id()
    time.sleep(0.05)
    assert len(asked) == 3
    generator.close()


@pytest.mark.slow
def test_a_generator_that_is_forgotten_is_closed(generator_class: Generator, worker_id: int) -> None:
    lease = Table(Grant(worker_id, 0, time.time_ns() // 1_000_000 + 60_000))
    generator = generator_class(lease=lease)
    generator.next_id()
    del generator
    gc.collect()
    assert len(lease.released) == 1


@pytest.mark.slow
def test_a_generator_that_its_own_lease_forgets(generator_class: Generator, worker_id: int) -> None:
    """The thread that renews may be the one that collects it."""
    generators: list[object] = []

    def renew() -> int:
        generators.clear()
        gc.collect()
        return lease.granted.until_ms or 0

    lease = Table(Grant(worker_id, 0, time.time_ns() // 1_000_000 + 60_000), renew)
    generators.append(generator_class(lease=lease))
    wait_for(lambda: lease.released)


@pytest.mark.slow
def test_a_store_that_never_answers(
    generator_class: Generator, worker_id: int, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_held, "PATIENCE_S", 0.05)
    asked, answer = threading.Event(), threading.Event()

    def renew() -> int:
        asked.set()
        answer.wait(LIMIT_S)
        return NOW_MS + 200

    lease = Table(Grant(worker_id, 0, NOW_MS + 100), renew)
    generator = generator_class(lease=lease, clock=fake_clock)
    asked.wait(LIMIT_S)
    fake_clock.now_ms += 100
    with pytest.raises(LeaseExpired, match=r"; its renewal has had no answer for \d\.\d s"):
        generator.next_id()
    with pytest.raises(LeaseError, match=f"worker {worker_id} was not given back, since its store has not answered"):
        generator.close()
    answer.set()
    wait_for(lambda: lease.released)
    with pytest.raises(LeaseExpired, match="was given back"):
        generator.next_id()


def test_a_release_that_fails_is_heard_of(generator_class: Generator, worker_id: int) -> None:
    class Rude(Table):
        def release(self, unused_from_ms: int) -> None:
            raise ConnectionError("no route")

    for until_ms in (None, time.time_ns() // 1_000_000 + 60_000):
        with (
            pytest.raises(ConnectionError, match="no route"),
            generator_class(lease=Rude(Grant(worker_id, 0, until_ms))) as generator,
        ):
            generator.next_id()
        with pytest.raises(LeaseExpired):
            generator.next_id()


def test_a_fork_leaves_the_lease_to_the_parent(generator_class: Generator, worker_id: int) -> None:
    lease = Table(Grant(worker_id, 0, time.time_ns() // 1_000_000 + 60_000), renew_every=60)
    generator = generator_class(lease=lease)
    assert in_child(generator.next_id) == ForkedError

    def close() -> None:
        generator.close()
        assert lease.released == []

    assert in_child(close) is None
    generator.next_id()
    generator.close()
    shared = generator_class(
        lease=Table(Grant(worker_id + 1, 0, NOW_MS + 100), renew_every=60), on_fork="share", clock=FakeClock(NOW_MS)
    )
    assert in_child(shared.next_id) is None
    shared.close()
    assert in_child(shared.next_id) == LeaseExpired


def test_a_child_may_lease_its_parents_worker(generator_class: Generator, worker_id: int) -> None:
    """Once the parent gave it back, or lost it: the grant tells where to begin."""
    parents = generator_class(
        lease=Table(Grant(worker_id, 0, NOW_MS + 100), renew_every=60), clock=(clock := FakeClock(NOW_MS))
    )
    last = parents.next_id()
    began = Table(Grant(worker_id, NOW_MS + 1, NOW_MS + 200))

    def child() -> None:
        with pytest.raises(ForkedError):
            generator_class(lease=Table(Grant(worker_id)), clock=clock)  # exclusive by no store
        generator = generator_class(lease=began, clock=clock)
        assert generator.try_next() is None
        clock.now_ms += 1
        assert generator.next_id() > last

    assert in_child(child) is None
    shared = generator_class(lease=Table(Grant(worker_id + 1)), on_fork="share", clock=clock)
    reader, writer = os.pipe()

    def again() -> None:
        os.read(reader, 1)  # until the parent has closed
        lease = Table(Grant(worker_id + 1, NOW_MS + 1, NOW_MS + 200))
        assert generator_class(lease=lease, on_fork="share", clock=clock).try_next() is None

    forked = Forked(again)
    shared.close()
    os.write(writer, b"x")
    assert forked.raised() is None


def test_a_lease_is_given_back_at_exit(tmp_path: Path) -> None:
    program = f"""
from senet_fast.ids import Snowflake
from senet_fast.ids.leases import LockFile
class Loud(LockFile):
    def release(self, unused_from_ms):
        super().release(unused_from_ms)
        print("released", unused_from_ms > 0)
generator = Snowflake.acquire(Loud({str(tmp_path)!r}))
print(generator.worker_id, generator.next_id() > 0)
"""
    assert run_program(program).split() == ["0", "True", "released", "True"]


@pytest.mark.parametrize(
    ("lease", "options", "error", "message"),
    [
        (LockFile, {}, TypeError, "expected a Lease such as"),
        (5, {}, TypeError, "lease is 5; expected a Lease"),
        (Table(Grant(1)), {"worker_id": 1}, TypeError, "lease and worker_id are both given"),
        (Table(Grant(1)), {"file": "/nowhere"}, TypeError, "lease and file are both given"),
        (Table(Grant(1)), {"max_drift_ms": 1}, ValueError, "nothing remembers the last ID"),
        (Table(Grant(1024)), {}, ValueError, "worker_id = 1024; expected 0 <= worker_id <= 1023"),
        (Table(Grant(1000, 0, 2**50, (0, ""))), {}, LeaseError, "granted both a file and an end"),
        (LockFile("/nowhere", workers=[0, 1024]), {}, ValueError, "worker_id = 1024; expected 0 <= worker_id <= 1023"),
    ],
)
def test_bad_leases(
    generator_class: Generator, lease: object, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generator_class(lease=lease, **options)  # type: ignore[arg-type]

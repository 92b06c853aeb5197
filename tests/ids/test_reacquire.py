"""Leases that are lost and acquired again: who waits, who hears of it, and what is issued meanwhile."""

import array
import logging
import threading
import time
from typing import Any

import numpy as np
import pytest
from ids_testing import LIMIT_S, FakeClock, Generator, Losing, in_child, in_threads, wait_for

from senet_fast.ids import Grant, Layout, LeaseError, LeaseExpired, Snowflake
from senet_fast.ids.leases import LeaseStatus, _held

NOW_MS = 1_800_000_000_000


class Answering(Losing):
    """Acquires again only after `answer`."""

    def __init__(self, *grants: Grant | Exception) -> None:
        super().__init__(*grants)
        self.asked, self.answer = threading.Event(), threading.Event()

    def acquire(self, layout: Layout) -> Grant:
        if self.acquired:
            self.asked.set()
            assert self.answer.wait(LIMIT_S)
        return super().acquire(layout)


def grants(*workers: int, until_ms: int = NOW_MS + 1000) -> list[Grant]:
    return [Grant(worker_id, NOW_MS, until_ms) for worker_id in workers]


def status_of(generator: Snowflake) -> LeaseStatus:
    status = generator.lease
    assert status is not None
    return status


def test_another_worker_id_takes_its_place(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """IDs go on increasing, though the new worker id is lower; each change is told once."""
    lease, told = Losing(*grants(5, 3)), []  # type: tuple[Losing, list[LeaseStatus]]
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock, on_lease_change=told.append)
    before = generator.next_id()
    lease.lost = True
    wait_for(lambda: status_of(generator).losses == 1 and status_of(generator).state == "held" and len(told) == 2)
    assert generator.worker_id == status_of(generator).worker_id == 3
    assert generator.try_next() is None  # in the tick of the last ID
    fake_clock.now_ms += 1
    after = generator.next_id()
    assert after > before
    assert [own_layout.decode(number).worker_id for number in (before, after)] == [5, 3]
    assert [(status.state, status.worker_id, status.losses) for status in told] == [("lost", 5, 1), ("held", 3, 1)]
    assert [status.last_error for status in told] == ["another holds it", None]
    assert lease.released == [NOW_MS + 1000]  # it may have issued until its end
    assert {record.name for record in caplog.records} == {"senet_fast.ids"}
    assert [record.getMessage() for record in caplog.records] == [
        "worker 5 was lost, and another is acquired: another holds it",
        "worker 5 issues as 3 from now on",
    ]
    generator.close()
    assert lease.released == [NOW_MS + 1000, NOW_MS + 2]
    assert status_of(generator).state == "closed"
    assert len(told) == 2


def test_a_claim_while_another_is_acquired(generator_class: Generator, own_layout: Layout) -> None:
    """The clock is read once more before the new place is taken: claims on the old one until then count, too."""

    class Clock(FakeClock):
        def __call__(self) -> int:
            if threading.current_thread() is not threading.main_thread() and self.now_ms == NOW_MS:
                self.now_ms += 5
                ids.append(generator.next_id())
            return self.now_ms

    lease, ids = Losing(*grants(5, 3)), []  # type: tuple[Losing, list[int]]
    generator = generator_class(lease=lease, layout=own_layout, clock=(clock := Clock(NOW_MS)))
    ids.append(generator.next_id())
    lease.lost = True
    wait_for(lambda: generator.worker_id == 3)
    assert own_layout.decode(ids[-1]).worker_id == 5
    assert generator.try_next() is None
    clock.now_ms += 1
    assert generator.next_id() > ids[1] > ids[0]
    generator.close()


def test_two_generators_that_exchange_their_workers(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock
) -> None:
    """The second is given what the first has lost and does not know of yet, in the same process."""
    later = [Grant(worker_id, NOW_MS + 1000, NOW_MS + 3000) for worker_id in (4, 5)]
    leases = [Losing(*grants(5), later[0], renew_every=60), Losing(*grants(4), later[1], renew_every=60)]
    generators = [generator_class(lease=lease, layout=own_layout, clock=fake_clock) for lease in leases]
    ids = [[generator.next_id()] for generator in generators]
    fake_clock.now_ms += 1000
    for lease in leases:
        lease.lost = True
    for draws, generator in reversed(list(zip(ids, generators, strict=True))):
        draws.append(generator.next_id())
    fake_clock.now_ms += 1
    for draws, generator in zip(ids, generators, strict=True):
        draws.append(generator.next_id())
        assert draws == sorted(draws)
    assert [[own_layout.decode(number).worker_id for number in draws] for draws in ids] == [[5, 4, 4], [4, 5, 5]]
    generators[0].close()
    fake_clock.now_ms += 1
    generators[1].next_id()
    generators[1].close()


def test_claims_wait_for_one_acquisition(generator_class: Generator, own_layout: Layout, fake_clock: FakeClock) -> None:
    lease = Answering(*grants(5), *grants(3, until_ms=NOW_MS + 9000))
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock)
    lease.lost = True
    assert lease.asked.wait(LIMIT_S)
    assert generator.next_id() > 0  # what is granted is issued
    fake_clock.now_ms += 1000
    started = time.monotonic()
    for call in (generator.try_next, lambda: generator.try_fill(array.array("q", [0]))):
        with pytest.raises(LeaseExpired, match=r"worker 5 was leased until .*; it was lost: another holds it"):
            call()
    assert time.monotonic() - started < 1
    ids: list[int] = []
    waiting = threading.Thread(target=lambda: ids.append(generator.next_id()))
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()
    assert status_of(generator).state == "lost"
    lease.answer.set()
    waiting.join(LIMIT_S)
    assert [own_layout.decode(number).worker_id for number in ids] == [3]
    generator.close()


@pytest.mark.slow
def test_claims_wait_two_seconds(generator_class: Generator, own_layout: Layout, fake_clock: FakeClock) -> None:
    lease = Answering(*grants(5, 3))
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock)
    lease.lost = True
    assert lease.asked.wait(LIMIT_S)
    fake_clock.now_ms += 1000
    started = time.monotonic()
    with pytest.raises(LeaseExpired, match="; it was lost: another holds it"):
        generator.next_id()
    assert time.monotonic() - started > 1.9
    lease.answer.set()
    generator.close()


def test_no_worker_is_free_for_a_while(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked for again and again; said once; and nobody waits for what has just failed."""
    none_free = [LeaseError("all 2 worker ids are held")] * 3
    lease, told = Losing(*grants(5), *none_free, *grants(5)), []  # type: tuple[Losing, list[str]]
    generator = generator_class(
        lease=lease, layout=own_layout, clock=fake_clock, on_lease_change=lambda status: told.append(status.state)
    )
    lease.lost = True
    wait_for(lambda: told == ["lost", "held"])
    assert lease.acquired == 5
    assert generator.next_id() > 0
    assert status_of(generator).losses == 1
    said = [record.getMessage() for record in caplog.records]
    assert said[1:] == [
        "no worker id in place of 5 yet: all 2 worker ids are held",
        "worker 5 issues as 5 from now on",
    ]
    generator.close()


def test_without_reacquiring(generator_class: Generator, own_layout: Layout, fake_clock: FakeClock) -> None:
    lease, told = Losing(*grants(5, 3)), []  # type: tuple[Losing, list[str]]
    generator = generator_class(
        lease=lease,
        layout=own_layout,
        clock=fake_clock,
        reacquire=False,
        on_lease_change=lambda status: told.append(status.state),
    )
    lease.lost = True
    wait_for(lambda: told == ["lost"])
    generator.next_id()
    fake_clock.now_ms += 1000
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(LeaseExpired, match="its renewal failed: another holds it"):
            generator.next_id()
    assert time.monotonic() - started < 1
    generator.close()
    assert (lease.acquired, told) == (1, ["lost"])


def test_a_callback_that_raises(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    def told(status: LeaseStatus) -> None:
        raise RuntimeError("of the test")

    lease = Losing(*grants(5, 3))
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock, on_lease_change=told)
    lease.lost = True
    wait_for(lambda: generator.worker_id == 3)
    assert generator.next_id() > 0
    generator.close()
    failed = [record for record in caplog.records if record.getMessage() == "the callback of a changed lease failed"]
    assert [record.levelno for record in failed] == [logging.ERROR] * 2


@pytest.mark.parametrize("bad", [5, "log"])
def test_bad_callbacks(bad: Any, generator_class: Generator, own_layout: Layout) -> None:
    with pytest.raises(TypeError, match=f"on_lease_change is {bad!r}.*expected a callable that takes a LeaseStatus"):
        generator_class(lease=Losing(*grants(5)), layout=own_layout, on_lease_change=bad)


def test_a_store_that_is_down_and_comes_back(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    lease, told = Losing(*grants(5, 3)), []  # type: tuple[Losing, list[LeaseStatus]]
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock, on_lease_change=told.append)
    lease.down = True
    wait_for(lambda: status_of(generator).last_error == "no route")
    assert status_of(generator).state == "held"
    fake_clock.now_ms += 1000
    with pytest.raises(LeaseExpired, match="its renewal failed: no route"):
        generator.next_id()
    lease.granted = Grant(5, NOW_MS, NOW_MS + 5000)
    lease.down = False
    wait_for(lambda: status_of(generator).last_error is None)
    assert own_layout.decode(generator.next_id()).worker_id == 5
    status = status_of(generator)
    assert (status.losses, lease.acquired, told) == (0, 1, [])
    assert [record.getMessage() for record in caplog.records] == [
        "worker 5: its renewal failed, and is tried again: no route"
    ]
    generator.close()


def test_a_pause_past_the_lease(generator_class: Generator, own_layout: Layout, fake_clock: FakeClock) -> None:
    """Nobody took the worker meanwhile: the claim that meets the end has it renewed, and goes on."""
    lease = Losing(*grants(5, 3), renew_every=60)
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock)
    before = generator.next_id()
    fake_clock.now_ms += 3_600_000
    lease.granted = Grant(5, NOW_MS, fake_clock.now_ms + 1000)
    after = generator.next_id()
    assert after > before
    assert own_layout.decode(after).worker_id == 5
    assert (status_of(generator).renewals, status_of(generator).losses) == (1, 0)
    generator.close()


@pytest.mark.slow
def test_threads_that_draw_during_fifty_losses(generator_class: Generator, own_layout: Layout) -> None:
    """Each worker id is lower than the one before: an ID of the same tick would be, too."""

    class Descending(Losing):
        def acquire(self, layout: Layout) -> Grant:
            self.acquired += 1
            now_ms = time.time_ns() // 1_000_000
            self.granted, self.lost = Grant(200 - self.acquired, now_ms, now_ms + 3_600_000), False
            return self.granted

    lease = Descending(*grants(0), renew_every=0.001)
    generator = generator_class(lease=lease, layout=own_layout)
    done = threading.Event()
    drawn: list[list[int]] = [[] for _ in range(3)]

    def one_by_one(ids: list[int]) -> None:
        while not done.is_set():
            ids.append(generator.next_id())

    def in_bulk() -> None:
        out = np.empty(300, np.int64)
        while not done.is_set():
            generator.fill(out)
            drawn[2].extend(out.tolist())
            time.sleep(0.001)

    def lose() -> None:
        try:
            for losses in range(1, 51):
                lease.lost = True
                wait_for(lambda losses=losses: status_of(generator).losses == losses and not lease.lost)  # type: ignore[misc]
        finally:
            done.set()

    in_threads([lambda: one_by_one(drawn[0]), lambda: one_by_one(drawn[1]), in_bulk, lose])
    wait_for(lambda: status_of(generator).state == "held")
    generator.close()
    for ids in drawn:
        assert (np.diff(ids) > 0).all()
    everything = np.concatenate(drawn)
    assert np.unique(everything).size == everything.size
    assert len(set(own_layout.decode(everything).worker_id.tolist())) > 10


def test_a_child_neither_acquires_nor_releases(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock
) -> None:
    """The thread is the parent's, and so is the lease."""
    lease = Losing(*grants(5, 3))
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock, on_fork="share")

    def child() -> None:
        generator.next_id()
        lease.lost = True
        fake_clock.now_ms += 1000
        for call in (generator.next_id, generator.try_next):
            with pytest.raises(LeaseExpired, match="worker 5 was leased until"):
                call()
        generator.close()
        assert (lease.acquired, lease.released) == (1, [])

    assert in_child(child) is None
    assert own_layout.decode(generator.next_id()).worker_id == 5
    generator.close()


def test_closing_while_another_is_acquired(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after close() is given back, and nothing is issued from it."""
    monkeypatch.setattr(_held, "PATIENCE_S", 0.05)
    lease, told = Answering(*grants(5, 3)), []  # type: tuple[Answering, list[str]]
    generator = generator_class(
        lease=lease, layout=own_layout, clock=fake_clock, on_lease_change=lambda status: told.append(status.state)
    )
    lease.lost = True
    assert lease.asked.wait(LIMIT_S)
    generator.close()
    lease.answer.set()
    wait_for(lambda: len(lease.released) == 3)
    assert lease.released[:2] == [NOW_MS + 1000, NOW_MS]  # the lost one's end; all of what was acquired
    assert told == ["lost"]
    assert status_of(generator).state == "closed"
    for _ in range(2):
        with pytest.raises(LeaseExpired, match="was given back by"):
            generator.next_id()


def test_closing_while_another_is_adopted(generator_class: Generator, own_layout: Layout) -> None:
    """By the thread that is at it, such as in a finalizer: where the clock is read for the new place."""

    class Clock(FakeClock):
        def __call__(self) -> int:
            if threading.current_thread() is not threading.main_thread():
                generator.close()
            return self.now_ms

    lease = Losing(*grants(5, 3))
    generator = generator_class(lease=lease, layout=own_layout, clock=Clock(NOW_MS))
    generator.next_id()
    lease.lost = True
    wait_for(lambda: len(lease.released) == 3)
    assert lease.released[1] == NOW_MS + 1  # one more tick, since the last ID of the old place lies in it
    assert status_of(generator).state == "closed"
    with pytest.raises(LeaseExpired, match="was given back by"):
        generator.next_id()


def test_a_place_that_could_not_be_adopted(
    generator_class: Generator, own_layout: Layout, fake_clock: FakeClock
) -> None:
    """The next one goes on behind the last ID, all the same. Without a thread: the claims acquire."""
    far = Grant(4, NOW_MS + 9000, NOW_MS + 9900)
    lease = Losing(*grants(5), far, *grants(3, until_ms=NOW_MS + 5000), renew_every=0)
    generator = generator_class(lease=lease, layout=own_layout, clock=fake_clock)
    fake_clock.now_ms += 999
    before = generator.next_id()
    lease.lost = True
    fake_clock.now_ms += 1
    with pytest.raises(LeaseExpired, match=r"was lost: worker 4 was leased from .* runs behind the last"):
        generator.next_id()
    fake_clock.now_ms -= 1
    assert generator.try_next() is None
    assert generator.worker_id == 3
    assert lease.released == [NOW_MS + 1000, NOW_MS + 9000, NOW_MS + 1000]
    fake_clock.now_ms += 1
    assert generator.next_id() > before
    generator.close()

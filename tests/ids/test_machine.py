"""Random lives of a generator: the compiled class and its twin do the same, and what they issue keeps its promises.
Random lives of hosts that lease one worker in turn, with clocks that differ and step: no ID twice. Random losses,
which are acquired again while workers are free: no ID twice, order kept, each change told once.
"""

import threading
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ids_testing import FakeClock, Table, wait_for

from senet_fast.ids import (
    ClockOutOfRange,
    Grant,
    Layout,
    LeaseError,
    PythonSnowflake,
    Snowflake,
    SnowflakeError,
    _checks,
)
from senet_fast.ids.leases import LeaseStatus

BEGIN_MS = 1_800_000_000_000
LAYOUTS = [
    Layout(timestamp=39, worker=3, sequence=2, epoch_ms=1_700_000_000_000),
    Layout(timestamp=35, sequence=3, worker=3, epoch_ms=1_700_000_000_000, tick_ms=10),
    Layout(timestamp=4, sequence=5, epoch_ms=BEGIN_MS - 20, tick_ms=7),
]
STARTS = st.sampled_from([0, "random", "rolling"])


class Lives(RuleBasedStateMachine):
    @initialize(
        layout=st.sampled_from(LAYOUTS),
        lag_ms=st.sampled_from([0, 0, 3, 25]),
        drift_ms=st.sampled_from([0, 3, 25]),
        lease_ms=st.none() | st.tuples(st.integers(-5, 15), st.integers(1, 60)),
        start=STARTS,
        seed=st.integers(1, 2**64 - 1),
    )
    def begin(
        self, layout: Layout, lag_ms: int, drift_ms: int, lease_ms: tuple[int, int] | None, start: Any, seed: int
    ) -> None:
        self.layout, self.clock, self.begun = layout, FakeClock(BEGIN_MS), BEGIN_MS
        self.lag_ms, self.drift_ms, self.lease = lag_ms, drift_ms if lease_ms else 0, lease_ms
        self.twins: list[Any] = []
        self.leases: list[Table] = []
        self.last = -1
        options: dict[str, Any] = {"max_lag_ms": lag_ms, "max_drift_ms": self.drift_ms, "timeout": 0}
        options |= {"max_backward_ms": 50, "clock": self.clock, "sequence_start": start}
        self.options = options
        with patch.object(_checks, "seed", return_value=seed):
            for kind in (Snowflake, PythonSnowflake):
                if lease_ms:
                    first, end = BEGIN_MS + lease_ms[0], BEGIN_MS + lease_ms[1]
                    self.leases.append(Table(Grant(0, first, end), renew_every=None))
                    self.twins.append(kind(layout=layout, lease=self.leases[-1], **options))
                else:
                    self.twins.append(kind(0, layout, **options))

    def both(self, draw: Any) -> np.ndarray:
        outcomes = [draw(twin) for twin in self.twins]
        assert outcomes[0][0] == outcomes[1][0]
        assert (outcomes[0][1] == outcomes[1][1]).all()
        return outcomes[0][1]

    @precondition(lambda self: not self.lease)
    @rule(start=STARTS, seed=st.integers(1, 2**64 - 1))
    def others_take_over(self, start: Any, seed: int) -> None:
        """Generators of the same word, that start elsewhere."""
        with patch.object(_checks, "seed", return_value=seed), suppress(ClockOutOfRange):  # both, by the same clock
            self.twins = [
                type(twin)(0, self.layout, **{**self.options, "sequence_start": start}) for twin in self.twins
            ]

    @rule(step=st.integers(-30, 30))
    def clock_steps(self, step: int) -> None:
        self.clock.now_ms += step

    @rule(n=st.integers(0, 200), one_by_one=st.booleans())
    def draw(self, n: int, one_by_one: bool) -> None:
        def drawn(twin: Any) -> tuple[str, np.ndarray]:
            out = np.full(n, -1)
            try:
                if one_by_one:
                    for i in range(n):
                        out[i] = twin.next_id()
                else:
                    twin.fill(out)
            except SnowflakeError as error:
                return str(error), out
            return "", out

        ids = self.both(drawn)
        issued = ids[ids != -1]
        assert (ids[: issued.size] != -1).all()
        if not issued.size:
            return
        assert issued[0] > self.last
        assert (np.diff(issued) > 0).all()
        self.last = int(issued[-1])
        times = self.layout.decode(issued).timestamp_ms
        tick_ms = self.layout.tick_ms
        assert times.max() <= self.clock.now_ms + self.drift_ms
        if self.lag_ms:
            assert times.min() > self.begun - tick_ms
        assert times.min() > self.clock.now_ms - self.lag_ms - tick_ms
        if one_by_one and not self.drift_ms:
            assert times.min() > self.clock.now_ms - tick_ms
        if self.lease:
            assert BEGIN_MS + self.lease[0] <= times.min()
            assert times.max() + tick_ms <= BEGIN_MS + self.lease[1]

    @rule()
    def close(self) -> None:
        for twin in self.twins:
            twin.close()
        if self.leases:
            assert self.leases[0].released == self.leases[1].released
            if self.last >= 0:
                after = self.layout.decode(self.last).timestamp_ms + self.layout.tick_ms
                assert self.leases[0].released == [after]


class Store:
    """Leases worker 0 by its own clock, as a server would."""

    def __init__(self) -> None:
        self.now_ms, self.until_ms = BEGIN_MS, 0


class Holding:
    renew_every = None

    def __init__(self, store: Store, ttl_ms: int) -> None:
        self.store, self.ttl_ms, self.crashed = store, ttl_ms, False

    def acquire(self, layout: Layout) -> Grant:
        if self.store.until_ms > self.store.now_ms:
            raise LeaseError("held")
        self.granted = Grant(0, self.store.until_ms, self.store.now_ms + self.ttl_ms)
        self.store.until_ms = self.store.now_ms + self.ttl_ms
        return self.granted

    def renew(self) -> int:
        raise NotImplementedError

    def release(self, unused_from_ms: int) -> None:
        if not self.crashed and self.store.until_ms == self.granted.until_ms:  # nobody took over
            self.store.until_ms = min(self.store.until_ms, unused_from_ms)


HOSTS = st.integers(0, 2)


class Holders(RuleBasedStateMachine):
    @initialize(
        kind=st.sampled_from([Snowflake, PythonSnowflake]),
        layout=st.sampled_from(LAYOUTS[:2]),
        skews=st.tuples(*[st.integers(-40, 40)] * 3),
        lag_ms=st.sampled_from([0, 20]),
        drift_ms=st.sampled_from([0, 20]),
        start=STARTS,
    )
    def begin(self, kind: Any, layout: Layout, skews: tuple[int, ...], lag_ms: int, drift_ms: int, start: Any) -> None:
        self.kind, self.layout, self.store = kind, layout, Store()
        self.clocks = [FakeClock(BEGIN_MS + skew) for skew in skews]
        self.options = {"max_lag_ms": lag_ms, "max_drift_ms": drift_ms, "timeout": 0, "max_backward_ms": 1000}
        self.options["sequence_start"] = start
        self.held: list[tuple[Any, Holding] | None] = [None] * 3
        self.issued: set[int] = set()

    @rule(host=HOSTS, ttl_ms=st.integers(1, 60))
    def acquire(self, host: int, ttl_ms: int) -> None:
        if self.held[host] is None:
            lease = Holding(self.store, ttl_ms)
            try:
                generator = self.kind.acquire(lease, self.layout, clock=self.clocks[host], **self.options)
            except LeaseError:
                return
            self.held[host] = generator, lease

    @rule(host=HOSTS, n=st.integers(1, 60))
    def draw(self, host: int, n: int) -> None:
        if self.held[host] is None:
            return
        generator, lease = self.held[host]
        out = np.full(n, -1)
        with suppress(SnowflakeError):
            generator.fill(out)
        drawn = out[out != -1]
        assert self.issued.isdisjoint(drawn.tolist())
        self.issued.update(drawn.tolist())
        times = self.layout.decode(drawn).timestamp_ms
        assert (times >= lease.granted.from_ms).all()
        assert (times + self.layout.tick_ms <= lease.granted.until_ms).all()

    @rule(ms=st.integers(1, 40))
    def time_passes(self, ms: int) -> None:
        self.store.now_ms += ms
        for clock in self.clocks:
            clock.now_ms += ms

    @rule(host=HOSTS, ms=st.integers(-30, 30))
    def a_clock_steps(self, host: int, ms: int) -> None:
        self.clocks[host].now_ms += ms

    @rule(host=HOSTS, crash=st.booleans())
    def ends(self, host: int, crash: bool) -> None:
        if self.held[host] is not None:
            generator, lease = self.held[host]
            lease.crashed = crash
            generator.close()
            self.held[host] = None

    def teardown(self) -> None:
        for host in range(3):
            self.ends(host, True)


class Workers:
    """Leases three workers; the first free one in an order that changes. Threads renew, so each answer is one step."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.lock = clock, threading.Lock()
        self.order, self.is_full = (0, 1, 2), False
        self.until_ms = [BEGIN_MS] * 3
        self.owner: list[object] = [None] * 3


class Losable:
    """A lease of one of them."""

    def __init__(self, store: Workers, renew_every: float) -> None:
        self.store, self.renew_every = store, renew_every
        self.worker_id = -1

    def acquire(self, layout: Layout) -> Grant:
        store = self.store
        with store.lock:
            for worker_id in () if store.is_full else store.order:
                if (from_ms := store.until_ms[worker_id]) <= store.clock.now_ms:
                    store.owner[worker_id], self.worker_id = self, worker_id
                    store.until_ms[worker_id] = store.clock.now_ms + 40
                    return Grant(worker_id, from_ms, store.clock.now_ms + 40)
        raise LeaseError("all are held")

    def renew(self) -> int:
        store = self.store
        with store.lock:
            if store.owner[self.worker_id] is not self:
                raise LeaseError("another holds it")
            store.until_ms[self.worker_id] = max(store.until_ms[self.worker_id], store.clock.now_ms + 40)
            return store.until_ms[self.worker_id]

    def release(self, unused_from_ms: int) -> None:
        store = self.store
        with store.lock:
            if store.owner[self.worker_id] is self:
                store.until_ms[self.worker_id] = min(store.until_ms[self.worker_id], unused_from_ms)
                store.owner[self.worker_id] = None


GENERATORS = st.integers(0, 1)


class Losses(RuleBasedStateMachine):
    """Two generators, of one process or (by clocks that are not equal) as of two."""

    @initialize(
        kind=st.sampled_from([Snowflake, PythonSnowflake]),
        layout=st.sampled_from(LAYOUTS[:2]),
        lag_ms=st.sampled_from([0, 20]),
        start=STARTS,
        is_threaded=st.booleans(),
        is_one_process=st.booleans(),
    )
    def begin(
        self, kind: Any, layout: Layout, lag_ms: int, start: Any, is_threaded: bool, is_one_process: bool
    ) -> None:
        self.layout, self.is_threaded = layout, is_threaded
        self.clock = FakeClock(BEGIN_MS)
        self.store = Workers(self.clock)
        self.leases = [Losable(self.store, 0.002 if is_threaded else 0) for _ in range(2)]
        self.told: list[list[LeaseStatus]] = [[], []]
        self.last = [-1, -1]
        self.closed = [False, False]
        self.issued: set[int] = set()
        options: dict[str, Any] = {"max_lag_ms": lag_ms, "sequence_start": start, "timeout": 0, "layout": layout}
        clocks = [self.clock, self.clock if is_one_process else lambda: self.clock.now_ms]
        self.generators = [
            kind(lease=lease, on_lease_change=told.append, clock=clock, **options)
            for lease, told, clock in zip(self.leases, self.told, clocks, strict=True)
        ]

    @rule(at=GENERATORS, order=st.permutations([0, 1, 2]), ms=st.integers(0, 60))
    def is_lost(self, at: int, order: list[int], ms: int) -> None:
        """At any time; `ms` later the worker may be another's."""
        lease, store, generator = self.leases[at], self.store, self.generators[at]
        before = generator.lease.losses
        with store.lock:
            store.order = tuple(order)
            if lease not in store.owner:  # closed, or lost already
                return
            store.owner[lease.worker_id] = None
        if self.is_threaded:
            wait_for(lambda: generator.lease.losses > before or generator.lease.state == "lost")
        self.clock.now_ms += ms

    @rule(is_full=st.booleans())
    def none_is_free(self, is_full: bool) -> None:
        self.store.is_full = is_full

    @rule(ms=st.integers(1, 60))
    def time_passes(self, ms: int) -> None:
        self.clock.now_ms += ms

    @rule(at=GENERATORS, n=st.integers(1, 60), how=st.sampled_from(["next_id", "try_next", "fill", "try_fill"]))
    def draw(self, at: int, n: int, how: str) -> None:
        generator = self.generators[at]
        out = np.full(n, -1)
        with suppress(SnowflakeError):
            if how in ("fill", "try_fill"):
                count = getattr(generator, how)(out)
                assert how == "fill" or count == (out != -1).sum()
            elif (number := getattr(generator, how)()) is not None:
                out[0] = number
        drawn = out[out != -1].tolist()
        assert not (drawn and self.closed[at])
        for number in drawn:
            assert number not in self.issued
            assert number > self.last[at]
            self.issued.add(number)
            self.last[at] = number
        if drawn and not self.is_threaded:
            assert self.layout.decode(drawn[-1]).worker_id == generator.worker_id

    @rule(at=GENERATORS)
    def close(self, at: int) -> None:
        self.generators[at].close()
        self.closed[at] = True
        assert self.leases[at] not in self.store.owner

    @rule(at=GENERATORS)
    def all_is_told(self, at: int) -> None:
        """Once for each loss, and once for each worker id that was acquired again."""
        generator, told = self.generators[at], self.told[at]

        def is_told() -> bool:
            status = generator.lease
            missing = 2 * status.losses - len(told)
            return missing in {"held": [0], "lost": [1], "closed": [0, 1]}[status.state]

        if self.is_threaded:
            wait_for(is_told)
            wait_for(lambda: generator.lease.state != "lost" or generator.lease.last_error == "all are held")
            wait_for(is_told)
        assert is_told()
        states = (["lost", "held"] * len(told))[: len(told)]
        if told and told[-1].state == "closed":  # the thread saw the loss while close() was waiting for it
            assert self.is_threaded
            assert self.closed[at]
            states[-1] = "closed"
        assert [one.state for one in told] == states
        assert [one.losses for one in told] == [i // 2 + 1 for i in range(len(told))]
        status = generator.lease
        assert status.worker_id == generator.worker_id
        assert (status.state == "closed") == self.closed[at]
        assert status.renewals >= (told[-1].renewals if told else 0)

    def teardown(self) -> None:
        for generator in self.generators:
            generator.close()


TestLives = pytest.mark.slow(Lives.TestCase)
TestLives.settings = settings(max_examples=150, stateful_step_count=25)
TestHolders = pytest.mark.slow(Holders.TestCase)
TestHolders.settings = settings(max_examples=150, stateful_step_count=40)
TestLosses = pytest.mark.slow(Losses.TestCase)
TestLosses.settings = settings(max_examples=100, stateful_step_count=40)

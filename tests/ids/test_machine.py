"""Random lives of a generator: the compiled class and its twin do the same, and what they issue keeps its promises."""

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from ids_testing import FakeClock

from senet_fast.ids import Grant, Layout, PythonSnowflake, Snowflake, SnowflakeError

BEGIN_MS = 1_800_000_000_000
LAYOUTS = [
    Layout(timestamp=39, worker=3, sequence=2, epoch_ms=1_700_000_000_000),
    Layout(timestamp=35, sequence=3, worker=3, epoch_ms=1_700_000_000_000, tick_ms=10),
    Layout(timestamp=4, sequence=5, epoch_ms=BEGIN_MS - 20, tick_ms=7),
]


class Table:
    renew_every = None

    def __init__(self, grant: Grant) -> None:
        self.granted = grant
        self.released: int | None = None

    def acquire(self, layout: Layout) -> Grant:
        return self.granted

    def renew(self) -> int:
        raise NotImplementedError

    def release(self, unused_from_ms: int) -> None:
        self.released = unused_from_ms


class Lives(RuleBasedStateMachine):
    @initialize(
        layout=st.sampled_from(LAYOUTS),
        lag_ms=st.sampled_from([0, 0, 3, 25]),
        drift_ms=st.sampled_from([0, 3, 25]),
        lease_ms=st.none() | st.tuples(st.integers(-5, 15), st.integers(1, 60)),
    )
    def begin(self, layout: Layout, lag_ms: int, drift_ms: int, lease_ms: tuple[int, int] | None) -> None:
        self.layout, self.clock, self.begun = layout, FakeClock(BEGIN_MS), BEGIN_MS
        self.lag_ms, self.drift_ms, self.lease = lag_ms, drift_ms if lease_ms else 0, lease_ms
        self.twins: list[Any] = []
        self.leases: list[Table] = []
        self.last = -1
        options: dict[str, Any] = {"max_lag_ms": lag_ms, "max_drift_ms": self.drift_ms, "timeout": 0}
        options |= {"max_backward_ms": 50, "clock": self.clock}
        for kind in (Snowflake, PythonSnowflake):
            if lease_ms:
                first, end = BEGIN_MS + lease_ms[0], BEGIN_MS + lease_ms[1]
                self.leases.append(Table(Grant(0, first, end)))
                self.twins.append(kind(layout=layout, lease=self.leases[-1], **options))
            else:
                self.twins.append(kind(0, layout, **options))

    def both(self, draw: Any) -> np.ndarray:
        outcomes = [draw(twin) for twin in self.twins]
        assert outcomes[0][0] == outcomes[1][0]
        assert (outcomes[0][1] == outcomes[1][1]).all()
        return outcomes[0][1]

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
                assert self.leases[0].released == after


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)

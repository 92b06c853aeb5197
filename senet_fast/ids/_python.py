"""`PythonSnowflake`: the generator in plain Python, the specification that the compiled class is tested against."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, NoReturn, SupportsIndex, overload

from senet_fast.ids import _checks, _places, _system
from senet_fast.ids._python_place import Place
from senet_fast.ids.errors import (
    ClockMovedBackwards,
    ClockOutOfRange,
    ForkedError,
    LeaseError,
    LeaseExpired,
    SnowflakeTimeout,
)
from senet_fast.ids.layout import TWITTER, DecodedID, DecodedIDs, Layout
from senet_fast.ids.leases import Lease, LockFile
from senet_fast.ids.leases._held import CLOSED, PATIENCE_S, Held
from senet_fast.ids.leases._lease import Grant, LeaseStatus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

    from senet_fast.ids.layout import SupportsArray

_places_here: dict[tuple[Layout, int, Any], Place] = {}


_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """SplitMix64's output function: spreads well, and hides nothing."""
    x &= _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


class PythonSnowflake:
    """The same generator as `Snowflake`, to be read and measured against; see there for the arguments and errors.

    It reads the system's clock where that class would read a cheaper one. The two classes do not share state: never use
    both for one worker.
    """

    def __init__(
        self,
        worker_id: int | None = None,
        layout: Layout = TWITTER,
        *,
        max_backward_ms: int = 1000,
        max_lag_ms: int = 0,
        max_drift_ms: int = 0,
        timeout: float | None = None,
        sequence_start: Literal[0, "random", "rolling"] = 0,
        clock: Callable[[], int] | Literal["coarse", "tsc"] | None = None,
        on_fork: Literal["raise", "share"] = "raise",
        file: str | os.PathLike[str] | None = None,
        lease: Lease | None = None,
        reacquire: bool = True,
        on_lease_change: Callable[[LeaseStatus], object] | None = None,
    ) -> None:
        self._layout = _checks.layout(layout)
        self._max_backward_ms = _checks.milliseconds("max_backward_ms", max_backward_ms)
        self._max_lag_ticks = _checks.milliseconds("max_lag_ms", max_lag_ms) // layout.tick_ms
        self._max_drift_ms = _checks.milliseconds("max_drift_ms", max_drift_ms)
        self._timeout = _checks.timeout(timeout)
        self._start_mask, self._seed = _checks.sequence_start(sequence_start, layout)
        _checks.clock(clock)
        own_clock = clock if callable(clock) else None
        self._clock = own_clock or _system_ms
        self._own_clock = own_clock
        self._begins_now = max_lag_ms > 0
        self._on_fork = _checks.on_fork(on_fork)
        path = _checks.file(file)
        _checks.lease(lease, worker_id, path)
        _checks.on_lease_change(on_lease_change)
        self._held = None
        if lease is not None:
            self._held = Held(lease, layout, reacquire=reacquire, on_change=on_lease_change)
        try:
            grant = self._held.grant if self._held else None
            worker_id = _checks.worker_id(grant.worker_id if grant else worker_id, layout)
            _checks.borrowing(max_drift_ms, path, self._held)
            place = self._settle(worker_id, path, grant)
            self._issuer = place, worker_id  # exchanged together
            if self._held:
                weakly = weakref.ref(self)
                adopt = lambda grant: this._adopt(grant) if (this := weakly()) else None  # noqa: E731
                self._held.start(place, self._now_ms(), max_backward_ms, max_drift_ms, adopt)
                weakref.finalize(self, self._held.forget)
        except BaseException:
            if self._held:
                self._held.close()
            raise

    def _settle(self, worker_id: int, path: str | None, grant: Grant | None) -> Place:
        if (path is not None or (grant and grant.file)) and (why := _system.why_no_file_of_the_twin()):
            raise LeaseError(why)
        layout = self._layout
        key = layout, worker_id, self._own_clock
        make = lambda kind, fd: Place(layout, kind, fd)  # noqa: E731
        holder = self._held.holder if self._held else None
        place = _places.find(
            _places_here, make, key, "PythonSnowflake", self._on_fork, path, grant, self._max_drift_ms, holder
        )
        self._refuse(place, worker_id)
        if self._begins_now:  # what came before may have been issued by the worker's last process
            place.skip_to_tick(self._tick(self._now_ms()))
        return place

    def _adopt(self, grant: Grant) -> Place:
        """Goes on from another grant, after the last ID of the one before."""
        assert self._held
        old, _ = self._issuer
        worker_id = _checks.worker_id(grant.worker_id, self._layout)
        place = self._settle(worker_id, None, grant)
        self._held.begin(grant, place, self._now_ms(), self._max_backward_ms)
        # Claims that find it closed find the new one, too. Two descriptors of one file would wait for each other.
        with old.locked() if place.kind != old.kind else nullcontext():
            if place is not old:
                old.close()
                assert old.last_tick is not None
                place.skip_to_tick(old.last_tick + 1)
            self._issuer = place, worker_id
        return place

    @classmethod
    def acquire(cls, lease: Lease | None = None, layout: Layout = TWITTER, **options: Any) -> PythonSnowflake:
        return cls(layout=layout, lease=LockFile() if lease is None else lease, **options)

    def close(self) -> None:
        if self._held:
            self._held.close()

    def __enter__(self) -> PythonSnowflake:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def worker_id(self) -> int:
        return self._issuer[1]

    @property
    def lease(self) -> LeaseStatus | None:
        return self._held.status if self._held else None

    @property
    def layout(self) -> Layout:
        return self._layout

    def next_id(self) -> int:
        return self._wait(1)[0]

    def try_next(self) -> int | None:
        ids = self._claim(1, patience_s=0)
        return ids[0] if ids else None

    def next_ids(self, n: int) -> npt.NDArray[np.int64]:
        out = _checks.new_array(n)
        self.fill(out)
        return out

    def fill(self, out: Buffer | npt.NDArray[np.int64]) -> None:
        view = _checks.int64_view(out)
        done = 0
        while done < len(view):
            for value in self._wait(len(view) - done):
                view[done] = value
                done += 1

    def try_fill(self, out: Buffer | npt.NDArray[np.int64]) -> int:
        view = _checks.int64_view(out)
        ids = self._claim(len(view), patience_s=0) if len(view) else []
        for place, value in enumerate(ids):
            view[place] = value
        return len(ids)

    def __iter__(self) -> PythonSnowflake:
        return self

    def __next__(self) -> int:
        return self.next_id()

    @overload
    def decode(self, ids: int | str | np.integer[Any]) -> DecodedID: ...  # type: ignore[overload-overlap]
    @overload
    def decode(self, ids: Sequence[int | str]) -> list[DecodedID]: ...
    @overload
    def decode(self, ids: SupportsArray) -> DecodedIDs: ...
    def decode(self, ids: Any) -> Any:
        return self._layout.decode(ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(worker_id={self.worker_id}, layout={self._layout!r})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(_checks.NOT_COPIED)

    def _claim(self, n: int, patience_s: float) -> list[int]:
        """Up to n IDs; none where the next one lies ahead of the clock. Where the lease has ended, it may wait for a
        renewal.
        """
        extended = False
        while True:
            issuer = self._issuer
            try:
                return self._claim_from(*issuer, n)
            except LeaseExpired:
                if self._held is None or (extended and issuer is self._issuer):
                    raise
                if issuer is self._issuer:
                    self._held.extend(self._now_ms(), min(patience_s, self._timeout))
                    extended = True

    def _claim_from(self, place: Place, worker_id: int, n: int) -> list[int]:
        layout = self._layout
        width = layout.sequence.width
        with place.locked():
            while True:
                stored_within = len(place.stored_within)
                self._refuse(place, worker_id)
                now_ms = self._now_ms()
                tick = self._tick(now_ms)
                now, granted = tick << width, place.end
                if now >= granted:
                    why = self._held.why() if self._held else ""
                    until_ms = layout.epoch_ms + (granted >> width) * layout.tick_ms
                    raise LeaseExpired(
                        f"worker {worker_id} was leased until {until_ms} ms, and the clock reads {now_ms} ms{why}"
                    )
                room = min((tick + 1) << width, granted) - now
                last_tick = min(tick + self._max_drift_ms // layout.tick_ms, layout.timestamp.max)
                end = min((last_tick + 1) << width, granted)
                # A call that does not fit into this tick may begin before it.
                begin = max(0, now - min(self._max_lag_ticks << width, max(0, n - room)))
                first = place.word + 1
                if first < begin:  # behind a tick that is used up it starts at 0: bursts lose nothing to starts
                    start = self._start(place.word, tick)
                    first = begin + start if n + start <= room else begin
                if first >= end:
                    break
                words = range(first, min(first + n, end))
                place.word = words[-1]
                # Else a signal handler may have claimed these, too; in one, the last line was counted.
                if len(place.stored_within) == stored_within + place.is_within:
                    return self._ids(words, worker_id)
            behind_ms = (place.word >> width) * layout.tick_ms + layout.epoch_ms - now_ms
        if behind_ms > self._max_backward_ms + self._max_drift_ms:
            drift = f", max_drift_ms = {self._max_drift_ms}" if self._max_drift_ms else ""
            raise ClockMovedBackwards(
                f"the clock reads {behind_ms} ms before the last ID; max_backward_ms = {self._max_backward_ms}{drift}"
            )
        return []

    def _start(self, last: int, tick: int) -> int:
        """The sequence at which a claim behind `last` opens `tick`: a hash of the tick and the seed, or the one behind
        the last ID's; 0 behind none.
        """
        rolled = max(0, last + 1)
        return (_mix(tick * 0x9E3779B97F4A7C15 + self._seed) if self._seed else rolled) & self._start_mask

    def _ids(self, words: range, worker_id: int) -> list[int]:
        layout = self._layout
        worker = worker_id << layout.worker.shift
        fields = ((word >> layout.sequence.width, word & layout.sequence.max) for word in words)
        return [
            tick << layout.timestamp.shift | worker | sequence << layout.sequence.shift for tick, sequence in fields
        ]

    def _now_ms(self) -> int:
        return _checks.clock_ms(self._clock())

    def _tick(self, now_ms: int) -> int:
        layout = self._layout
        tick = (now_ms - layout.epoch_ms) // layout.tick_ms
        if not 0 <= tick <= layout.timestamp.max:
            raise ClockOutOfRange(f"the clock reads {now_ms} ms; {layout!r} holds times until {layout.lifetime_end}")
        return tick

    def _wait(self, n: int) -> list[int]:
        """1 to n IDs, after sleeping until the clock allows one."""
        started = time.monotonic()
        while not (ids := self._claim(n, PATIENCE_S)):
            if time.monotonic() - started >= self._timeout:
                raise SnowflakeTimeout(
                    f"no new ID within timeout = {self._timeout} s: the clock has not reached the next free tick"
                )
            time.sleep(0.001 - time.time() % 0.001)
        return ids

    def _refuse(self, place: Place, worker_id: int) -> None:
        if place.forked:
            raise ForkedError(
                f"worker {worker_id} belongs to the parent of this forked process;"
                " construct a generator with another worker_id here"
            )
        if place.closed:
            raise LeaseExpired(f"worker {worker_id} {self._held.end() if self._held else CLOSED}")

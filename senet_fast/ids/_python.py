"""`PythonSnowflake`: the generator in plain Python, the specification that the compiled class is tested against."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, SupportsIndex, overload

from senet_fast.ids import _checks
from senet_fast.ids.errors import ClockMovedBackwards, ClockOutOfRange, ForkedError, SnowflakeTimeout
from senet_fast.ids.layout import TWITTER, DecodedID, DecodedIDs, Layout

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer


class _State:
    """The last ID issued, as `tick << sequence bits | sequence`; one for all generators of a worker and layout."""

    def __init__(self) -> None:
        self.word = -1  # none
        self.lock = threading.Lock()
        self.pid = os.getpid()


_states: dict[tuple[Layout, int, Callable[[], int] | None], _State] = {}


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


class PythonSnowflake:
    """The same generator as `Snowflake`, to be read and measured against; see there for the arguments and errors.

    The two classes do not share state: never use both for one worker.
    """

    def __init__(
        self,
        worker_id: int | None = None,
        layout: Layout = TWITTER,
        *,
        max_backward_ms: int = 1000,
        timeout: float | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._worker_id = _checks.worker_id(worker_id, layout)
        self._layout = layout
        self._max_backward_ms = _checks.max_backward_ms(max_backward_ms)
        self._timeout = _checks.timeout(timeout)
        self._clock = _checks.clock(clock) or _system_ms
        self._state = _states.setdefault((layout, self._worker_id, clock), _State())
        if self._state.pid != os.getpid():
            self._raise_forked()

    @property
    def worker_id(self) -> int:
        return self._worker_id

    @property
    def layout(self) -> Layout:
        return self._layout

    def next_id(self) -> int:
        return self._wait(1)[0]

    def try_next(self) -> int | None:
        ids = self._claim(1)
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

    def __iter__(self) -> PythonSnowflake:
        return self

    def __next__(self) -> int:
        return self.next_id()

    @overload
    def decode(self, ids: int) -> DecodedID: ...
    @overload
    def decode(self, ids: npt.NDArray[np.int64]) -> DecodedIDs: ...
    def decode(self, ids: int | npt.NDArray[np.int64]) -> DecodedID | DecodedIDs:
        return self._layout.decode(ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(worker_id={self._worker_id}, layout={self._layout!r})"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(_checks.NOT_COPIED)

    def _claim(self, n: int) -> range:
        """Up to n IDs of the current tick; none where the next one lies ahead of the clock."""
        if self._state.pid != os.getpid():
            self._raise_forked()
        layout, state = self._layout, self._state
        width = layout.sequence.width
        with state.lock:
            now_ms = _checks.clock_ms(self._clock())
            tick = (now_ms - layout.epoch_ms) // layout.tick_ms
            if not 0 <= tick <= layout.timestamp.max:
                raise ClockOutOfRange(
                    f"the clock reads {now_ms} ms; {layout!r} holds times until {layout.lifetime_end}"
                )
            begin, end = tick << width, (tick + 1) << width
            first = max(state.word + 1, begin)
            if first < end:
                count = min(n, end - first)
                state.word = first + count - 1
                start = layout.encode(now_ms, self._worker_id, first - begin)
                step = 1 << layout.sequence.shift
                return range(start, start + count * step, step)
            behind_ms = (state.word >> width) * layout.tick_ms + layout.epoch_ms - now_ms
        if behind_ms > self._max_backward_ms:
            raise ClockMovedBackwards(
                f"the clock reads {behind_ms} ms before the last ID; max_backward_ms = {self._max_backward_ms}"
            )
        return range(0)

    def _wait(self, n: int) -> range:
        """1 to n IDs, after sleeping until the clock allows one."""
        started = time.monotonic()
        while not (ids := self._claim(n)):
            if time.monotonic() - started >= self._timeout:
                raise SnowflakeTimeout(
                    f"no new ID within timeout = {self._timeout} s: the clock has not reached the next free tick"
                )
            time.sleep(0.001 - time.time() % 0.001)
        return ids

    def _raise_forked(self) -> NoReturn:
        raise ForkedError(
            f"worker {self._worker_id} belongs to the parent of this forked process;"
            " construct a generator with another worker_id here"
        )

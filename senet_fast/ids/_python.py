"""`PythonSnowflake`: the generator in plain Python, the specification that the compiled class is tested against."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NoReturn, SupportsIndex, overload

from senet_fast.ids import _checks, _places, _wordfile
from senet_fast.ids.errors import ClockMovedBackwards, ClockOutOfRange, ForkedError, LeaseExpired, SnowflakeTimeout
from senet_fast.ids.layout import TWITTER, DecodedID, DecodedIDs, Layout
from senet_fast.ids.leases import Lease, LockFile
from senet_fast.ids.leases._held import Held

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

_UNBOUNDED = (1 << 64) - 1


class _Place:
    """The last ID issued, as `tick << sequence bits | sequence`, and where the lease ends; one of these for all
    generators of a worker and layout. Shared ones live in a file, which may have no name.
    """

    def __init__(self, layout: Layout, kind: Hashable, fd: int | None) -> None:
        self.layout = layout
        self.kind = kind
        self.last_tick: int | None = None  # once closed
        self._pid = self._lock_pid = os.getpid()
        self._lock = threading.Lock()
        self._file = None if fd is None else os.fdopen(os.dup(fd), "r+b", 0)
        if kind == "share":
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the place
            self._file.truncate(mmap.PAGESIZE)
        self._memory = mmap.mmap(self._file.fileno() if self._file else -1, mmap.PAGESIZE)
        if fd is None:
            self._store(-1, _UNBOUNDED)

    def __del__(self) -> None:
        if self._file:
            self._file.close()

    @property
    def forked(self) -> bool:
        return self.kind == "raise" and self._pid != os.getpid()

    @property
    def gone(self) -> bool:
        return self.forked or self.closed

    @property
    def closed(self) -> bool:
        return self.last_tick is not None or self._load()[1] == 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among the threads, and the processes too where they share the place."""
        if self._lock_pid != os.getpid():  # a fork: the lock may have been held, and the file's lock is the parent's
            self._lock_pid, self._lock = os.getpid(), threading.Lock()
            if self._file:
                with self._file as parents:
                    self._file = os.fdopen(os.open(f"/proc/self/fd/{parents.fileno()}", os.O_RDWR), "r+b", 0)
        with self._lock:
            self._lock_file(fcntl.F_WRLCK)
            try:
                yield
            finally:
                self._lock_file(fcntl.F_UNLCK)

    def _lock_file(self, kind: int) -> None:
        if self._file:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW, struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0))

    # In the file ticks are counted from 2, as _wordfile has it.
    def _load(self) -> tuple[int, int]:
        word, end = struct.unpack_from("=QQ", self._memory, _wordfile.OFFSET)
        return word - (_wordfile.FIRST_TICK << self.layout.sequence.width), end

    def _store(self, word: int, end: int) -> None:
        first = _wordfile.FIRST_TICK << self.layout.sequence.width
        struct.pack_into("=QQ", self._memory, _wordfile.OFFSET, word + first, end)

    @property
    def word(self) -> int:
        return self._load()[0]

    @word.setter
    def word(self, word: int) -> None:
        self._store(word, self._load()[1])

    @property
    def end(self) -> int:
        return self._load()[1]

    def skip_to(self, from_ms: int) -> None:
        self.skip_to_tick(_places.first_tick(self.layout, from_ms))

    def skip_to_tick(self, tick: int) -> None:
        with self.locked():
            self.word = max(self.word, (tick << self.layout.sequence.width) - 1)

    def grant(self, until_ms: int) -> None:
        end = _places.end_tick(self.layout, until_ms) << self.layout.sequence.width
        with self.locked():
            self._store(self.word, end if self.end == _UNBOUNDED else max(self.end, end))

    def close(self) -> int:
        """Refuses all later claims; the time of the first tick that is free, in ms."""
        width = self.layout.sequence.width
        with self.locked():
            self.last_tick = max(-1, self.word >> width)
            if isinstance(self.kind, str):  # a named file stays open to others
                self._store(self.word, 0)
        return self.layout.epoch_ms + (self.last_tick + 1) * self.layout.tick_ms


_places_here: dict[tuple[Layout, int, Any], _Place] = {}


def _mix(x: int) -> int:
    """SplitMix64's output function: spreads well, and hides nothing."""
    x &= _UNBOUNDED
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _UNBOUNDED
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _UNBOUNDED
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
        _checks.on_fork(on_fork)
        path = _checks.file(file)
        _checks.lease(lease, worker_id, path)
        self._held = None if lease is None else Held(lease, layout)
        try:
            self._worker_id = _checks.worker_id(self._held.grant.worker_id if self._held else worker_id, layout)
            _checks.borrowing(max_drift_ms, path, self._held)
            key = layout, self._worker_id, own_clock
            make = lambda kind, fd: _Place(layout, kind, fd)  # noqa: E731
            self._place = _places.find(
                _places_here, make, key, "PythonSnowflake", on_fork, path, self._held, max_drift_ms
            )
            self._refuse()
            if max_lag_ms:  # what came before may have been issued by the worker's last process
                self._place.skip_to_tick(self._tick(self._now_ms()))
            if self._held:
                self._held.start(self._place, self._now_ms(), max_backward_ms)
                weakref.finalize(self, self._held.forget)
        except BaseException:
            if self._held:
                self._held.close()
            raise

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
        return self._worker_id

    @property
    def layout(self) -> Layout:
        return self._layout

    def next_id(self) -> int:
        return self._ids(self._wait(1))[0]

    def try_next(self) -> int | None:
        words = self._claim(1)
        return self._ids(words)[0] if words else None

    def next_ids(self, n: int) -> npt.NDArray[np.int64]:
        out = _checks.new_array(n)
        self.fill(out)
        return out

    def fill(self, out: Buffer | npt.NDArray[np.int64]) -> None:
        view = _checks.int64_view(out)
        done = 0
        while done < len(view):
            for value in self._ids(self._wait(len(view) - done)):
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
        """Up to n words, the last of them in the current tick; none where the next one lies ahead of the clock."""
        layout, place = self._layout, self._place
        width = layout.sequence.width
        with place.locked():
            self._refuse()
            now_ms = self._now_ms()
            tick = self._tick(now_ms)
            now, granted = tick << width, place.end
            if now >= granted:
                why = self._held.why() if self._held else ""
                until_ms = layout.epoch_ms + (granted >> width) * layout.tick_ms
                raise LeaseExpired(
                    f"worker {self._worker_id} was leased until {until_ms} ms, and the clock reads {now_ms} ms{why}"
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
            if first < end:
                words = range(first, min(first + n, end))
                place.word = words[-1]
                return words
            behind_ms = (place.word >> width) * layout.tick_ms + layout.epoch_ms - now_ms
        if behind_ms > self._max_backward_ms + self._max_drift_ms:
            drift = f", max_drift_ms = {self._max_drift_ms}" if self._max_drift_ms else ""
            raise ClockMovedBackwards(
                f"the clock reads {behind_ms} ms before the last ID; max_backward_ms = {self._max_backward_ms}{drift}"
            )
        return range(0)

    def _start(self, last: int, tick: int) -> int:
        """The sequence at which a claim behind `last` opens `tick`: a hash of the tick and the seed, or the one behind
        the last ID's; 0 behind none.
        """
        rolled = max(0, last + 1)
        return (_mix(tick * 0x9E3779B97F4A7C15 + self._seed) if self._seed else rolled) & self._start_mask

    def _ids(self, words: range) -> list[int]:
        layout = self._layout
        worker = self._worker_id << layout.worker.shift
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

    def _wait(self, n: int) -> range:
        """1 to n words, after sleeping until the clock allows one."""
        started = time.monotonic()
        while not (words := self._claim(n)):
            if time.monotonic() - started >= self._timeout:
                raise SnowflakeTimeout(
                    f"no new ID within timeout = {self._timeout} s: the clock has not reached the next free tick"
                )
            time.sleep(0.001 - time.time() % 0.001)
        return words

    def _refuse(self) -> None:
        if self._place.forked:
            raise ForkedError(
                f"worker {self._worker_id} belongs to the parent of this forked process;"
                " construct a generator with another worker_id here"
            )
        if self._place.closed:
            raise LeaseExpired(f"worker {self._worker_id} was given back by close(); acquire a worker id again")

"""How an ID's bits are shared out: `Layout`, and the layouts in use."""

from __future__ import annotations

import functools
import operator
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LAST_MS = (datetime.max.replace(tzinfo=UTC) - _UNIX_EPOCH) // _MILLISECOND
_NAMES = ("timestamp", "worker", "sequence")


class Field(NamedTuple):
    """One field of a layout: `width` bits, the lowest of them at `shift`."""

    width: int
    shift: int

    @property
    def max(self) -> int:
        """The largest value the field holds."""
        return (1 << self.width) - 1


class DecodedID(NamedTuple):
    """The fields of one ID. `timestamp` is an aware datetime in UTC; both timestamps name the start of the tick."""

    timestamp: datetime
    timestamp_ms: int
    worker_id: int
    sequence: int


class DecodedIDs(NamedTuple):
    """The fields of an array of IDs, each an array of the same shape; `timestamp` is datetime64[ms], in UTC."""

    timestamp: npt.NDArray[np.datetime64]
    timestamp_ms: npt.NDArray[np.int64]
    worker_id: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]


def check_int(name: str, value: Any, low: int, high: int, why: str = "") -> int:
    """`value` as an int within low..high, or an error that names the argument, its value and what was expected."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected an int")
    number = operator.index(value)
    if not low <= number <= high:
        raise ValueError(f"{name} = {number}; expected {low} <= {name} <= {high}{why}")
    return number


def _milliseconds(name: str, time: Any) -> int:
    """`time` in ms since 1970-01-01 UTC, rounded down."""
    if isinstance(time, datetime):
        if time.utcoffset() is None:
            raise ValueError(f"{name} {time.isoformat()} has no time zone; expected an aware datetime")
        return (time - _UNIX_EPOCH) // _MILLISECOND
    return check_int(name, time, -(1 << 62), 1 << 62)


@dataclass(frozen=True, init=False, repr=False)
class Layout:
    """The bit fields of an ID, its epoch and its tick. Immutable, hashable, compared by value.

    The fields are keywords, each with its width in bits, most significant first:
    `Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1288834974657)`. `worker` may be left out, which says that
    there is one generator only. Together they take at most 63 bits, so that an ID is a non-negative int64, and
    `timestamp` stands before `sequence`, so that a generator's IDs increase.

    epoch_ms: the instant of timestamp 0, in milliseconds since 1970-01-01 UTC.
    tick_ms: the unit of the timestamp field, in milliseconds.
    """

    timestamp: Field
    worker: Field
    sequence: Field
    epoch_ms: int
    tick_ms: int

    def __init__(self, *, epoch_ms: int, tick_ms: int = 1, **widths: int) -> None:
        for name in widths:
            if name not in _NAMES:
                raise TypeError(f"Layout has no field {name!r}; expected timestamp, worker and sequence")
        for name in ("timestamp", "sequence"):
            if name not in widths:
                raise TypeError(f"Layout needs the width of its {name} field, in bits")
            check_int(name, widths[name], 1, 62)
        check_int("worker", widths.get("worker", 0), 0, 61)
        check_int("epoch_ms", epoch_ms, 0, _LAST_MS, " (the years 1970 to 9999)")
        check_int("tick_ms", tick_ms, 1, _LAST_MS)
        if (total := sum(widths.values())) > 63:
            parts = " + ".join(f"{name} {width}" for name, width in widths.items())
            raise ValueError(f"{parts} = {total} bits; expected at most 63, so that an ID is a non-negative int64")
        if list(widths).index("timestamp") > list(widths).index("sequence"):
            raise ValueError("sequence stands before timestamp; expected timestamp first, so that IDs increase")
        if epoch_ms + (tick_ms << widths["timestamp"]) > _LAST_MS:
            raise ValueError(
                f"timestamp = {widths['timestamp']} bits of tick_ms = {tick_ms} from epoch_ms = {epoch_ms} end after"
                " the year 9999, where datetimes end; expected fewer bits"
            )
        fields = dict.fromkeys(_NAMES, Field(0, 0))
        shift = total
        for name, width in widths.items():
            if width:
                shift -= width
                fields[name] = Field(operator.index(width), shift)
        values = {**fields, "epoch_ms": operator.index(epoch_ms), "tick_ms": operator.index(tick_ms)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        fields = [(name, getattr(self, name)) for name in _NAMES if getattr(self, name).width]
        widths = ", ".join(f"{name}={field.width}" for name, field in sorted(fields, key=lambda f: -f[1].shift))
        tick = "" if self.tick_ms == 1 else f", tick_ms={self.tick_ms}"
        return f"Layout({widths}, epoch_ms={self.epoch_ms}{tick})"

    @property
    def lifetime_end(self) -> datetime:
        """The first instant, in UTC, that the timestamp can no longer hold."""
        return _UNIX_EPOCH + self._end_ms * _MILLISECOND

    @overload
    def encode(self, timestamp: int | datetime, worker_id: int = 0, sequence: int = 0) -> int: ...
    @overload
    def encode(
        self,
        timestamp: npt.NDArray[np.int64] | npt.NDArray[np.datetime64],
        worker_id: int | npt.NDArray[np.int64] = 0,
        sequence: int | npt.NDArray[np.int64] = 0,
    ) -> npt.NDArray[np.int64]: ...
    def encode(self, timestamp: Any, worker_id: Any = 0, sequence: Any = 0) -> Any:
        """The ID of these fields. `timestamp`: milliseconds since 1970-01-01 UTC, or an aware datetime.

        With arrays of int64, or of datetime64 in UTC for the timestamp, an int64 array; they are broadcast.
        """
        if (numpy := sys.modules.get("numpy")) and any(
            isinstance(field, numpy.ndarray) for field in (timestamp, worker_id, sequence)
        ):
            return self._encode_array(timestamp, worker_id, sequence, numpy)
        timestamp = _milliseconds("timestamp", timestamp)
        why = f" (from the epoch to {self.lifetime_end.isoformat()})"
        tick = (check_int("timestamp", timestamp, self.epoch_ms, self._end_ms - 1, why) - self.epoch_ms) // self.tick_ms
        worker_id = check_int("worker_id", worker_id, 0, self.worker.max, f" ({self.worker.width} bits)")
        sequence = check_int("sequence", sequence, 0, self.sequence.max, f" ({self.sequence.width} bits)")
        return tick << self.timestamp.shift | worker_id << self.worker.shift | sequence << self.sequence.shift

    def _encode_array(self, timestamp: Any, worker_id: Any, sequence: Any, numpy: Any) -> Any:
        if isinstance(timestamp, numpy.ndarray) and timestamp.dtype.kind == "M":
            if numpy.isnat(timestamp).any():
                raise ValueError("timestamp holds NaT; expected times")
            timestamp = timestamp.astype("datetime64[ms]").astype(numpy.int64)
        elif not isinstance(timestamp, numpy.ndarray):
            timestamp = _milliseconds("timestamp", timestamp)
        ranges = {
            "timestamp": (timestamp, self.epoch_ms, self._end_ms - 1),
            "worker_id": (worker_id, 0, self.worker.max),
            "sequence": (sequence, 0, self.sequence.max),
        }
        for name, (values, low, high) in ranges.items():
            if not isinstance(values, numpy.ndarray):
                check_int(name, values, low, high)
            elif values.dtype != numpy.int64:
                raise TypeError(f"{name} has dtype {values.dtype}; expected int64")
            elif values.size:
                for extreme in (int(values.min()), int(values.max())):
                    check_int(name, extreme, low, high)
        tick = (timestamp - self.epoch_ms) // self.tick_ms
        fields = ((tick, self.timestamp), (worker_id, self.worker), (sequence, self.sequence))
        return functools.reduce(
            operator.or_, (numpy.asarray(part, numpy.int64) << field.shift for part, field in fields)
        )

    def min_id(self, time: int | datetime) -> int:
        """The smallest ID of a tick that begins at or after `time`: IDs of [a, b) are min_id(a) <= id < min_id(b).

        `time`: as in encode(). A time before the epoch gives 0, one past the lifetime the first number that is no ID.
        A tick that begins before `time` counts as before it, as a whole. Needs a layout whose timestamp comes first.
        """
        self._check_order()
        elapsed = _milliseconds("time", time) - self.epoch_ms
        tick = min(max(0, -(-elapsed // self.tick_ms)), self.timestamp.max + 1)
        return tick << self.timestamp.shift

    def max_id(self, time: int | datetime) -> int:
        """The largest ID of a tick that begins at or before `time`: IDs up to a time are id <= max_id(time).

        A time before the epoch gives -1, below every ID; one past the lifetime the largest ID.
        """
        self._check_order()
        elapsed = _milliseconds("time", time) - self.epoch_ms
        tick = min(max(-1, elapsed // self.tick_ms), self.timestamp.max)
        return ((tick + 1) << self.timestamp.shift) - 1

    def _check_order(self) -> None:
        if self.worker.shift > self.timestamp.shift:
            raise ValueError(f"{self!r} does not sort by time, since worker stands before timestamp; IDs have no range")

    @property
    def _end_ms(self) -> int:
        return self.epoch_ms + (self.tick_ms << self.timestamp.width)

    @overload
    def decode(self, ids: int) -> DecodedID: ...
    @overload
    def decode(self, ids: npt.NDArray[np.int64]) -> DecodedIDs: ...
    def decode(self, ids: int | npt.NDArray[np.int64]) -> DecodedID | DecodedIDs:
        """The fields of an ID, or of every ID of an int64 array. Numbers too large for the layout raise ValueError."""
        # Whoever holds an array has imported NumPy already.
        if (numpy := sys.modules.get("numpy")) and isinstance(ids, numpy.ndarray):
            return self._decode_array(ids, numpy)
        number = check_int("id", ids, 0, self._last_id, f" (the {self._last_id.bit_length()} bits of the layout)")
        timestamp_ms, worker_id, sequence = self._fields(number)
        return DecodedID(_UNIX_EPOCH + timestamp_ms * _MILLISECOND, timestamp_ms, worker_id, sequence)

    def _decode_array(self, ids: Any, numpy: Any) -> DecodedIDs:
        if ids.dtype != numpy.int64:
            raise TypeError(f"ids has dtype {ids.dtype}; expected int64")
        if ids.size:
            for extreme in (int(ids.min()), int(ids.max())):
                check_int("ids", extreme, 0, self._last_id, f" (the {self._last_id.bit_length()} bits of the layout)")
        timestamp_ms, worker_id, sequence = self._fields(ids)
        return DecodedIDs(timestamp_ms.astype("datetime64[ms]"), timestamp_ms, worker_id, sequence)

    @property
    def _last_id(self) -> int:
        return (1 << (self.timestamp.width + self.worker.width + self.sequence.width)) - 1

    def _fields(self, ids: Any) -> tuple[Any, Any, Any]:
        tick, worker_id, sequence = (ids >> f.shift & f.max for f in (self.timestamp, self.worker, self.sequence))
        return tick * self.tick_ms + self.epoch_ms, worker_id, sequence


# twitter-archive/snowflake, tag snowflake-2010, IdWorker.scala. Its datacenter (5 bits) and worker (5 bits) are one
# field of 10 bits here.
TWITTER = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1288834974657)

# Discord's developer documentation, "Snowflakes": epoch 2015-01-01; internal worker (5 bits) and process (5 bits) are
# one field here, worker_id = worker << 5 | process. Discord's timestamp has a 42nd bit, which would make IDs from
# 2084-09-06 on negative as int64: this layout ends there, and reads every ID issued until then.
DISCORD = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1420070400000)

# "Sharding & IDs at Instagram", Instagram Engineering, 2012: our_epoch of its PL/pgSQL function. The worker is the
# logical shard; 41 + 13 + 10 bits are 64, so IDs from 2046-06-27 on would be negative: 40 bits remain.
INSTAGRAM = Layout(timestamp=40, worker=13, sequence=10, epoch_ms=1314220021721)

# mastodon/mastodon, lib/mastodon/snowflake.rb: 48 bits of Unix milliseconds and 16 bits of sequence, no worker. There
# the sequence starts at a salted hash; here where `sequence_start` says. The 48th bit (the sign) is left out.
MASTODON = Layout(timestamp=47, sequence=16, epoch_ms=0)

# sony/sonyflake, version 1: units of 10 ms from 2014-09-01, sequence above machine id. Version 2 starts at 2025-01-01.
SONYFLAKE = Layout(timestamp=39, sequence=8, worker=16, epoch_ms=1409529600000, tick_ms=10)

# This library's own, from 2025-01-01 UTC to 2094: 64 workers at 65.5 million IDs a second each; one generator at
# 4.19 billion a second; and IDs below 2**53, which JavaScript's numbers hold exactly (16 workers, 256,000 a second).
WIDE = Layout(timestamp=41, worker=6, sequence=16, epoch_ms=1735689600000)
LOCAL = Layout(timestamp=41, sequence=22, epoch_ms=1735689600000)
JS53 = Layout(timestamp=41, worker=4, sequence=8, epoch_ms=1735689600000)

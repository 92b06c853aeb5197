"""How an ID's bits are shared out: `Layout`, and the layouts in use."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

from senet_fast.ids._numbers import check_int, decimal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LAST_MS = (datetime.max.replace(tzinfo=UTC) - _UNIX_EPOCH) // _MILLISECOND
_NAMES = ("timestamp", "worker", "sequence")


class SupportsArray(Protocol):
    """What NumPy makes an array of: its own arrays, pandas Series, Arrow arrays, tensors."""

    def __array__(self) -> npt.NDArray[Any]: ...


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


def _check_array(name: str, values: Any, low: int, high: int, why: str = "", dtypes: Any = ("int64",)) -> None:
    """As check_int(), for every item of an array."""
    if values.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {values.dtype}; expected {' or '.join(dtypes)}")
    if values.size:
        for extreme in (int(values.min()), int(values.max())):
            check_int(name, extreme, low, high, why)


def _milliseconds(name: str, time: Any, *, up: bool = False) -> int:
    """`time` in ms since 1970-01-01 UTC: rounded down, or up. Exact, since timedeltas are integers."""
    if isinstance(time, datetime):
        if time != time:  # pandas.NaT is a datetime, too
            raise ValueError(f"{name} is {time!r}; expected a time")
        if time.utcoffset() is None:
            raise ValueError(f"{name} {time.isoformat()} has no time zone; expected an aware datetime")
        elapsed = time - _UNIX_EPOCH
        return -(-elapsed // _MILLISECOND) if up else elapsed // _MILLISECOND
    if isinstance(time, bool) or not hasattr(time, "__index__"):
        raise TypeError(
            f"{name} is {time!r} ({type(time).__name__}); expected an int, in ms since 1970, or an aware datetime"
        )
    return operator.index(time)


@dataclass(frozen=True, init=False, repr=False)
class Layout:
    """The bit fields of an ID, its epoch and its tick. Immutable, hashable, compared by value.

    The fields are keywords, each with its width in bits, most significant first:
    `Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1288834974657)`. `worker` may be left out, which says that
    there is one generator only. Together they take at most 63 bits, so that an ID is a non-negative int64, and
    `timestamp` stands before `sequence`, so that a generator's IDs increase.

    `worker` may be a mapping of names to widths, such as `worker={"datacenter": 5, "worker": 5}`: worker_id() makes a
    worker id of such parts, and parts() takes it apart. Names are for people: layouts with the same bits are equal,
    have the same repr and the same leases, and share their generators' state, whatever their parts are called.

    epoch_ms: the instant of timestamp 0, in milliseconds since 1970-01-01 UTC.
    tick_ms: the unit of the timestamp field, in milliseconds.
    """

    timestamp: Field
    worker: Field
    sequence: Field
    epoch_ms: int
    tick_ms: int
    _parts: tuple[tuple[str, Field], ...] = field(compare=False)

    def __init__(self, *, epoch_ms: int, tick_ms: int = 1, **fields: int | Mapping[str, int]) -> None:
        for name in fields:
            if name not in _NAMES:
                raise TypeError(f"Layout has no field {name!r}; expected timestamp, worker and sequence")
        widths: dict[str, Any] = dict(fields)
        parts: dict[str, Field] = {}
        if isinstance(named := fields.get("worker"), Mapping):
            widths["worker"] = 0
            for name, width in reversed(list(named.items())):
                if not isinstance(name, str) or not name.isidentifier():
                    raise ValueError(f"worker names a part {name!r}; expected names that are Python identifiers")
                parts[name] = Field(check_int(f"worker[{name!r}]", width, 1, 61), widths["worker"])
                widths["worker"] += width
        for name in ("timestamp", "sequence"):
            if name not in widths:
                raise TypeError(f"Layout needs the width of its {name} field, in bits")
            check_int(name, widths[name], 1, 62)
        check_int("worker", widths.get("worker", 0), 0, 61)
        check_int("epoch_ms", epoch_ms, 0, _LAST_MS, " (the years 1970 to 9999)")
        check_int("tick_ms", tick_ms, 1, _LAST_MS)
        if (total := sum(widths.values())) > 63:
            terms = " + ".join(f"{name} {width}" for name, width in widths.items())
            raise ValueError(f"{terms} = {total} bits; expected at most 63, so that an ID is a non-negative int64")
        if list(widths).index("timestamp") > list(widths).index("sequence"):
            raise ValueError("sequence stands before timestamp; expected timestamp first, so that IDs increase")
        if epoch_ms + (tick_ms << widths["timestamp"]) > _LAST_MS:
            raise ValueError(
                f"timestamp = {widths['timestamp']} bits of tick_ms = {tick_ms} from epoch_ms = {epoch_ms} end after"
                " the year 9999, where datetimes end; expected fewer bits"
            )
        values: dict[str, Any] = dict.fromkeys(_NAMES, Field(0, 0))
        shift = total
        for name, width in widths.items():
            if width:
                shift -= width
                values[name] = Field(operator.index(width), shift)
        values |= {"epoch_ms": operator.index(epoch_ms), "tick_ms": operator.index(tick_ms)}
        values["_parts"] = tuple(reversed(parts.items()))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        fields = [(name, getattr(self, name)) for name in _NAMES if getattr(self, name).width]
        widths = ", ".join(f"{name}={field.width}" for name, field in sorted(fields, key=lambda f: -f[1].shift))
        tick = "" if self.tick_ms == 1 else f", tick_ms={self.tick_ms}"
        return f"Layout({widths}, epoch_ms={self.epoch_ms}{tick})"

    def worker_id(self, **parts: int) -> int:
        """The worker id of its named parts, all of them: TWITTER.worker_id(datacenter=3, worker=7) is 3 << 5 | 7."""
        names = [name for name, _ in self._parts]
        if set(parts) != set(names):
            raise TypeError(
                f"the parts are {', '.join(parts) or 'none'}; expected {', '.join(names) or 'none'}, as {self!r} has"
            )
        worker_id = 0
        for name, part in self._parts:
            worker_id |= check_int(name, parts[name], 0, part.max, f" ({part.width} bits)") << part.shift
        return worker_id

    @overload
    def parts(self, worker_id: int) -> dict[str, int]: ...
    @overload
    def parts(self, worker_id: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]: ...
    def parts(self, worker_id: Any) -> Any:
        """The named parts of a worker id, or of an int64 array of them; {} where the layout names none."""
        check = check_int if isinstance(worker_id, Integral) or not hasattr(worker_id, "dtype") else _check_array
        check("worker_id", worker_id, 0, self.worker.max, f" ({self.worker.width} bits)")
        return {name: worker_id >> part.shift & part.max for name, part in self._parts}

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

        With arrays of int64, or of datetime64 in UTC for the timestamp, an int64 array; they are broadcast. A time
        within a tick, such as one with microseconds, is rounded down to the tick's start.
        """
        if (numpy := sys.modules.get("numpy")) and any(
            isinstance(field, numpy.ndarray) for field in (timestamp, worker_id, sequence)
        ):
            return self._encode_array(timestamp, worker_id, sequence, numpy)
        time_ms = _milliseconds("timestamp", timestamp)
        shown = f"; it is {timestamp.isoformat()}" if isinstance(timestamp, datetime) else ""
        why = f" (from the epoch to before {self.lifetime_end.isoformat()}{shown})"
        tick = (check_int("timestamp", time_ms, self.epoch_ms, self._end_ms - 1, why) - self.epoch_ms) // self.tick_ms
        worker_id = check_int("worker_id", worker_id, 0, self.worker.max, f" ({self.worker.width} bits)")
        sequence = check_int("sequence", sequence, 0, self.sequence.max, f" ({self.sequence.width} bits)")
        return tick << self.timestamp.shift | worker_id << self.worker.shift | sequence << self.sequence.shift

    def _encode_array(self, timestamp: Any, worker_id: Any, sequence: Any, numpy: Any) -> Any:
        if isinstance(timestamp, numpy.ndarray) and timestamp.dtype.kind == "M":
            if numpy.isnat(timestamp).any():
                raise ValueError("timestamp holds NaT; expected times")
            times = timestamp.astype("datetime64[ms]")
            if numpy.can_cast(timestamp.dtype, times.dtype) and (times.astype(timestamp.dtype) != timestamp).any():
                raise ValueError("timestamp holds times that are too far from 1970 for an int64 of milliseconds")
            timestamp = times.astype(numpy.int64)
        elif not isinstance(timestamp, numpy.ndarray):
            timestamp = _milliseconds("timestamp", timestamp)
        ranges = {
            "timestamp": (timestamp, self.epoch_ms, self._end_ms - 1),
            "worker_id": (worker_id, 0, self.worker.max),
            "sequence": (sequence, 0, self.sequence.max),
        }
        for name, (values, low, high) in ranges.items():
            check = _check_array if isinstance(values, numpy.ndarray) else check_int
            check(name, values, low, high)
        tick = (timestamp - self.epoch_ms) // self.tick_ms
        fields = ((tick, self.timestamp), (worker_id, self.worker), (sequence, self.sequence))
        return functools.reduce(
            operator.or_, (numpy.asarray(part, numpy.int64) << field.shift for part, field in fields)
        )

    def min_id(self, time: int | datetime) -> int:
        """The smallest ID of a tick that begins at or after `time`: IDs of [a, b) are min_id(a) <= id < min_id(b).

        `time`: as in encode(), to the microsecond. Any time before the epoch gives 0, any past the lifetime the first
        number that is no ID. A tick that begins before `time` counts as before it, as a whole. Needs a layout whose
        timestamp comes first.
        """
        self._check_order()
        elapsed = _milliseconds("time", time, up=True) - self.epoch_ms
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
    def decode(self, ids: int | str | np.integer[Any]) -> DecodedID: ...  # type: ignore[overload-overlap]
    @overload
    def decode(self, ids: Sequence[int | str]) -> list[DecodedID]: ...
    @overload
    def decode(self, ids: SupportsArray) -> DecodedIDs: ...
    def decode(self, ids: Any) -> Any:
        """The fields of an ID, which may be an int or a decimal string, or of many.

        A list or another sequence of IDs gives a list of DecodedID. An array of int64 or uint64, or what NumPy makes
        one of, such as a pandas Series, gives DecodedIDs. Numbers too large for the layout raise ValueError.
        """
        if isinstance(ids, Integral | str):
            return self._decode_one("id", ids)
        if hasattr(ids, "__array__"):
            return self._decode_array(ids.__array__())
        if isinstance(ids, Sequence) and not isinstance(ids, bytes | bytearray):
            return [self._decode_one(f"ids[{at}]", number) for at, number in enumerate(ids)]
        raise TypeError(
            f"id is {ids!r} ({type(ids).__name__}); expected an int, a decimal string, or a list or array of IDs"
        )

    def _decode_one(self, name: str, number: Any) -> DecodedID:
        number = decimal(name, number) if isinstance(number, str) else number
        timestamp_ms, worker_id, sequence = self._fields(check_int(name, number, 0, self._last_id, self._id_bits))
        return DecodedID(_UNIX_EPOCH + timestamp_ms * _MILLISECOND, timestamp_ms, worker_id, sequence)

    def _decode_array(self, ids: Any) -> DecodedIDs:
        _check_array("ids", ids, 0, self._last_id, self._id_bits, ("int64", "uint64"))
        timestamp_ms, worker_id, sequence = self._fields(ids.astype("int64", copy=False))
        return DecodedIDs(timestamp_ms.astype("datetime64[ms]"), timestamp_ms, worker_id, sequence)

    @property
    def _id_bits(self) -> str:
        return f" (the {self._last_id.bit_length()} bits of the layout)"

    @property
    def _last_id(self) -> int:
        return (1 << (self.timestamp.width + self.worker.width + self.sequence.width)) - 1

    def _fields(self, ids: Any) -> tuple[Any, Any, Any]:
        tick, worker_id, sequence = (ids >> f.shift & f.max for f in (self.timestamp, self.worker, self.sequence))
        return tick * self.tick_ms + self.epoch_ms, worker_id, sequence


# twitter-archive/snowflake, tag snowflake-2010, IdWorker.scala.
TWITTER = Layout(timestamp=41, worker={"datacenter": 5, "worker": 5}, sequence=12, epoch_ms=1288834974657)

# Discord's developer documentation, "Snowflakes": epoch 2015-01-01. Discord's timestamp has a 42nd bit, which would
# make IDs from 2084-09-06 on negative as int64: this layout ends there, and reads every ID issued until then.
DISCORD = Layout(timestamp=41, worker={"worker": 5, "process": 5}, sequence=12, epoch_ms=1420070400000)

# "Sharding & IDs at Instagram", Instagram Engineering, 2012: our_epoch of its PL/pgSQL function. The worker is the
# logical shard; 41 + 13 + 10 bits are 64, so IDs from 2046-06-27 on would be negative: 40 bits remain.
INSTAGRAM = Layout(timestamp=40, worker=13, sequence=10, epoch_ms=1314220021721)

# mastodon/mastodon, lib/mastodon/snowflake.rb: 48 bits of Unix milliseconds and 16 bits of sequence, no worker. There
# the sequence starts at a salted hash; here where `sequence_start` says. The 48th bit (the sign) is left out.
MASTODON = Layout(timestamp=47, sequence=16, epoch_ms=0)

# sony/sonyflake, sonyflake.go: units of 10 ms from 2014-09-01, sequence above machine id; and v2/sonyflake.go, whose
# defaults differ in the epoch alone, 2025-01-01.
SONYFLAKE = Layout(timestamp=39, sequence=8, worker=16, epoch_ms=1409529600000, tick_ms=10)
SONYFLAKE_V2 = Layout(timestamp=39, sequence=8, worker=16, epoch_ms=1735689600000, tick_ms=10)

# baidu/uid-generator, DefaultUidGenerator.java: the defaults, seconds from 2016-05-20 in China, as milliseconds there.
# They ended on 2024-11-20: this layout reads what was issued until then.
BAIDU = Layout(timestamp=28, worker=22, sequence=13, epoch_ms=1463673600000, tick_ms=1000)

# Meituan-Dianping/Leaf, SnowflakeIDGenImpl.java: bits and default epoch of TWITTER, one worker id from ZooKeeper. There
# a millisecond's sequence starts at random below 100; a generator here counts from 0.
LEAF = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1288834974657)

# yitter/IdGenerator, SnowWorkerM1.java and its C, Go, Rust and PHP: 6 bits of worker, 6 of sequence, and milliseconds
# from 2020-02-19T18:20:02Z. Its C# counts from 2020-02-20T02:20:02.020Z and its Python from TWITTER's epoch: they need
# a Layout with that epoch. There sequences 0 to 4 are reserved; a generator here counts from 0. Of 51 bits for the time
# 47 are used, which last until 6479.
YITTER = Layout(timestamp=47, worker=6, sequence=6, epoch_ms=1582136402000)

# This library's own, from 2025-01-01 UTC to 2094: 64 workers at 65.5 million IDs a second each; one generator at
# 4.19 billion a second; and IDs below 2**53, which JavaScript's numbers hold exactly (16 workers, 256,000 a second).
WIDE = Layout(timestamp=41, worker=6, sequence=16, epoch_ms=1735689600000)
LOCAL = Layout(timestamp=41, sequence=22, epoch_ms=1735689600000)
JS53 = Layout(timestamp=41, worker=4, sequence=8, epoch_ms=1735689600000)

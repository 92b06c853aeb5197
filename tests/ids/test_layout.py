import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from senet_fast import ids
from senet_fast.ids import DISCORD, INSTAGRAM, JS53, LOCAL, MASTODON, SONYFLAKE, TWITTER, WIDE, Layout

NAMED = {name: getattr(ids, name) for name in ids.__all__ if isinstance(getattr(ids, name), Layout)}


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    timestamp, worker, sequence = draw(st.integers(1, 41)), draw(st.integers(0, 10)), draw(st.integers(1, 12))
    names = draw(st.permutations(["timestamp", "worker", "sequence"]))
    if names.index("timestamp") > names.index("sequence"):
        names.reverse()
    widths = {"timestamp": timestamp, "worker": worker, "sequence": sequence}
    tick_ms = draw(st.sampled_from([1, 2, 10, 64]))
    return Layout(epoch_ms=draw(st.integers(0, 10**12)), tick_ms=tick_ms, **{name: widths[name] for name in names})


@given(layouts(), st.data())
def test_decode_inverts_encode(layout: Layout, data: st.DataObject) -> None:
    tick = data.draw(st.integers(0, layout.timestamp.max))
    worker_id = data.draw(st.integers(0, layout.worker.max))
    sequence = data.draw(st.integers(0, layout.sequence.max))
    timestamp_ms = layout.epoch_ms + tick * layout.tick_ms
    number = layout.encode(timestamp_ms, worker_id, sequence)
    assert 0 <= number < 2**63
    decoded = layout.decode(number)
    assert decoded[1:] == (timestamp_ms, worker_id, sequence)
    assert layout.encode(decoded.timestamp, decoded.worker_id, decoded.sequence) == number
    assert layout.encode(timestamp_ms + layout.tick_ms - 1, worker_id, sequence) == number
    arrays = layout.decode(np.array([[number]]))
    assert [array.item() for array in arrays[1:]] == [timestamp_ms, worker_id, sequence]
    assert eval(repr(layout)) == layout


# Published IDs with the fields their publishers give.
KNOWN = [
    # Wikipedia, "Snowflake ID": a tweet, its time, machine and sequence.
    (TWITTER, 1541815603606036480, "2022-06-28T16:07:40.105+00:00", 378, 0),
    # Discord's developer documentation, "Convert Snowflake to DateTime": worker 1, process 0, increment 7.
    (DISCORD, 175928847299117063, "2016-04-30T11:18:25.796+00:00", 1 << 5 | 0, 7),
    # The README of npm's discord-snowflake: worker 0, process 3, increment 0.
    (DISCORD, 90339695967350784, "2015-09-07T06:57:41.949+00:00", 0 << 5 | 3, 0),
    # twilight-util's documentation of Snowflake.timestamp (time only).
    (DISCORD, 105484726235607040, "2015-10-19T01:58:38.546+00:00", None, None),
    # "Sharding & IDs at Instagram": 1387263000 ms after the epoch, user 31341 of 2000 shards, 5001 modulo 1024.
    (INSTAGRAM, 1387263000 << 23 | 1341 << 10 | 905, "2011-09-09T22:28:04.721+00:00", 1341, 905),
]


@pytest.mark.parametrize(("layout", "number", "time", "worker_id", "sequence"), KNOWN)
def test_published_ids(layout: Layout, number: int, time: str, worker_id: int | None, sequence: int | None) -> None:
    decoded = layout.decode(number)
    assert decoded.timestamp == datetime.fromisoformat(time)
    if worker_id is not None:
        assert decoded[2:] == (worker_id, sequence)
    assert layout.encode(*decoded[1:]) == number


def test_field_order_is_bit_order() -> None:
    assert SONYFLAKE.encode(SONYFLAKE.epoch_ms + 10, worker_id=3, sequence=2) == 1 << 24 | 2 << 16 | 3
    assert TWITTER.encode(TWITTER.epoch_ms + 1, worker_id=3, sequence=2) == 1 << 22 | 3 << 12 | 2
    worker_first = Layout(worker=10, timestamp=41, sequence=12, epoch_ms=0)
    assert worker_first.encode(1, worker_id=3, sequence=2) == 3 << 53 | 1 << 12 | 2


@pytest.mark.parametrize(
    ("layout", "year", "workers", "a_second"),
    [
        (TWITTER, 2080, 1024, 4_096_000),
        (DISCORD, 2084, 1024, 4_096_000),
        (INSTAGRAM, 2046, 8192, 1_024_000),
        (MASTODON, 6429, 1, 65_536_000),
        (SONYFLAKE, 2188, 65536, 25_600),
        (WIDE, 2094, 64, 65_536_000),
        (LOCAL, 2094, 1, 4_194_304_000),
        (JS53, 2094, 16, 256_000),
    ],
)
def test_named_layouts(layout: Layout, year: int, workers: int, a_second: int) -> None:
    assert layout.lifetime_end.year == year
    assert layout.worker.max + 1 == workers
    assert (layout.sequence.max + 1) * 1000 // layout.tick_ms == a_second
    last = layout.encode(layout.lifetime_end - timedelta(milliseconds=1), layout.worker.max, layout.sequence.max)
    assert last == layout.encode(*layout.decode(last)[1:]) < 2**63
    if layout is JS53:
        assert last == 2**53 - 1


def test_every_named_layout_is_tested() -> None:
    assert len(NAMED) == 8


def test_is_a_value() -> None:
    same = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1288834974657)
    assert same == TWITTER
    assert hash(same) == hash(TWITTER)
    assert TWITTER != DISCORD
    assert Layout(timestamp=41, sequence=12, epoch_ms=0) == Layout(timestamp=41, worker=0, sequence=12, epoch_ms=0)
    assert pickle.loads(pickle.dumps(SONYFLAKE)) == copy.deepcopy(SONYFLAKE) == SONYFLAKE
    with pytest.raises(AttributeError):
        TWITTER.epoch_ms = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, TypeError, "width of its timestamp"),
        ({"timestamp": 41}, TypeError, "width of its sequence"),
        ({"timestamp": 41, "sequence": 12, "machine": 10}, TypeError, "no field 'machine'"),
        ({"timestamp": 0, "sequence": 12}, ValueError, "timestamp = 0; expected 1 <= timestamp"),
        ({"timestamp": 41, "sequence": 0}, ValueError, "sequence = 0; expected 1 <= sequence"),
        ({"timestamp": 41, "worker": -1, "sequence": 12}, ValueError, "worker = -1; expected 0 <= worker"),
        ({"timestamp": 41, "worker": 1.0, "sequence": 12}, TypeError, r"worker is 1\.0 \(float\); expected an int"),
        ({"timestamp": True, "sequence": 12}, TypeError, r"timestamp is True \(bool\)"),
        ({"timestamp": 41, "worker": 11, "sequence": 12}, ValueError, "= 64 bits; expected at most 63"),
        ({"sequence": 12, "timestamp": 41}, ValueError, "sequence stands before timestamp"),
        ({"timestamp": 50, "sequence": 12}, ValueError, "after the year 9999"),
        ({"timestamp": 41, "sequence": 12, "tick_ms": 1000}, ValueError, "after the year 9999"),
        ({"timestamp": 41, "sequence": 12, "tick_ms": 0}, ValueError, "tick_ms = 0; expected 1 <= tick_ms"),
        ({"timestamp": 41, "sequence": 12, "tick_ms": 0.5}, TypeError, "tick_ms is 0.5"),
        ({"timestamp": 41, "sequence": 12, "epoch_ms": -1}, ValueError, "epoch_ms = -1; expected 0 <= epoch_ms"),
        ({"timestamp": 41, "sequence": 12, "epoch_ms": "2020"}, TypeError, "epoch_ms is '2020'"),
    ],
)
def test_bad_settings(settings: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Layout(**{"epoch_ms": 0, **settings})


def test_epoch_is_required() -> None:
    with pytest.raises(TypeError, match="epoch_ms"):
        Layout(timestamp=41, sequence=12)  # type: ignore[call-arg]


def test_encode_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="timestamp = 0; expected 1288834974657 <= timestamp"):
        TWITTER.encode(0)
    with pytest.raises(ValueError, match="2080-07-10"):
        TWITTER.encode(TWITTER.lifetime_end)
    with pytest.raises(ValueError, match=r"worker_id = 1024; .* \(10 bits\)"):
        TWITTER.encode(1656432460105, 1024)
    with pytest.raises(ValueError, match=r"sequence = 4096; .* \(12 bits\)"):
        TWITTER.encode(1656432460105, 0, 4096)
    with pytest.raises(ValueError, match="no time zone"):
        TWITTER.encode(datetime(2022, 6, 28))
    with pytest.raises(TypeError, match="timestamp is '2022'"):
        TWITTER.encode("2022")  # type: ignore[arg-type]


def test_encode_takes_any_time_zone() -> None:
    utc = datetime(2022, 6, 28, 16, 7, 40, 105_999, tzinfo=UTC)
    assert TWITTER.encode(utc, 378) == 1541815603606036480
    assert TWITTER.encode(utc.astimezone(timezone(timedelta(hours=9))), 378) == 1541815603606036480


def test_decode_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="id = -1"):
        TWITTER.decode(-1)
    with pytest.raises(ValueError, match=r"id = 9007199254740992; .* \(the 53 bits of the layout\)"):
        JS53.decode(2**53)
    with pytest.raises(TypeError, match=r"id is '1' \(str\)"):
        TWITTER.decode("1")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="dtype float64"):
        TWITTER.decode(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ids = -5"):
        TWITTER.decode(np.array([1, -5]))


def test_decode_of_arrays() -> None:
    numbers = np.array([[number for layout, number, *_ in KNOWN if layout is DISCORD]])
    decoded = DISCORD.decode(numbers)
    assert decoded.timestamp.dtype == np.dtype("datetime64[ms]")
    assert decoded.timestamp.shape == decoded.worker_id.shape == decoded.sequence.shape == numbers.shape
    assert decoded.timestamp[0, 0] == np.datetime64("2016-04-30T11:18:25.796")
    for position, number in enumerate(numbers[0]):
        one = DISCORD.decode(number)
        assert decoded.timestamp.astype("datetime64[us]").tolist()[0][position] == one.timestamp.replace(tzinfo=None)
        assert [array[0, position] for array in decoded[1:]] == list(one[1:])
    assert DISCORD.decode(np.array([], np.int64)).timestamp.size == 0

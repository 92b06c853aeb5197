import copy
import pickle
from array import array
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import needs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ids_testing import Generator

from senet_fast import ids
from senet_fast.ids import (
    BAIDU,
    DISCORD,
    INSTAGRAM,
    JS53,
    LEAF,
    LOCAL,
    MASTODON,
    SONYFLAKE,
    SONYFLAKE_V2,
    TWITTER,
    WIDE,
    YITTER,
    DecodedIDs,
    Layout,
)
from senet_fast.ids.leases._store import layout_name

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
    # The README of baidu/uid-generator: its configuration, an ID, and what parseUID() says of it, in China's time.
    (
        Layout(timestamp=29, worker=21, sequence=13, epoch_ms=1474300800000, tick_ms=1000),
        180363646902239241,
        "2017-01-19T12:15:46+08:00",
        4,
        9,
    ),
    # The README of yitter/IdGenerator: an ID "after one year"; worker and sequence are what its other three have, too.
    (YITTER, 129053495681099, "2021-02-18T10:20:03.094+00:00", 1, 11),
]


@pytest.mark.parametrize(("layout", "number", "time", "worker_id", "sequence"), KNOWN)
def test_published_ids(layout: Layout, number: int, time: str, worker_id: int | None, sequence: int | None) -> None:
    decoded = layout.decode(number)
    assert decoded.timestamp == datetime.fromisoformat(time)
    if worker_id is not None:
        assert decoded[2:] == (worker_id, sequence)
    assert layout.encode(*decoded[1:]) == number


def test_published_epochs_and_ends() -> None:
    """What the sources say in words."""
    assert BAIDU.lifetime_end == datetime.fromisoformat("2024-11-20T21:24:16+08:00")  # DefaultUidGenerator.java
    assert BAIDU.decode(0).timestamp == datetime.fromisoformat("2016-05-20T00:00:00+08:00")
    assert SONYFLAKE_V2.decode(0).timestamp == datetime(2025, 1, 1, tzinfo=UTC)  # v2/sonyflake.go
    assert LEAF.decode(0).timestamp_ms == 1288834974657  # SnowflakeIDGenImpl.java
    last = datetime.fromisoformat("2025-02-18T10:20:03.097+00:00")  # README of yitter/IdGenerator, "after five years"
    assert (YITTER.decode(646093214093387).timestamp, YITTER.decode(646093214093387)[2:]) == (last, (1, 11))


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
        (SONYFLAKE_V2, 2199, 65536, 25_600),
        (BAIDU, 2024, 4194304, 8192),
        (LEAF, 2080, 1024, 4_096_000),
        (YITTER, 6479, 64, 64_000),
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
    assert len(NAMED) == 12


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
        ({"timestamp": {"a": 41}, "sequence": 12}, TypeError, r"timestamp is \{'a': 41\} \(dict\)"),
        ({"timestamp": 41, "worker": {"a": 0}, "sequence": 12}, ValueError, r"worker\['a'\] = 0; expected 1 <="),
        ({"timestamp": 41, "worker": {"a": "5"}, "sequence": 12}, TypeError, r"worker\['a'\] is '5'"),
        ({"timestamp": 41, "worker": {"a b": 5}, "sequence": 12}, ValueError, "a part 'a b'; expected names that"),
        ({"timestamp": 41, "worker": {"a": 5, "b": 6}, "sequence": 12}, ValueError, "worker 11 .* = 64 bits"),
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


WEST, EAST = timezone(-timedelta(hours=23, minutes=59)), timezone(timedelta(hours=23, minutes=59))


@pytest.mark.parametrize(
    ("time", "error", "message"),
    [
        (datetime.max.replace(tzinfo=WEST), ValueError, "timestamp = 253402387139999; .* it is 9999-12-31T23:59:59.9"),
        (datetime.min.replace(tzinfo=EAST), ValueError, "timestamp = -[0-9]+; expected 1288834974657 <= timestamp <="),
        (datetime.max.replace(tzinfo=UTC), ValueError, "to before 2080-07-10T17:30:30.209000"),
        (TWITTER.lifetime_end, ValueError, "it is 2080-07-10T17:30:30.209000"),
        (datetime(2010, 11, 4, tzinfo=UTC), ValueError, "it is 2010-11-04T00:00:00"),
        (datetime.max, ValueError, "timestamp 9999-12-31T23:59:59.999999 has no time zone; expected an aware datetime"),
        (2**70, ValueError, "timestamp = 1180591620717411303424; expected 1288834974657 <= timestamp"),
        (float("nan"), TypeError, "timestamp is nan .float.; expected an int, in ms since 1970, or an aware datetime"),
        (date(2024, 5, 1), TypeError, r"timestamp is datetime.date\(2024, 5, 1\) .date.; expected an int"),
        (np.datetime64("2024-05-01"), TypeError, r"timestamp is np.datetime64\('2024-05-01'\) .datetime64.; expected"),
    ],
)
def test_absurd_times_are_refused(time: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TWITTER.encode(time)  # type: ignore[call-overload]
    if isinstance(time, datetime) and time.tzinfo:  # ranges may begin and end anywhere
        ends = {0, TWITTER.min_id(TWITTER.epoch_ms), TWITTER.max_id(0) + 1, 2**63}
        assert {TWITTER.min_id(time), TWITTER.max_id(time) + 1} <= ends


def test_pandas_has_a_datetime_that_is_none() -> None:
    pandas = needs.library("pandas")
    for call in (TWITTER.encode, TWITTER.min_id, TWITTER.max_id):
        with pytest.raises(ValueError, match=r"(timestamp|time) is NaT; expected a time"):
            call(pandas.NaT)
    time = pandas.Timestamp("2024-05-01T00:00:00.000000001Z")  # nanoseconds count, too
    assert TWITTER.decode(TWITTER.encode(time)).timestamp == datetime(2024, 5, 1, tzinfo=UTC)
    assert TWITTER.decode(TWITTER.min_id(time)).timestamp == datetime(2024, 5, 1, 0, 0, 0, 1000, tzinfo=UTC)


def test_encode_takes_any_time_zone() -> None:
    utc = datetime(2022, 6, 28, 16, 7, 40, 105_999, tzinfo=UTC)
    assert TWITTER.encode(utc, 378) == 1541815603606036480
    assert TWITTER.encode(utc.astimezone(timezone(timedelta(hours=9))), 378) == 1541815603606036480


def test_decode_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="id = -1"):
        TWITTER.decode(-1)
    with pytest.raises(ValueError, match=r"id = 9007199254740992; .* \(the 53 bits of the layout\)"):
        JS53.decode(2**53)
    with pytest.raises(TypeError, match="dtype float64"):
        TWITTER.decode(np.zeros(3))
    with pytest.raises(ValueError, match="ids = -5"):
        TWITTER.decode(np.array([1, -5]))
    with pytest.raises(ValueError, match="ids = 9223372036854775808; expected 0 <= ids <= 9223372036854775807"):
        TWITTER.decode(np.array([2**63], np.uint64))
    with pytest.raises(ValueError, match=r"ids\[1\] = -5; expected 0 <= ids\[1\]"):
        TWITTER.decode([1, -5])
    with pytest.raises(TypeError, match=r"ids\[0\] is \[1\] \(list\)"):
        TWITTER.decode([[1]])  # type: ignore[list-item]
    for wrong in (1.0, None, b"1", {1}, iter([1])):
        with pytest.raises(TypeError, match=r"id is .*; expected an int, a decimal string, or a list or"):
            TWITTER.decode(wrong)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "1_0", " 1", "1\n", "1e5", "0x1", "1.0", "\u0661", "\uff11", "\u00b9", "9" * 20, "9" * 10000],
)
def test_only_ascii_digits_are_ids(text: str) -> None:
    with pytest.raises(ValueError, match=r"id is '.*'; expected a decimal number, of 1 to 19 of the digits 0 to 9"):
        TWITTER.decode(text)
    with pytest.raises(ValueError, match=r"ids\[1\] is '"):
        TWITTER.decode(["1", text])


def test_decode_takes_what_users_have(generator_class: Generator, worker_id: int) -> None:
    known = 1541815603606036480
    one = TWITTER.decode(known)
    # The compiled class and its twin ask the layout.
    for decode in (TWITTER.decode, generator_class(worker_id).decode):
        assert decode(str(known)) == decode(np.int64(known)) == decode(np.uint64(known)) == one
        for many in ([known, str(known)], (str(known), known), array("q", [known, known])):
            assert decode(many) == [one, one]
        assert decode([]) == []
        for numbers in (np.array([known, 0]), np.array([known, 0], np.uint64), np.array([0, known])[::-1]):
            decoded = decode(numbers)
            assert isinstance(decoded, DecodedIDs)
            assert [column.dtype for column in decoded] == ["datetime64[ms]", "int64", "int64", "int64"]
            assert [column[0] for column in decoded[1:]] == list(one[1:])


def test_decode_takes_what_numpy_makes_an_array_of() -> None:
    pandas = needs.library("pandas")
    numbers = [1541815603606036480, 0]
    for series in (pandas.Series(numbers), pandas.Series(numbers, dtype="uint64")):
        assert TWITTER.decode(series).worker_id.tolist() == [378, 0]
    with pytest.raises(TypeError, match="ids has dtype object; expected int64 or uint64"):
        TWITTER.decode(pandas.Series(list(map(str, numbers)), dtype=object))
    pyarrow = needs.library("pyarrow")
    assert TWITTER.decode(pyarrow.array(numbers)).worker_id.tolist() == [378, 0]


def test_a_worker_id_has_named_parts() -> None:
    """IDs, workers, processes: Discord's documentation and the README of npm's discord-snowflake, as in KNOWN."""
    for number, parts in ((175928847299117063, (1, 0)), (90339695967350784, (0, 3))):
        worker_id = DISCORD.decode(number).worker_id
        assert DISCORD.parts(worker_id) == {"worker": parts[0], "process": parts[1]}
        assert DISCORD.worker_id(process=parts[1], worker=parts[0]) == worker_id
    assert TWITTER.worker_id(datacenter=3, worker=7) == 3 << 5 | 7
    columns = TWITTER.parts(np.array([3 << 5 | 7, 31]))
    assert {name: column.tolist() for name, column in columns.items()} == {"datacenter": [3, 0], "worker": [7, 31]}
    three = Layout(timestamp=41, worker={"a": 1, "b": 2, "c": 3}, sequence=12, epoch_ms=0)
    assert three.worker.width == 6
    assert list(three.parts(0b1_10_101).items()) == [("a", 1), ("b", 2), ("c", 5)]
    assert all(three.worker_id(**three.parts(number)) == number for number in range(64))
    assert JS53.parts(3) == {}
    assert JS53.worker_id() == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: TWITTER.worker_id(worker=7),
            TypeError,
            "the parts are worker; expected datacenter, worker, as Layout",
        ),
        (lambda: TWITTER.worker_id(7), TypeError, "positional"),
        (lambda: JS53.worker_id(worker=7), TypeError, "the parts are worker; expected none, as Layout"),
        (lambda: TWITTER.worker_id(datacenter=32, worker=7), ValueError, r"datacenter = 32; expected .* \(5 bits\)"),
        (lambda: TWITTER.worker_id(datacenter=3, worker="7"), TypeError, "worker is '7'"),
        (lambda: TWITTER.parts(1024), ValueError, r"worker_id = 1024; expected .* \(10 bits\)"),
        (lambda: TWITTER.parts(np.array([0, 1024])), ValueError, "worker_id = 1024"),
        (lambda: TWITTER.parts(np.zeros(1)), TypeError, "worker_id has dtype float64; expected int64"),
    ],
)
def test_bad_parts(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_names_of_parts_make_no_other_layout(
    generator_class: Generator, own_layout: Layout, fake_clock: Callable[[], int], tmp_path: Path
) -> None:
    """Processes, threads and leases of one worker must meet, whether or not they name its parts."""
    names = Layout(timestamp=41, worker={"rack": 4, "slot": 6}, sequence=12, epoch_ms=own_layout.epoch_ms)
    others = Layout(timestamp=41, worker={"pod": 10}, sequence=12, epoch_ms=own_layout.epoch_ms)
    assert names == others == own_layout
    assert hash(names) == hash(others) == hash(own_layout)
    assert repr(names) == repr(own_layout)
    assert layout_name(names) == layout_name(own_layout)
    assert LEAF == TWITTER
    assert pickle.loads(pickle.dumps(names)).parts(65) == copy.deepcopy(names).parts(65) == {"rack": 1, "slot": 1}
    for slot, file in enumerate((None, tmp_path / "last")):
        worker_id = names.worker_id(rack=0, slot=slot)
        settings = {"clock": fake_clock, "file": file}
        generators = [generator_class(worker_id, layout, **settings) for layout in (names, own_layout, others)]
        drawn = [generator.next_id() for _ in range(100) for generator in generators]
        assert drawn == sorted(set(drawn))


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

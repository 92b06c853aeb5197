"""Time ranges, strings, and whole arrays of fields."""

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import needs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from senet_fast.ids import (
    BAIDU,
    DISCORD,
    INSTAGRAM,
    JS53,
    LOCAL,
    SONYFLAKE,
    TWITTER,
    WIDE,
    Layout,
    from_string,
    to_string,
)
from senet_fast.ids.strings import FORMS

MAX = 2**63 - 1


@pytest.mark.parametrize("form", FORMS)
@given(numbers=st.tuples(*[st.integers(0, MAX) | st.sampled_from([0, 1, MAX - 1, MAX])] * 2))
def test_strings_sort_like_their_ids(form: str, numbers: tuple[int, int]) -> None:
    texts = [to_string(number, form) for number in numbers]
    assert [from_string(text, form) for text in texts] == list(numbers)
    assert {len(text) for text in texts} == {FORMS[form].width}
    assert (texts[0] < texts[1]) == (numbers[0] < numbers[1])
    assert (texts[0].encode() < texts[1].encode()) == (numbers[0] < numbers[1])


@pytest.mark.parametrize(
    ("form", "number", "text"),
    [
        ("hex", 1541815603606036480, "1565a11f6217a000"),
        ("hex", MAX, "7fffffffffffffff"),
        ("base32", 31, "000000000000Z"),
        ("base32", MAX, "7ZZZZZZZZZZZZ"),
        ("base62", 61, "0000000000z"),
        ("base62", MAX, "AzL8n0Y58m7"),
        ("base62", 0, "00000000000"),
    ],
)
def test_known_strings(form: str, number: int, text: str) -> None:
    assert to_string(number, form) == text
    assert from_string(text, form) == number


def test_what_people_type_is_read() -> None:
    assert from_string("7zzzzzzzzzzzz", "base32") == from_string("7ZZZZZZZZZZZZ", "base32")
    assert from_string("00000000O1IlL", "base32") == from_string("0000000001111", "base32")
    assert from_string("00000000000000FF", "hex") == 255


@pytest.mark.parametrize(
    ("text", "form", "error", "message"),
    [
        ("", "hex", ValueError, "0 characters; expected 16 of hex"),
        ("0" * 12, "base62", ValueError, "12 characters; expected 11"),
        ("8ZZZZZZZZZZZZ", "base32", ValueError, "expected at most '7ZZZZZZZZZZZZ'"),
        ("000000000000U", "base32", ValueError, "'U' is no digit of base32"),
        ("0000000000_", "base62", ValueError, "'_' is no digit"),
        ("\u0660" * 11, "base62", ValueError, "is no digit of base62"),
        (5, "hex", TypeError, "text is 5"),
        ("5", "roman", ValueError, "form is 'roman'; expected one of hex, base32, base62"),
    ],
)
def test_bad_strings(text: str, form: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_string(text, form)


def test_bad_numbers() -> None:
    for number, error in [(-1, ValueError), (2**63, ValueError), (1.0, TypeError), (True, TypeError)]:
        with pytest.raises(error, match="id "):
            to_string(number)


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ODD_TICK = Layout(timestamp=39, worker=3, sequence=4, epoch_ms=1_234_567_890_123, tick_ms=7)


@pytest.mark.parametrize("layout", [TWITTER, SONYFLAKE, BAIDU, ODD_TICK], ids=repr)
@given(data=st.data())
def test_ranges_to_the_microsecond(layout: Layout, data: st.DataObject) -> None:
    """An ID belongs to [a, b) if its tick begins there. Counted in integers of microseconds, near ticks' edges too."""
    tick_us = layout.tick_ms * 1000
    near = st.sampled_from([0, 1, layout.timestamp.max - 1, layout.timestamp.max, layout.timestamp.max // 3])
    tick, other = data.draw(near), data.draw(near)
    number = layout.encode(layout.epoch_ms + tick * layout.tick_ms, sequence=data.draw(st.integers(0, 15)))
    from_edge = st.integers(-2 * tick_us, 2 * tick_us) | st.sampled_from(
        [-1001, -1000, -999, -1, 0, 1, 999, 1000, 1001]
    )
    time_us = layout.epoch_ms * 1000 + other * tick_us + data.draw(from_edge)
    time = EPOCH + timedelta(microseconds=time_us)
    begins_us = layout.epoch_ms * 1000 + tick * tick_us
    zone = timezone(timedelta(hours=data.draw(st.integers(-12, 14))))
    assert (number >= layout.min_id(time.astimezone(zone))) == (begins_us >= time_us)
    assert (number <= layout.max_id(time.astimezone(zone))) == (begins_us <= time_us)
    first = layout.min_id(time)
    if 0 < first <= layout._last_id:  # the smallest ID of its tick, which is the first at or after the time
        begin = layout.decode(first).timestamp
        assert begin - layout.tick_ms * timedelta(milliseconds=1) < time <= begin
        assert first & layout.worker.max << layout.worker.shift == first & layout.sequence.max == 0


def test_a_day_that_ends_at_its_last_microsecond() -> None:
    day, last = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 5, 1, 23, 59, 59, 999_999, tzinfo=UTC)
    of_its_last_millisecond = TWITTER.encode(last, 1023, 4095)
    assert TWITTER.min_id(day) <= of_its_last_millisecond < TWITTER.min_id(last)
    assert of_its_last_millisecond == TWITTER.max_id(last)
    assert TWITTER.min_id(day + timedelta(microseconds=500)) == TWITTER.min_id(day + timedelta(milliseconds=1))
    sqlalchemy = needs.library("sqlalchemy")
    from senet_fast.ids.sqlalchemy import in_time_range

    condition = in_time_range(sqlalchemy.column("id"), day + timedelta(microseconds=1), last, TWITTER)
    bounds = [TWITTER.encode(day) + (1 << 22), of_its_last_millisecond]
    assert list(condition.compile().params.values()) == bounds


@pytest.mark.parametrize("layout", [TWITTER, SONYFLAKE, JS53, LOCAL], ids=repr)
@given(data=st.data())
def test_ranges_of_time(layout: Layout, data: st.DataObject) -> None:
    span = layout.tick_ms * 20
    begin = data.draw(st.sampled_from([layout.epoch_ms, 1_800_000_000_000, layout._end_ms]))
    at, time = (data.draw(st.integers(begin - span, begin + span)) for _ in range(2))
    at = min(max(at, layout.epoch_ms), layout._end_ms - 1)
    number = layout.encode(
        at, data.draw(st.integers(0, layout.worker.max)), data.draw(st.integers(0, layout.sequence.max))
    )
    shown = layout.decode(number).timestamp_ms
    assert (number >= layout.min_id(time)) == (shown >= time)
    assert (number <= layout.max_id(time)) == (shown <= time)


def test_published_ranges() -> None:
    """Discord's documentation: an ID for a time, to page by, is (time - epoch) << 22."""
    time = datetime(2016, 4, 30, 11, 18, 25, 796_000, tzinfo=UTC)
    assert DISCORD.min_id(time) == (1462015105796 - 1420070400000) << 22 <= 175928847299117063 <= DISCORD.max_id(time)
    assert DISCORD.min_id(time.astimezone(timezone(timedelta(hours=-7)))) == DISCORD.min_id(1462015105796)
    assert DISCORD.min_id(0) == 0
    assert DISCORD.max_id(0) == -1
    assert DISCORD.min_id(2**70) == 2**63 == DISCORD.max_id(2**70) + 1


def test_bad_ranges() -> None:
    with pytest.raises(ValueError, match="time 2022-06-28T00:00:00 has no time zone"):
        TWITTER.min_id(datetime(2022, 6, 28))
    with pytest.raises(TypeError, match="time is '2022'"):
        TWITTER.max_id("2022")  # type: ignore[arg-type]
    worker_first = Layout(worker=10, timestamp=41, sequence=12, epoch_ms=0)
    with pytest.raises(ValueError, match="does not sort by time"):
        worker_first.min_id(5)


@pytest.mark.parametrize("layout", [TWITTER, SONYFLAKE, INSTAGRAM, JS53, WIDE], ids=repr)
@pytest.mark.parametrize("every", [1, 3, 16, 1000])
def test_shards_are_chosen_by_the_highest_bits_of_a_product(layout: Layout, every: int) -> None:
    """As docs/ids.md has it, for IDs that are alone in their ticks, which come so many ticks apart."""
    ticks = range(0, 1600 * every, every)
    drawn = [layout.encode(1_800_000_000_000 + tick * layout.tick_ms, worker_id=3) for tick in ticks]
    assert len({number % 16 for number in drawn}) == 1
    shards = Counter(number * 0x9E3779B97F4A7C15 % 2**64 >> 60 for number in drawn)
    assert len(shards) == 16
    assert max(shards.values()) < 200  # 100 were even


@pytest.mark.parametrize("layout", [TWITTER, SONYFLAKE], ids=repr)
def test_arrays_are_encoded(layout: Layout, run_seed: int) -> None:
    random = np.random.default_rng(run_seed)
    times = 1_700_000_000_000 + random.integers(0, 10**9, (3, 4))
    workers, sequences = random.integers(0, layout.worker.max, (3, 4)), random.integers(0, layout.sequence.max, (3, 4))
    made = layout.encode(times, workers, sequences)
    fields = zip(times.ravel().tolist(), workers.ravel().tolist(), sequences.ravel().tolist(), strict=True)
    assert made.dtype == np.int64
    assert made.ravel().tolist() == [layout.encode(*row) for row in fields]
    assert (layout.encode(times.astype("datetime64[ms]"), workers, sequences) == made).all()
    assert (layout.encode((times * 1_000_000 + 999_999).astype("datetime64[ns]"), workers, sequences) == made).all()
    assert (layout.encode(times) == layout.encode(times, 0, 0)).all()
    assert (
        layout.encode(1_700_000_000_000, workers) == [[layout.encode(1_700_000_000_000, w) for w in r] for r in workers]
    ).all()
    assert layout.encode(np.array([], np.int64)).size == 0
    decoded = layout.decode(made)
    assert (layout.encode(decoded.timestamp, decoded.worker_id, decoded.sequence) == made).all()


def test_bad_arrays() -> None:
    times = np.array([1_800_000_000_000])
    with pytest.raises(ValueError, match="timestamp = 5; expected 1288834974657 <= timestamp"):
        TWITTER.encode(np.array([5, 1_800_000_000_000]))
    with pytest.raises(ValueError, match="worker_id = 1024"):
        TWITTER.encode(times, np.array([1024]))
    with pytest.raises(ValueError, match="sequence = 4096"):
        TWITTER.encode(times, 0, 4096)
    with pytest.raises(TypeError, match="timestamp has dtype float64; expected int64"):
        TWITTER.encode(times.astype(float))
    with pytest.raises(ValueError, match="timestamp holds NaT"):
        TWITTER.encode(np.array(["NaT"], "datetime64[ms]"))
    with pytest.raises(ValueError, match="timestamp holds times that are too far from 1970"):
        TWITTER.encode(np.array([213_503_997_381], "datetime64[D]"))  # in int64 milliseconds it wraps round to 2011

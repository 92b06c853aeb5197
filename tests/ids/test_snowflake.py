import copy
import pickle
import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ids_testing import FakeClock, Generator

from senet_fast.ids import (
    DISCORD,
    LOCAL,
    SONYFLAKE,
    TWITTER,
    WIDE,
    ClockMovedBackwards,
    ClockOutOfRange,
    Layout,
    PythonSnowflake,
    Snowflake,
    SnowflakeError,
    SnowflakeTimeout,
)

TWINS = (Snowflake, PythonSnowflake)


class UnhashableClock(FakeClock):
    __hash__ = None  # type: ignore[assignment]


TINY = Layout(timestamp=41, worker=3, sequence=2, epoch_ms=1_700_000_000_000)


def test_first_id_is_now(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = generator_class(1023, clock=fake_clock)
    assert generator.next_id() == TWITTER.encode(fake_clock.now_ms, 1023, 0)
    assert generator.next_id() == TWITTER.encode(fake_clock.now_ms, 1023, 1)
    assert generator.decode(generator.next_id())[1:] == (fake_clock.now_ms, 1023, 2)
    assert generator.worker_id == 1023
    assert generator.layout is TWITTER


@pytest.mark.parametrize("sequence", [1, 2])
def test_the_first_tick_of_a_layout(generator_class: Generator, sequence: int) -> None:
    layout = Layout(timestamp=41, sequence=sequence, epoch_ms=1_800_000_000_000, tick_ms=10)
    clock = FakeClock(layout.epoch_ms)
    generator = generator_class(layout=layout, clock=clock, max_backward_ms=0)
    ids = range(1 << sequence)
    assert [generator.try_next() for _ in ids] == list(ids)
    assert generator.try_next() is None
    clock.now_ms += layout.tick_ms
    assert generator.try_next() == 1 << sequence


def test_system_clock(generator_class: Generator, worker_id: int) -> None:
    generator = generator_class(worker_id)
    before = time.time_ns() // 1_000_000
    made = generator.decode(generator.next_id()).timestamp_ms
    assert before <= made <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("layout", [TWITTER, SONYFLAKE, WIDE, LOCAL, TINY], ids=repr)
def test_sequence_ends_at_its_boundary(generator_class: Generator, layout: Layout, fake_clock: FakeClock) -> None:
    worker_id = layout.worker.max
    generator = generator_class(worker_id, layout, clock=fake_clock)
    count = layout.sequence.max + 1 if layout is not LOCAL else 10_000
    begin_ms = layout.decode(layout.encode(fake_clock.now_ms)).timestamp_ms
    filled = generator.next_ids(count - 1)
    last = generator.next_id()
    assert last == layout.encode(fake_clock.now_ms, worker_id, count - 1)
    decoded = layout.decode(np.append(filled, last))
    assert (decoded.timestamp_ms == begin_ms).all()
    assert (decoded.worker_id == worker_id).all()
    assert (decoded.sequence == np.arange(count)).all()
    if layout is not LOCAL:
        assert generator.try_next() is None
        fake_clock.now_ms += layout.tick_ms
        assert generator.try_next() == layout.encode(fake_clock.now_ms, worker_id, 0)


@settings(max_examples=60)
@given(
    steps=st.lists(st.tuples(st.integers(-30, 30), st.integers(0, 9), st.booleans()), min_size=1, max_size=40),
    layout=st.sampled_from([TINY, Layout(timestamp=35, sequence=3, worker=3, epoch_ms=1_700_000_000_000, tick_ms=10)]),
)
@pytest.mark.parametrize("generator_class", TWINS)
def test_any_clock(generator_class: Generator, steps: list[tuple[int, int, bool]], layout: Layout) -> None:
    """Random steps of the clock, back and forth: strictly increasing, of this worker, never ahead of the clock."""
    clock = FakeClock(1_800_000_000_000)
    generator = generator_class(5, layout, clock=clock, timeout=0)
    last = -1
    for step, n, bulk in steps:
        clock.now_ms += step
        out = np.full(n, -1)
        try:
            if bulk:
                generator.fill(out)
            else:
                for i in range(n):
                    out[i] = generator.next_id()
        except SnowflakeTimeout:
            pass
        issued = out[out != -1]
        assert (out[: issued.size] != -1).all()
        for number in issued.tolist():
            assert number > last
            decoded = generator.decode(number)
            assert decoded.worker_id == 5
            assert decoded.timestamp_ms <= clock.now_ms
            last = number


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(-3, 20), st.integers(1, 9)), max_size=40))
def test_twins_agree(steps: list[tuple[int, int]]) -> None:
    clocks = [FakeClock(1_700_000_000_000), FakeClock(1_700_000_000_000)]  # the epoch itself, where words are small
    twins: list[Snowflake | PythonSnowflake] = [
        Snowflake(2, TINY, clock=clocks[0], max_backward_ms=5),
        PythonSnowflake(2, TINY, clock=clocks[1], max_backward_ms=5),
    ]
    for step, n in steps:
        outcomes: list[list[object]] = []
        for twin, clock in zip(twins, clocks, strict=True):
            clock.now_ms += step
            outcomes.append([])
            for _ in range(n):
                try:
                    outcomes[-1].append(twin.try_next())
                except SnowflakeError as error:
                    outcomes[-1].append(str(error))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("n", [0, 1, 255, 256, 4096, 4097, 10_000])
def test_next_ids(generator_class: Generator, worker_id: int, n: int) -> None:
    generator = generator_class(worker_id)
    before = generator.next_id()
    made = generator.next_ids(n)
    assert made.dtype == np.int64
    assert made.shape == (n,)
    everything = np.concatenate([[before], made, [generator.next_id()]])
    assert (np.diff(everything) > 0).all()
    assert (TWITTER.decode(made).worker_id == worker_id).all()


def test_large_arrays_are_whole() -> None:
    """Past the size from which stores bypass the caches, and over several ticks."""
    out = np.empty((1 << 23) + 5, np.int64)
    Snowflake(layout=LOCAL).fill(out[1:])
    assert (np.diff(out[1:]) > 0).all()
    assert np.unique(LOCAL.decode(out[1:]).timestamp_ms).size >= 2


def test_iteration(generator_class: Generator, worker_id: int) -> None:
    generator = generator_class(worker_id)
    assert iter(generator) is generator
    numbers = [next(generator), *islice(generator, 5000)]
    assert sorted(set(numbers)) == numbers


def test_same_worker_and_layout_share_their_state(generator_class: Generator, worker_id: int) -> None:
    one, two, other = generator_class(worker_id), generator_class(worker_id), generator_class(worker_id, DISCORD)
    numbers = [generator.next_id() for _ in range(500) for generator in (one, two)]
    assert sorted(set(numbers)) == numbers
    del one, two
    assert generator_class(worker_id).next_id() > numbers[-1]
    assert other.decode(other.next_id()).sequence == 0


def test_a_step_back_within_the_limit_waits(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = generator_class(1, clock=fake_clock, timeout=0.005)
    before = generator.next_id()
    fake_clock.now_ms -= 5
    assert generator.try_next() is None
    with pytest.raises(SnowflakeTimeout):
        generator.next_id()
    fake_clock.now_ms += 5
    assert generator.next_id() == before + 1


def test_waits_until_the_clock_has_caught_up(generator_class: Generator) -> None:
    times = iter([1_800_000_000_005, *range(1_800_000_000_000, 1_800_000_000_010)])
    generator = generator_class(1, clock=lambda: next(times))
    assert [generator.decode(generator.next_id())[1:] for _ in range(2)] == [
        (1_800_000_000_005, 1, 0),
        (1_800_000_000_005, 1, 1),
    ]


def test_a_step_back_beyond_the_limit_raises(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = generator_class(1, clock=fake_clock)
    before = generator.next_id()
    fake_clock.now_ms -= 3_600_000
    out = np.full(300, -1)
    for call in (generator.next_id, generator.try_next, lambda: generator.next_ids(3), lambda: generator.fill(out)):
        with pytest.raises(ClockMovedBackwards, match="3600000 ms before the last ID; max_backward_ms = 1000"):
            call()
    assert (out == -1).all()
    fake_clock.now_ms += 3_600_000
    assert generator.next_id() == before + 1


def test_a_late_reading_of_the_clock_is_not_a_step_back() -> None:
    """Another thread may issue at a later time between this thread's reading of the clock and its claim."""
    times = iter([1_800_000_000_000, 1_800_000_005_000, *[1_800_000_005_001] * 9])

    def clock() -> int:
        now_ms = next(times)
        if now_ms == 1_800_000_000_000:
            later.append(Snowflake(1, clock=clock).next_id())
        return now_ms

    later: list[int] = []
    assert Snowflake(1, clock=clock).next_id() > later[0]


@pytest.mark.parametrize("step_ms", [5, 50, 1000, 3_600_000])
def test_a_running_clock_that_steps(generator_class: Generator, step_ms: int) -> None:
    """Back, as NTP or an operator would; and forward by mistake, then back. The IDs increase, or none comes."""
    offset = [0]
    generator = generator_class(
        1, clock=lambda: time.time_ns() // 1_000_000 + offset[0], max_backward_ms=100, timeout=0.02
    )
    numbers, refusals = [], set()
    for offset[0] in (0, -step_ms, step_ms, 0, 2 * step_ms, 0):
        for _ in range(300):
            try:
                numbers.append(generator.next_id())
            except (SnowflakeTimeout, ClockMovedBackwards) as error:
                refusals.add(type(error))
                break
    assert refusals <= {SnowflakeTimeout if step_ms <= 50 else ClockMovedBackwards}
    assert len(numbers) >= 900
    assert numbers == sorted(set(numbers))


def test_max_backward_ms(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = generator_class(1, clock=fake_clock, max_backward_ms=0)
    generator.next_id()
    fake_clock.now_ms -= 1
    with pytest.raises(ClockMovedBackwards, match="1 ms before"):
        generator.next_id()


def test_timeout_on_a_frozen_clock(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = generator_class(1, clock=fake_clock, timeout=0.02)
    out = np.full(5000, -1)
    started = time.monotonic()
    with pytest.raises(SnowflakeTimeout, match=r"timeout = 0\.02 s") as error:
        generator.fill(out)
    assert 0.02 <= time.monotonic() - started < 1
    assert isinstance(error.value, TimeoutError)
    assert (out[:4096] > 0).all()
    assert (out[4096:] == -1).all()


def test_timeout_counts_from_the_last_id(generator_class: Generator) -> None:
    """A bulk call may last longer than its timeout while it makes progress, and keeps what it has when it stops."""
    begin = time.monotonic()

    def clock() -> int:  # ticks every 20 ms, and stands from the tenth tick on
        return 1_800_000_000_000 + min(9, int((time.monotonic() - begin) / 0.02))

    generator = generator_class(1, TINY, clock=clock, timeout=0.1)
    out = np.full(60, -1)
    with pytest.raises(SnowflakeTimeout):
        generator.fill(out)
    assert time.monotonic() - begin >= 0.28
    issued = 4 * np.unique(TINY.decode(out[out != -1]).timestamp_ms).size
    assert issued >= 8
    assert (out[:issued] != -1).all()
    assert (out[issued:] == -1).all()


def test_outside_the_lifetime(generator_class: Generator) -> None:
    end_ms = round(TINY.lifetime_end.timestamp() * 1000)
    clock = FakeClock(end_ms - 1)
    generator = generator_class(1, TINY, clock=clock)
    assert generator.next_ids(4).tolist() == [TINY.encode(end_ms - 1, 1, sequence) for sequence in range(4)]
    for now_ms in (end_ms, TINY.epoch_ms - 1, 0):
        clock.now_ms = now_ms
        for call in (generator.next_id, generator.try_next, lambda: generator.next_ids(3)):
            with pytest.raises(ClockOutOfRange, match=f"reads {now_ms} ms"):
                call()


def test_a_clock_that_fails(generator_class: Generator) -> None:
    with pytest.raises(ZeroDivisionError):
        generator_class(1, clock=lambda: 1 // 0).next_id()
    with pytest.raises(TypeError, match=r"clock\(\) is 1\.5"):
        generator_class(1, clock=lambda: 1.5).next_id()  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"clock\(\) = -1"):
        generator_class(1, clock=lambda: -1).next_ids(1000)


def test_refuses_copies(generator_class: Generator, worker_id: int) -> None:
    generator = generator_class(worker_id)
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="would issue the same IDs"):
            duplicate(generator)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "worker_id is missing; expected 0 <= worker_id <= 1023"),
        ({"worker_id": 1024}, ValueError, r"worker_id = 1024; expected 0 <= worker_id <= 1023 \(10 bits\)"),
        ({"worker_id": -1}, ValueError, "worker_id = -1"),
        ({"worker_id": "3"}, TypeError, r"worker_id is '3' \(str\); expected an int"),
        ({"worker_id": True}, TypeError, "worker_id is True"),
        ({"worker_id": 1, "layout": LOCAL}, ValueError, r"worker_id = 1; .* \(0 bits\)"),
        ({"worker_id": 1, "layout": "TWITTER"}, TypeError, "layout is 'TWITTER'"),
        ({"worker_id": 1, "max_backward_ms": -1}, ValueError, "max_backward_ms = -1"),
        ({"worker_id": 1, "max_backward_ms": 0.5}, TypeError, "max_backward_ms is 0.5"),
        ({"worker_id": 1, "timeout": -1}, ValueError, "timeout = -1"),
        ({"worker_id": 1, "timeout": float("nan")}, ValueError, "timeout = nan"),
        ({"worker_id": 1, "timeout": "1"}, TypeError, "timeout is '1'"),
        ({"worker_id": 1, "timeout": 10**5000}, ValueError, "timeout is an int of 16610 bits; expected seconds"),
        ({"worker_id": 1, "clock": 5}, TypeError, "clock is 5"),
        ({"worker_id": 1, "clock": UnhashableClock(0)}, TypeError, r"clock is .*\(UnhashableClock\).* hashable"),
    ],
)
def test_bad_arguments(
    generator_class: Generator, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generator_class(**arguments)  # type: ignore[arg-type]


def test_bad_counts(generator_class: Generator, worker_id: int) -> None:
    generator = generator_class(worker_id)
    for n, error, message in [(-1, ValueError, "n = -1"), (1.0, TypeError, r"n is 1\.0"), (2**62, ValueError, "n = ")]:
        with pytest.raises(error, match=message):
            generator.next_ids(n)  # type: ignore[arg-type]


def test_repr(generator_class: Generator, worker_id: int) -> None:
    expected = f"{generator_class.__name__}(worker_id={worker_id}, layout={TWITTER!r})"
    assert repr(generator_class(worker_id)) == expected

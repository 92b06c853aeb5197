"""`sequence_start`: where the sequence of a tick starts, so that few IDs spread over `id % shards`."""

from collections import Counter
from itertools import cycle, islice
from math import sqrt
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from ids_testing import FakeClock, Generator, in_child

from senet_fast.ids import (
    INSTAGRAM,
    JS53,
    LOCAL,
    MASTODON,
    SONYFLAKE,
    TWITTER,
    WIDE,
    Layout,
    PythonSnowflake,
    Snowflake,
    SnowflakeTimeout,
    _checks,
)

STARTS = ["random", "rolling"]
SEQUENCE_LOWEST = {"TWITTER": TWITTER, "INSTAGRAM": INSTAGRAM, "MASTODON": MASTODON, "WIDE": WIDE} | {
    "LOCAL": LOCAL,
    "JS53": JS53,
}


def tiny(bits: int) -> Layout:
    return Layout(timestamp=41, worker=3, sequence=bits, epoch_ms=1_700_000_000_000)


def make(kind: Generator, start: Any, layout: Layout, clock: FakeClock | None = None, **options: Any) -> Any:
    """Of the same random starts in every run."""
    with patch.object(_checks, "seed", return_value=20_251_126):
        worker_id = min(3, layout.worker.max)
        return kind(worker_id, layout, sequence_start=start, clock=clock or FakeClock(1_800_000_000_000), **options)


def one_a_tick(generator: Any, clock: FakeClock, n: int, *ticks: int) -> list[int]:
    """n IDs, so many ticks apart."""
    ids = []
    for step in islice(cycle(ticks or (1,)), n):
        ids.append(generator.next_id())
        clock.now_ms += step * generator.layout.tick_ms
    return ids


@pytest.mark.parametrize("name", SEQUENCE_LOWEST)
@pytest.mark.parametrize("shards", [2, 10, 16])
@pytest.mark.parametrize("ticks", [(1,), (7, 2, 30)], ids=repr)
@pytest.mark.parametrize("start", STARTS)
def test_few_ids_spread_over_shards(
    generator_class: Generator, fake_clock: FakeClock, name: str, shards: int, ticks: tuple[int, ...], start: str
) -> None:
    generator = make(generator_class, start, SEQUENCE_LOWEST[name], fake_clock)
    n = 5 * 1024
    ids = one_a_tick(generator, fake_clock, n, *ticks)
    assert ids == sorted(set(ids))
    found = Counter(number % shards for number in ids)
    assert len(found) == shards
    if start == "rolling" and shards != 10:
        assert set(found.values()) == {n // shards}
    for count in found.values():
        assert abs(count - n / shards) < 5 * sqrt(n / shards)


def test_the_default_is_one_shard(generator_class: Generator, fake_clock: FakeClock) -> None:
    for options in ({}, {"sequence_start": 0}):
        generator = generator_class(3, TWITTER, clock=fake_clock, **options)  # type: ignore[arg-type]
        assert {number % 4096 for number in one_a_tick(generator, fake_clock, 100)} == {0}


@pytest.mark.parametrize("bits", [1, 2, 3, 6, 8, 12, 16])
def test_rolling_starts_are_even_for_powers_of_two(
    generator_class: Generator, fake_clock: FakeClock, bits: int
) -> None:
    bound = {1: 2, 2: 2, 3: 2, 6: 16, 8: 64, 12: 1024, 16: 1024}[bits]
    ids = one_a_tick(make(generator_class, "rolling", tiny(bits), fake_clock), fake_clock, 2 * bound)
    assert [number % 2**bits for number in ids] == [*range(bound)] * 2


def test_rolling_goes_round_whatever_is_drawn(generator_class: Generator, fake_clock: FakeClock) -> None:
    generator = make(generator_class, "rolling", TWITTER, fake_clock)
    shards = []
    for n in (1, 5, 4000, 3, 2000, 1, 1, 700):
        shards += [generator.next_id() % 16 for _ in range(n)]
        fake_clock.now_ms += 1
    assert shards == [i % 16 for i in range(len(shards))]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("bits", "left"), [(1, 1), (2, 3), (3, 7), (8, 193), (12, 3073), (16, 64513)])
def test_what_a_start_leaves_of_a_tick(
    generator_class: Generator, fake_clock: FakeClock, start: str, bits: int, left: int
) -> None:
    """Three quarters, of one bit a half. A tick behind one that is used up starts at 0."""
    layout = tiny(bits)
    generator = make(generator_class, start, layout, fake_clock, timeout=0)
    least = 2**bits
    for _ in range(2500 if bits < 16 else 3):
        first = generator.next_id()
        least = min(least, 2**bits - first % 2**bits)
        fake_clock.now_ms += 1
    assert least >= left
    if bits in (1, 2, 3, 8) or (start == "rolling" and bits < 16):
        assert least == left
    out = np.full(2**bits - generator.next_id() % 2**bits, -1)
    with pytest.raises(SnowflakeTimeout):
        generator.fill(out)
    assert (out[:-1] != -1).all()
    fake_clock.now_ms += 1
    assert generator.next_id() == layout.encode(fake_clock.now_ms, 3, 0)


@pytest.mark.parametrize("start", STARTS)
def test_bulk_loses_nothing(generator_class: Generator, fake_clock: FakeClock, start: str) -> None:
    """Calls that fit only from 0 on start there, at every size; max_lag_ms begins as early as without a start."""
    generator = make(generator_class, start, tiny(4), fake_clock, timeout=0, max_lag_ms=2)
    for n in [*range(1, 17)] * 3:
        fake_clock.now_ms += 9
        ids = generator.next_ids(n)
        assert (np.diff(ids) == 1).all()
        assert ids[0] % 16 <= min(3, 16 - n)
    fake_clock.now_ms += 9
    ids = generator.next_ids(3 * 16)
    assert ids[0] == tiny(4).encode(fake_clock.now_ms - 2, 3, 0)


def test_twins_start_alike(fake_clock: FakeClock, tmp_path: Path) -> None:
    for start in STARTS:
        for options in ({}, {"on_fork": "share"}, {"file": tmp_path / start}):
            layout = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1_700_000_000_000 + len(options))
            ids = []
            for kind in (Snowflake, PythonSnowflake):
                clock = FakeClock(1_800_000_000_000)
                path = {"file": f"{options['file']}{kind.__name__}"} if "file" in options else options
                ids.append(one_a_tick(make(kind, start, layout, clock, **path), clock, 500, 3, 1))
            assert ids[0] == ids[1]
            assert len({number % 4096 for number in ids[0]}) > 350


def test_twins_start_alike_in_the_epochs_first_tick() -> None:
    layout = Layout(timestamp=41, worker=10, sequence=12, epoch_ms=1_700_000_000_009)
    for start in STARTS:
        kinds = Snowflake, PythonSnowflake
        ids = [make(kind, start, layout, FakeClock(layout.epoch_ms)).next_id() for kind in kinds]
        assert ids[0] == ids[1]


def test_generators_differ(generator_class: Generator, fake_clock: FakeClock) -> None:
    """Of seeds that nobody chose: a hundred starts in common are as good as impossible."""
    starts = []
    for _ in range(2):
        clock = FakeClock(fake_clock.now_ms)
        ids = one_a_tick(generator_class(3, TWITTER, sequence_start="random", clock=clock), clock, 100)
        starts.append([number % 4096 for number in ids])
    assert starts[0] != starts[1]


def test_generators_of_one_word_may_start_elsewhere(generator_class: Generator, fake_clock: FakeClock) -> None:
    generators = [make(generator_class, start, TWITTER, fake_clock) for start in (0, *STARTS)]
    ids = []
    for i in range(3000):
        ids += [generators[(i + j) % 3].next_id() for j in range(i % 4)]
        fake_clock.now_ms += 1
    assert ids == sorted(set(ids))
    assert {number % 2 for number in ids} == {0, 1}


def test_a_child_goes_on(generator_class: Generator, own_layout: Layout) -> None:
    """Which has the seed of its parent: uniqueness does not come from it."""
    generator = generator_class(1, own_layout, sequence_start="random", on_fork="share")
    before = generator.next_id()

    def draw() -> None:
        assert generator.next_id() > before

    assert in_child(draw) is None
    assert generator.next_id() > before + 1


def test_where_the_worker_is_lowest(generator_class: Generator, fake_clock: FakeClock) -> None:
    """The sequence starts elsewhere here, too, and powers of two see the worker id alone."""
    ids = one_a_tick(make(generator_class, "rolling", SONYFLAKE, fake_clock), fake_clock, 640)
    assert [SONYFLAKE.decode(number).sequence for number in ids] == [*range(64)] * 10
    assert {number % 16 for number in ids} == {3}
    assert len({number % 10 for number in ids}) == 5


@pytest.mark.parametrize(
    ("value", "error"),
    [(1, ValueError), ("Random", ValueError), ("", ValueError), (True, TypeError), (0.0, TypeError), (None, TypeError)],
)
def test_bad_starts(generator_class: Generator, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"sequence_start is {value!r}.*; expected 0, 'random' or 'rolling'"):
        generator_class(1, sequence_start=value)

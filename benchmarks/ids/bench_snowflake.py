"""Snowflake IDs against the floor (a clock read, a memset), the readable twin, and other packages.

Bulk rows start on a fresh tick, so they time the writing; the layouts' ceilings have rows of their own.
"""

import importlib.metadata
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from senet_fast.ids import LOCAL, TWITTER, WIDE, Grant, Layout, LeaseError, PythonSnowflake, Snowflake

Call = Callable[[], object]


def snowflake_id() -> Call:
    from snowflake import SnowflakeGenerator

    return SnowflakeGenerator(1).__next__


def oneflake() -> Call:
    from oneflake import FlakeGenerator

    return FlakeGenerator().generate


def oneflake_wide() -> Call:
    from oneflake import FlakeGenerator

    return FlakeGenerator(worker_bits=2, sequence_bits=20).generate


def uuid_utils() -> Call:
    from uuid_utils import uuid7

    return uuid7


def pycsnowflake() -> Call:
    from snowflake import Generator, Schema

    return Generator(Schema(), 1, 1).generate


def kitx_snowflake() -> Call:
    from kitx_snowflake import fn_snowflake

    return lambda: fn_snowflake(1, 1)


# A peer is one row: its distribution, and a function that makes the call.
PEERS = [
    ("snowflake-id", snowflake_id),
    ("oneflake", oneflake),
    ("oneflake", oneflake_wide),
    ("uuid-utils", uuid_utils),
    ("pycsnowflake", pycsnowflake),
    ("kitx-snowflake", kitx_snowflake),
]


class Hour:
    """A lease that no server knows of: what its end costs the claim."""

    renew_every = None

    def acquire(self, layout: Layout) -> Grant:
        return Grant(7, 0, time.time_ns() // 1_000_000 + 3_600_000)

    def renew(self) -> int:
        raise LeaseError("not renewed")

    def release(self, unused_from_ms: int) -> None:
        pass


OURS = {
    "next_id, LOCAL": lambda: Snowflake(layout=LOCAL).next_id,
    "next_id, WIDE": lambda: Snowflake(1, WIDE).next_id,
    "next_id, TWITTER": lambda: Snowflake(1, TWITTER).next_id,
    "next_id, LOCAL, coarse clock": lambda: Snowflake(layout=LOCAL, clock="coarse").next_id,
    "next_id, LOCAL, TSC": lambda: Snowflake(layout=LOCAL, clock="tsc").next_id,
    "next_id, WIDE, shared with children": lambda: Snowflake(6, WIDE, on_fork="share").next_id,
    "next_id, WIDE, leased for an hour": lambda: Snowflake(layout=WIDE, lease=Hour()).next_id,
    "twin, LOCAL": lambda: PythonSnowflake(layout=LOCAL).next_id,
}

FLOORS = {
    "time.time_ns": lambda: time.time_ns,
    "empty method": lambda: ().__len__,
    "counter": lambda: itertools.count(2**60).__next__,
}


def loop(call: Call, n: int) -> None:
    for _ in range(n):
        call()


@pytest.mark.benchmark(group="one at a time, 1000 calls")
@pytest.mark.parametrize("name", [*OURS, *FLOORS])
def bench_one(benchmark: Any, name: str) -> None:
    benchmark.pedantic(loop, ({**OURS, **FLOORS}[name](), 1000), rounds=300, warmup_rounds=5)


@pytest.mark.benchmark(group="one at a time, 1000 calls")
@pytest.mark.parametrize(("distribution", "make"), PEERS, ids=[make.__name__ for _, make in PEERS])
def bench_peer(benchmark: Any, distribution: str, make: Callable[[], Call]) -> None:
    try:
        benchmark.extra_info["version"] = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    benchmark.pedantic(loop, (make(), 1000), rounds=300, warmup_rounds=5)


def fresh_tick() -> None:
    time.sleep(0.0011)


# A layout whose tick holds 16.7 million IDs, so that one tick covers most of the sizes.
BROAD = Layout(timestamp=39, sequence=24, epoch_ms=LOCAL.epoch_ms)

LOCAL_GENERATOR = Snowflake(layout=LOCAL)

BULK: dict[str, Callable[[np.ndarray], object]] = {
    "fill, LOCAL": LOCAL_GENERATOR.fill,
    "fill, 24-bit sequence": Snowflake(layout=BROAD).fill,
    "next_ids, LOCAL": lambda out: LOCAL_GENERATOR.next_ids(out.size),
    "memset (ndarray.fill)": lambda out: out.fill(7),
    "np.arange": lambda out: np.arange(out.size),
}


@pytest.mark.parametrize("n", [1000, 100_000, 1_000_000, 4_000_000, 10_000_000])
@pytest.mark.parametrize("name", BULK)
def bench_bulk(benchmark: Any, name: str, n: int) -> None:
    benchmark.group = f"bulk, {n} IDs"
    out = np.zeros(n, np.int64)
    rounds = min(200, 20 + 20_000_000 // n)
    benchmark.pedantic(BULK[name], (out,), setup=fresh_tick, rounds=rounds, warmup_rounds=3)
    benchmark.extra_info["ns_per_id"] = benchmark.stats.stats.median * 1e9 / n if benchmark.stats else None


@pytest.mark.benchmark(group="bulk in the twin, 1000 IDs")
def bench_twin_bulk(benchmark: Any) -> None:
    out = np.zeros(1000, np.int64)
    benchmark.pedantic(PythonSnowflake(layout=LOCAL).fill, (out,), setup=fresh_tick, rounds=50)


@pytest.mark.benchmark(group="sustained, 100 ms at the layout's ceiling")
@pytest.mark.parametrize("layout", [TWITTER, WIDE], ids=["TWITTER", "WIDE"])
def bench_sustained(benchmark: Any, layout: Layout) -> None:
    generator = Snowflake(2, layout)
    out = np.zeros((layout.sequence.max + 1) * 100, np.int64)
    cpu, started = time.thread_time(), time.monotonic()
    benchmark.pedantic(generator.fill, (out,), rounds=10, warmup_rounds=1)
    benchmark.extra_info["cpu_share"] = (time.thread_time() - cpu) / (time.monotonic() - started)

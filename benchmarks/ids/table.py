"""The generators beside a clock, memset and other packages: `python -m benchmarks.ids.table`.

All contenders of a part take turns in one process. Medians; the loop is included where IDs come one by one.
"""

import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import rows
from benchmarks.ids.bench_snowflake import BULK, FLOORS, OURS, PEERS, fresh_tick, loop
from senet_fast.ids import TWITTER, WIDE, Snowflake
from senet_fast.measure import interleave
from senet_fast.text import ratio, table

CALLS = 1000
SIZES = (1000, 100_000, 1_000_000, 10_000_000)
MEMSET = "memset (ndarray.fill)"
SUSTAINED_MS = 20
CEILINGS = {"TWITTER": TWITTER, "WIDE": WIDE}


def peers() -> dict[str, Callable[[], object]]:
    """The installed ones, by name and version."""
    found = {}
    for distribution, make in PEERS:
        try:
            found[f"{distribution} {importlib.metadata.version(distribution)}, {make.__name__}"] = make()
        except (importlib.metadata.PackageNotFoundError, ImportError):
            continue
    return found


def one_at_a_time(seconds: float) -> dict[str, Any]:
    """Seconds per call, the loop's own cost included, and whether to believe them."""
    calls = {name: make() for name, make in {**OURS, **FLOORS}.items()} | peers()
    timings = interleave({name: lambda call=call: loop(call, CALLS) for name, call in calls.items()}, seconds, calls=9)
    return {"seconds": {name: timings[name] / CALLS for name in calls}, "believable": timings.believable}


def bulk(n: int, seconds: float) -> dict[str, Any]:
    """Seconds per ID into an array that exists, from a fresh tick on, and whether to believe them."""
    out = np.zeros(n, np.int64)

    def timed(call: Callable[[], object]) -> float:
        fresh_tick()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    calls = {name: lambda write=write: write(out) for name, write in BULK.items()}
    timings = interleave(calls, seconds, calls=9, timed=timed)
    return {"seconds": {name: timings[name] / n for name in calls}, "believable": timings.believable}


def sustained(seconds: float) -> dict[str, Any]:
    """IDs a second and the share of a core that they took, waits included, and whether to believe them."""
    draws: dict[str, tuple[int, Callable[[], object]]] = {}
    for name, layout in CEILINGS.items():
        out, generator = np.zeros((layout.sequence.max + 1) * SUSTAINED_MS, np.int64), Snowflake(3, layout)
        draws[f"fill, {name}"] = out.size, partial(generator.fill, out)
    n = (TWITTER.sequence.max + 1) * SUSTAINED_MS
    for name, call in ({"next_id, TWITTER": Snowflake(4, TWITTER).next_id} | peers()).items():
        draws[name] = n, partial(loop, call, n)
    busy: Counter[object] = Counter()
    passed: Counter[object] = Counter()

    def timed(draw: Callable[[], object]) -> float:
        cpu, start = time.thread_time_ns(), time.perf_counter_ns()
        draw()
        taken = time.perf_counter_ns() - start
        busy[draw] += time.thread_time_ns() - cpu
        passed[draw] += taken
        return taken / 1e9

    timings = interleave({name: draw for name, (_, draw) in draws.items()}, seconds, calls=3, timed=timed)
    rows = {
        name: {"per_second": n / timings[name], "cpu": busy[draw] / passed[draw]} for name, (n, draw) in draws.items()
    }
    return {"rows": rows, "believable": timings.believable}


class Part(NamedTuple):
    """A part of the table."""

    id: str
    measure: Callable[[float], dict[str, Any]]


PARTS = [
    Part("single", one_at_a_time),
    *(Part(f"bulk {n}", partial(bulk, n)) for n in SIZES),
    Part("sustained", sustained),
]


def single_table(part: dict[str, Any]) -> str:
    clock = part["seconds"]["time.time_ns"]
    lines = [[name, f"{taken * 1e9:.1f}", ratio(taken, clock)] for name, taken in part["seconds"].items()]
    return table((f"one at a time{busy(part)}", "ns per call", "/ time.time_ns"), lines)


def bulk_table(parts: dict[int, dict[str, Any]]) -> str:
    times = [part["seconds"] for part in parts.values()]
    lines = [
        [name, *(f"{at[name] * 1e9:.3f}" for at in times), *(ratio(at[name], at[MEMSET]) for at in times)]
        for name in BULK
    ]
    columns = [f"{n:,}{busy(part)}" for n, part in parts.items()]
    return table(("in bulk, ns per ID", *columns, *(f"/ memset at {n:,}" for n in parts)), lines)


def sustained_table(part: dict[str, Any]) -> str:
    ceilings = {name: (layout.sequence.max + 1) * 1000 / layout.tick_ms for name, layout in CEILINGS.items()}
    lines = []
    for name, row in part["rows"].items():
        rate, ceiling = row["per_second"], ceilings.get(name.rpartition(", ")[2])
        lines.append([name, f"{rate / 1e6:.3f}", ratio(rate, ceiling), f"{row['cpu']:.0%}"])
    note = "snowflake-id answers None where its tick is used up; these calls count here."
    return table((f"sustained{busy(part)}", "million a second", "/ ceiling", "of a core"), lines) + f"\n\n{note}"


def busy(part: dict[str, Any]) -> str:
    return "" if part["believable"] else " (busy)"


def markdown(results: rows.Results) -> str:
    parts = {row["mode"]: row for row in results["rows"]}
    bulks = {n: parts[f"bulk {n}"] for n in SIZES if f"bulk {n}" in parts}
    tables = [single_table(parts["single"])] if "single" in parts else []
    tables += [bulk_table(bulks)] if bulks else []
    tables += [sustained_table(parts["sustained"])] if "sustained" in parts else []
    return "\n\n".join(tables)


def main() -> None:
    options = rows.command("ids", __doc__, "bulk 1000", seconds=5.0).parse_args()
    rows.run(options, PARTS, lambda part: part.measure(options.seconds), markdown, "numpy")


if __name__ == "__main__":
    main()

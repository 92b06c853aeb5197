"""The generators' table: `python -m benchmarks.ids.table`. All contenders take turns in one process."""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.ids.bench_snowflake import BULK, FLOORS, OURS, PEERS, fresh_tick, loop
from benchmarks.table import into_readme
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.text import ratio, table

MARK = "ids table: python -m benchmarks.ids.table"
CALLS = 1000
SIZES = (1000, 100_000, 1_000_000, 10_000_000)
MEMSET = "memset (ndarray.fill)"


def peers() -> dict[str, Callable[[], object]]:
    """The installed ones, by name and version."""
    found = {}
    for distribution, make in PEERS:
        try:
            found[f"{distribution} {importlib.metadata.version(distribution)}, {make.__name__}"] = make()
        except (importlib.metadata.PackageNotFoundError, ImportError):
            continue
    return found


def one_at_a_time(seconds: float) -> dict[str, float]:
    """Seconds per call, the loop's own cost included."""
    calls = {name: make() for name, make in {**OURS, **FLOORS}.items()} | peers()
    timings = interleave({name: lambda call=call: loop(call, CALLS) for name, call in calls.items()}, seconds, calls=9)
    return {name: timings[name] / CALLS for name in calls}


def bulk(n: int, seconds: float) -> dict[str, float]:
    """Seconds per ID into an array that exists, from a fresh tick on."""
    out = np.zeros(n, np.int64)

    def timed(call: Callable[[], object]) -> float:
        fresh_tick()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    calls = {name: lambda write=write: write(out) for name, write in BULK.items()}
    timings = interleave(calls, seconds, calls=9, timed=timed)
    return {name: timings[name] / n for name in calls}


def markdown(results: dict[str, Any]) -> str:
    single = results["one at a time"]
    clock = single["time.time_ns"]
    rows = [[name, f"{taken * 1e9:.1f}", ratio(taken, clock)] for name, taken in single.items()]
    text = [f"{results['date'][:10]}, {results['machine']['cpu']}. Medians; the loop is included in all rows.", ""]
    text += [table(("one at a time", "ns per call", "/ time.time_ns"), rows), ""]
    head = ("in bulk, ns per ID", *(f"{n:,}" for n in SIZES), *(f"/ memset at {n:,}" for n in SIZES))
    sizes = [results["bulk"][str(n)] for n in SIZES]
    rows = [
        [name, *(f"{at[name] * 1e9:.3f}" for at in sizes), *(ratio(at[name], at[MEMSET]) for at in sizes)]
        for name in BULK
    ]
    return "\n".join([*text, table(head, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ids.table", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="timing per table part")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ids.json"), help="default: %(default)s")
    parser.add_argument("--readme", type=Path, help="replace the table between its two marks in this file")
    options = parser.parse_args()
    results: dict[str, Any] = {**surroundings(), "one at a time": one_at_a_time(options.seconds)}
    results["bulk"] = {str(n): bulk(n, options.seconds) for n in tqdm(SIZES, desc="bulk")}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))
    if options.readme:
        into_readme(options.readme, MARK, markdown(results))


if __name__ == "__main__":
    main()

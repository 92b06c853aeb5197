"""Threads and forked processes that draw from one word: `python -m benchmarks.ids.scaling`.

Each round runs every row once, for a fixed time; the medians over the rounds are shown.
"""

import argparse
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.report import add_options, publish
from senet_fast.demo.measure import surroundings
from senet_fast.demo.text import table
from senet_fast.ids import LOCAL, TWITTER, Layout, Snowflake

MARK = "scaling table: python -m benchmarks.ids.scaling"
COUNTS = (1, 2, 4)
LAYOUTS = {"41/10/12": TWITTER, "41/0/22": LOCAL}


def draw_for(generator: Snowflake, bulk: bool, seconds: float) -> int:
    """How many IDs this thread drew."""
    out, n = np.empty(10_000, np.int64), 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if bulk:
            generator.fill(out)
            n += out.size
        else:
            for _ in range(500):
                generator.next_id()
            n += 500
    return n


def with_threads(generator: Snowflake, count: int, bulk: bool, seconds: float) -> int:
    drawn: list[int] = []
    threads = [threading.Thread(target=lambda: drawn.append(draw_for(generator, bulk, seconds))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(drawn)


def with_processes(generator: Snowflake, count: int, bulk: bool, seconds: float) -> int:
    drawn = np.frombuffer(mmap.mmap(-1, 8 * count), np.int64)
    children = []
    for i in range(count):
        if (pid := os.fork()) == 0:
            drawn[i] = draw_for(generator, bulk, seconds)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    return int(drawn.sum())


def generator_of(layout: Layout) -> Snowflake:
    return Snowflake(0, layout, on_fork="share")


def measure(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Millions a second, by row and number of threads or processes."""
    kinds: dict[str, Callable[..., int]] = {"threads": with_threads, "processes": with_processes}
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for label, layout in LAYOUTS.items():
            for kind, run in kinds.items():
                for bulk in (False, True):
                    for count in COUNTS:
                        start = time.monotonic()
                        n = run(generator_of(layout), count, bulk, seconds)
                        row = f"{label}, {'fill(10,000)' if bulk else 'next_id'}, {kind}"
                        taken.setdefault((row, count), []).append(n / (time.monotonic() - start) / 1e6)
    rows: dict[str, dict[str, float]] = {}
    for (row, count), rates in taken.items():
        rows.setdefault(row, {})[str(count)] = statistics.median(rates)
    return rows


def markdown(results: dict[str, Any]) -> str:
    where = f"{results['date'][:10]}, {results['machine']['cpu']}, {os.cpu_count()} cores"
    note = f"{where}. Million IDs a second in all, from one word."
    rows = [[name, *(f"{row[str(count)]:,.2f}" for count in COUNTS)] for name, row in results["rows"].items()]
    return f"{note}\n\n" + table(("layout, call, by", *map(str, COUNTS)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ids.scaling", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="for each row, number and round")
    add_options(parser, "ids_scaling")
    options = parser.parse_args()
    results: dict[str, Any] = {**surroundings("numpy"), "rows": measure(options.rounds, options.seconds)}
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()

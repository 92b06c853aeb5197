"""Threads and forked processes that draw from one word: `python -m benchmarks.ids.scaling`.

Each round of a row runs every number of them once, for a fixed time; the medians over the rounds are shown.
"""

import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import rows
from senet_fast.ids import LOCAL, TWITTER, Snowflake
from senet_fast.text import table

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


KINDS: dict[str, Callable[..., int]] = {"threads": with_threads, "processes": with_processes}


class Way(NamedTuple):
    """A layout, a call, and what draws: keys of LAYOUTS and KINDS."""

    layout: str
    call: str
    kind: str

    @property
    def id(self) -> str:
        return " ".join(self)


WAYS = [Way(layout, call, kind) for layout in LAYOUTS for kind in KINDS for call in ("next_id", "fill(10,000)")]


def measure(way: Way, seconds: float, rounds: int) -> dict[str, Any]:
    """Millions a second, by the number of threads or processes."""
    taken: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(rounds):
        for count, rates in taken.items():
            generator = Snowflake(0, LAYOUTS[way.layout], on_fork="share")
            start = time.monotonic()
            drawn = KINDS[way.kind](generator, count, way.call != "next_id", seconds)
            rates.append(drawn / (time.monotonic() - start) / 1e6)
    return {"millions": {str(count): statistics.median(rates) for count, rates in taken.items()}}


def markdown(results: rows.Results) -> str:
    note = f"{results['machine']['cores']} cores. Million IDs a second in all, from one word."
    lines = [[row["mode"], *(f"{row['millions'][str(count)]:,.2f}" for count in COUNTS)] for row in results["rows"]]
    return f"{note}\n\n" + table(("layout, call, by", *map(str, COUNTS)), lines)


def main() -> None:
    parser = rows.command("ids_scaling", __doc__, "threads", seconds=0.2)
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    rows.run(options, WAYS, lambda way: measure(way, options.seconds, options.rounds), markdown, "numpy")


if __name__ == "__main__":
    main()

"""What `make check` leaves out of `make test`: the tests marked slow, and most cases of those that have many.

The cases are drawn anew in each run, so that all come up in time; the seed in the first line repeats a draw.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

import pytest

CASES = 2  # of each test function
SLOW_S = 2.0  # of the clock: what takes longer is named at the end, and is no error, for the machine may be busy


def left_out(items: Sequence[pytest.Item], seed: str) -> set[pytest.Item]:
    """What a quick run with this seed does not run."""
    functions = defaultdict(list)
    left = set()
    for item in items:
        if item.get_closest_marker("slow"):
            left.add(item)
        else:
            functions[item.nodeid.partition("[")[0]].append(item)
    for name, cases in functions.items():
        left.update(random.Random(f"{seed} {name}").sample(cases, max(0, len(cases) - CASES)))
    return left


def unexpectedly_slow(reports: Iterable[pytest.TestReport]) -> list[str]:
    """A line for each test, the slowest first, that made a quick run less quick."""
    durations: dict[str, float] = defaultdict(float)
    for report in reports:
        durations[report.nodeid] += report.duration
    slow = sorted(((seconds, name) for name, seconds in durations.items() if seconds > SLOW_S), reverse=True)
    return [f"{seconds:.1f} s, and not marked slow: {name}" for seconds, name in slow]

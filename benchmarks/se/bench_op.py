"""The op alone: SEBlock, torch.compile(SEBlock), FusedSE and the limit, over the shapes of real networks."""

from functools import lru_cache
from typing import Any

import pytest
import torch

from benchmarks.harness import CONTENDERS, KINDS, Setup
from benchmarks.modes import Case
from benchmarks.shapes import all_cases, default_cases

WARMUP_ROUNDS = 3  # the first one compiles


@lru_cache(maxsize=1)
def prepare(case: Case) -> Setup:
    return Setup(case)


def rounds(x: torch.Tensor) -> int:
    """Equal for all contenders of a case: as many as read about 2 GB of x, within limits."""
    return min(max(2**31 // x.nbytes, 20), 1000)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = all_cases() if metafunc.config.getoption("--every-shape") else default_cases()
    names = [name for name in CONTENDERS if name != "compile" or not metafunc.config.getoption("--no-compile")]
    # By case, pass, contender: one case is prepared once, and contenders to be compared run after each other.
    rows = [
        (case, kind, name)
        for case in cases
        for kind in KINDS
        for name in names
        if name != "compile" or KINDS[kind].compiled
    ]
    metafunc.parametrize(("case", "kind", "name"), rows, ids=[f"{case.id}-{kind}-{name}" for case, kind, name in rows])


def bench_op(benchmark: Any, case: Case, kind: str, name: str) -> None:
    setup = prepare(case)
    benchmark.group = f"{case.id} {kind}"
    benchmark.extra_info.update(kind=kind, contender=name, threads=torch.get_num_threads())
    timed = setup.contender(name, kind)
    benchmark.pedantic(
        timed.run,
        setup=lambda: (timed.arguments(), {}),
        rounds=rounds(setup.x),
        warmup_rounds=WARMUP_ROUNDS,
    )

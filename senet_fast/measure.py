"""Timing on a shared machine: contenders take turns in one process, so that only their ratios are to be believed.

What the demo, ``python -m senet_fast fuse`` and the benchmarks of a checkout measure with.
"""

import math
import os
import platform
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]

BLOCK_SECONDS = 0.01
MOST_CALLS = 200
SLOW = 0.2  # seconds: longer calls alternate one by one
MOST_MOVED = 16 << 20  # bytes
LEAST_KEPT = 0.1
MOST_LOST = 0.02
LEAST_ROUNDS = 6  # of fewer even the smallest and the largest ratio are on the same side of the median too often
ALLOCATOR = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def plainly(call: Callable[[], object]) -> float:
    """The seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def moved(call: Callable[[], object]) -> float:
    """The seconds of one call, whose tensors lie elsewhere than those of the last.

    Each contender finds the memory as the one before left it: the same in every round, and worth 5 % between two copies
    of one network.
    """
    pad = torch.empty(random.randrange(MOST_MOVED), dtype=torch.uint8)
    seconds = plainly(call)
    del pad
    return seconds


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    rounds: int = 3,
    calls: int | None = None,
    timed: Callable[[Callable[[], Any]], float] = plainly,
) -> "Timings":
    """Median seconds per call of each contender; `timed` calls one and returns its seconds.

    The contenders alternate in blocks of `calls` calls until `seconds` have passed and each had at least `rounds`
    blocks; by default a block takes about 10 ms and has at least three calls, or one where a call is SLOW. The first
    third of a block, where caches and clocks settle, is dropped; every other round runs in reverse order. See `_median`
    for calls that lost their core.
    """
    for call in contenders.values():
        call()
    sizes = {name: calls or _block_size(call, timed) for name, call in contenders.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    rounds_of: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    start, done, waited = time.perf_counter(), 0, _waited()
    while done < rounds or time.perf_counter() - start < seconds:
        for name in order:
            block = []
            for _ in range(sizes[name]):
                before = _preemptions()
                taken, lost = timed(contenders[name]), 0.0
                if _preemptions() > before:  # asking how long after every call would disturb short ones
                    lost, waited = _waited() - waited, _waited()
                block.append(Sample(taken, lost > MOST_LOST * taken))
            samples[name] += block[len(block) // 3 :]
            rounds_of[name].append(_median(block[len(block) // 3 :]))
        order.reverse()
        done += 1
    disturbed = [sum(sample.preempted for sample in values) / len(values) for values in samples.values()]
    return Timings({name: _median(values) for name, values in samples.items()}, max(disturbed), rounds_of)


class Timings(dict[str, float]):
    """Seconds per contender. `disturbed`: the share of calls that lost a core, of the contender that suffered most.

    `rounds` has the median of each round, in which all contenders had their turn.
    """

    def __init__(self, seconds: Mapping[str, float], disturbed: float, rounds: Mapping[str, list[float]]) -> None:
        super().__init__(seconds)
        self.disturbed = disturbed
        self.rounds = rounds

    def speed(self, before: str, after: str) -> "Speed":
        """How many times as fast `after` is, by the rounds' own ratios."""
        pairs = zip(self.rounds[before], self.rounds[after], strict=True)
        return Speed.of([one / other for one, other in pairs])

    @property
    def believable(self) -> bool:
        """Whether enough calls kept their cores for the medians to leave the others out."""
        return self.disturbed <= 1 - LEAST_KEPT


@dataclass(frozen=True)
class Speed:
    """The median of ratios, and between which two of them the true median lies with 95 % of certainty or more."""

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(ratios: list[float]) -> "Speed":
        """Each ratio is above the true median or below, like a coin's sides; too few say nothing (LEAST_ROUNDS)."""
        ordered, count = sorted(ratios), len(ratios)
        outside, chance = 0, 2 * 0.5**count  # how many ratios at each end lie outside, and how likely the median too
        while chance + 2 * math.comb(count, outside + 1) * 0.5**count <= 0.05:
            outside += 1
            chance += 2 * math.comb(count, outside) * 0.5**count
        return Speed(statistics.median(ordered), ordered[outside], ordered[count - 1 - outside], count)

    @property
    def is_noise(self) -> bool:
        return self.rounds < LEAST_ROUNDS or self.low <= 1 <= self.high


class Sample(NamedTuple):
    seconds: float
    preempted: bool  # its threads waited for a core longer than MOST_LOST of the time


def _preemptions() -> int:
    """How often the scheduler took a core from one of this process's threads."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _waited() -> float:
    """Seconds that this process's threads waited for a core; where the kernel doesn't say, all the time counts."""
    files = list(Path("/proc/self/task").glob("*/schedstat"))
    if not files:
        return time.perf_counter()
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9


def _median(samples: list[Sample]) -> float:
    """The median of the calls that kept their cores, if at least LEAST_KEPT of all did; else of all.

    Where one of two threads loses its core, the other waits for a whole time slice: that is the neighbour's time.
    """
    kept = [sample.seconds for sample in samples if not sample.preempted]
    return statistics.median(kept if len(kept) >= LEAST_KEPT * len(samples) else [sample.seconds for sample in samples])


def _block_size(call: Callable[[], object], timed: Callable[[Callable[[], Any]], float]) -> int:
    first = timed(call)
    if first > SLOW:
        return 1
    fastest = max(min(first, timed(call), timed(call)), 1e-7)
    return min(max(round(BLOCK_SECONDS / fastest), 3), MOST_CALLS)


def frozen(network: nn.Module, x: Tensor) -> Forward:
    """torch.compile with the weights as constants, for inference alone; compiled here, for this x."""

    def forward(x: Tensor) -> Tensor:
        made: Tensor = network(x)
        return made

    # What Dynamo compiled of a code object is looked through in every call: each network has one of its own.
    forward.__code__ = forward.__code__.replace(co_name=f"forward_{id(network)}")
    run: Forward = torch.compile(forward, dynamic=False)
    # A setting of the process: as an option of torch.compile it left weights to be reordered in every call.
    with torch.inference_mode(), torch._inductor.config.patch(freezing=True):
        run(x)
    return run


def wake(network: nn.Module) -> None:
    """Make BatchNorm weights of zero, as some networks start with, one: they would feed zeros to the SE blocks."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and norm.affine and not norm.weight.any():
            nn.init.ones_(norm.weight)


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Fill the BatchNorm statistics from one pass, so that a network with random weights has activations of size 1."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average over passes
    network.train()
    network(images)
    for norm in norms:
        norm.momentum = 0.1
    network.eval()


@torch.no_grad()
def relative_difference(expected: Tensor, actual: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest element of what is expected."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def cpu_model() -> str:
    """Its name, with the numbers that tell generations apart where a virtual machine's name does not ("AMD EPYC")."""
    try:
        with open("/proc/cpuinfo") as lines:
            facts = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
        return "{model name}, family {cpu family} model {model}".format_map(facts)
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def surroundings(*packages: str) -> dict[str, Any]:
    """Where and with what a figure was taken, with the versions of Python, torch and these packages."""
    from senet_fast.se import _C

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "allocator": " ".join(f"{name}={os.environ[name]}" for name in ALLOCATOR if name in os.environ),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in packages},
        },
        "build": {**_C.build_info(), "isa": _C.isa()},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

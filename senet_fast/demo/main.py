"""The order of the demo, and what must hold."""

import pickle
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from senet_fast.commands import complain
from senet_fast.demo import digits, ids, network, report
from senet_fast.measure import surroundings

LEAST_ACCURACY = 0.97
LOSS_TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # at the same weights
OUTPUT_TOLERANCE = 1e-4
MOST_ERROR = 2.0  # times the error that the network has before: half types round at every step


def run(out: Path, quick: bool, other: "subprocess.Popen[bytes]") -> int:
    """Run all three parts and write report.html, .png and .json into `out`; 1 where a result is not as it must be.

    other: what trains meanwhile (untimed.py).
    """
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    if quick:
        torch.set_num_threads(1)  # nothing here is a timing, and several would wait for each other on a busy machine
    where = surroundings("numpy", "scikit-learn")
    exact, usual, whole = train_and_time(network.Sizes.of(quick), other)
    comparisons = {"float64": exact, "float32": usual}
    draws, decoded = ids.run(100_000 if quick else 1_000_000)

    failures = problems(comparisons, whole, draws)
    results: dict[str, Any] = {
        **where,
        "quick": quick,
        "training": {name: asdict(training) for name, training in usual.trainings.items()},
        "largest_loss_difference": {
            dtype: {"same weights": one.same_weights, "own weights": one.own_weights}
            for dtype, one in comparisons.items()
        },
        "networks": asdict(whole),
        "ids": {"draws": [asdict(draw) for draw in draws], "decoded": [asdict(one) for one in decoded]},
        "failures": failures,
        "seconds": time.perf_counter() - start,
    }
    machine = f"{where['machine']['cpu']}, {where['machine']['threads']} threads, torch {torch.__version__}"
    report.write_json(out / "report.json", results)
    report.write_picture(out / "report.png", whole, usual.trainings, f"{machine}, {where['date']}")
    parts = [
        f"{machine}, {where['build']['isa']}, {where['date']}",
        report.training_text(exact, usual),
        report.network_text(whole),
        report.ids_text(draws, decoded),
        *(f"FAILED: {failure}" for failure in failures),
    ]
    report.write_page(out / "report.html", "report.png", parts)
    written = ", ".join(str(out / f"report.{kind}") for kind in ("html", "png", "json"))
    parts.append(f"{results['seconds']:.0f} s; written: {written}")
    for failure in failures:
        complain("FAILED", failure)
    with suppress(BrokenPipeError):  # a reader that left must not hide a failure
        print("\n" + "\n\n".join(parts), flush=True)
    return 1 if failures else 0


def train_and_time(
    sizes: network.Sizes, other: "subprocess.Popen[bytes]"
) -> tuple[digits.Comparison, digits.Comparison, network.Network]:
    """The trainings in float64 and float32, and the networks. What is not timed runs in another process meanwhile:
    Inductor, like the training, has use for one core.
    """
    trained: list[digits.Comparison] = []

    def ready() -> None:
        assert other.stdout
        printed = other.stdout.read()  # communicate() would close its input, and it would end
        if other.wait():
            raise RuntimeError(f"the training ended with exit status {other.returncode}; what it said is above")
        trained.extend(pickle.loads(printed))

    whole = network.run(sizes, ready)
    exact, usual = trained
    return exact, usual, whole


def problems(comparisons: dict[str, digits.Comparison], whole: network.Network, draws: list[ids.Draw]) -> list[str]:
    """What is not as it must be, a sentence each."""
    found = []
    for name, training in comparisons["float32"].trainings.items():
        if not training.accuracy > LEAST_ACCURACY:
            found.append(f"test accuracy with {name} is {training.accuracy:.2%}; expected above {LEAST_ACCURACY:.0%}")
    for dtype, tolerance in LOSS_TOLERANCE.items():
        difference = comparisons[dtype].same_weights
        if not difference <= tolerance:
            found.append(
                f"{dtype} losses at the same weights differ by {difference:.1e}; expected at most {tolerance:.0e}"
            )
    checked = [(f"SE of {stage.shape}", stage.difference, OUTPUT_TOLERANCE) for stage in whole.stages]
    for one in whole.settings:
        tolerance = max(OUTPUT_TOLERANCE, MOST_ERROR * one.errors["before"])
        checked.append((f"{one.network}, {one.mode}, {one.dtype},", one.errors["after"], tolerance))
    for what, difference, tolerance in checked:
        if not difference <= tolerance:
            found.append(f"outputs of {what} differ by {difference:.1e}; expected at most {tolerance:.1e}")
    found += [
        f"IDs of {draw.generator} {draw.how}, {draw.layout}, do not increase" for draw in draws if not draw.increasing
    ]
    return found

"""The demo's results as text, JSON and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from senet_fast.demo.digits import Comparison, Training
from senet_fast.demo.ids import Decoded, Draw
from senet_fast.demo.network import Network
from senet_fast.demo.text import microseconds, ratio, table

CONTENDERS = {"eager": "#9aa0a6", "torch.compile": "#f2a33c", "fused": "#1a73e8", "copy": "#34a853"}


def training_text(exact: Comparison, usual: Comparison) -> str:
    rows = [
        [name, len(run.losses), f"{run.losses[-1]:.5f}", f"{run.accuracy:.2%}", f"{run.seconds:.2f}"]
        for name, run in usual.trainings.items()
    ]
    same, own = f"{usual.same_weights:.1e}", f"{usual.own_weights:.1e}"
    return (
        "1. SE-ResNet trained on handwritten digits, same seed and batches, one thread\n\n"
        + table(["SE block", "steps", "last loss", "test accuracy", "seconds"], rows)
        + f"\n\nAt the same weights the losses are at most {same} apart (float64: {exact.same_weights:.1e}).\n"
        + f"The two runs drift up to {own} apart (float64: {exact.own_weights:.1e}): now and then rounding puts\n"
        + "a ReLU's input on the other side of 0, and a part of the gradient comes or goes."
    )


def network_text(network: Network) -> str:
    plain, fused = network.seconds["SEBlock"], network.seconds["FusedSE"]
    rows = [
        [name, f"{network.batch / seconds:.2f}", f"{plain / seconds:.3f}" if network.believable else "-"]
        for name, seconds in network.seconds.items()
    ]
    stages = []
    for stage in network.stages:
        eager, compiled, own, copy = (stage.seconds[name] for name in CONTENDERS)
        times = [microseconds(value) for value in (eager, compiled, own, copy)]
        ratios = [ratio(eager, own), ratio(compiled, own), ratio(own, copy)] if stage.believable else ["-"] * 3
        busy = "" if stage.believable else " (busy)"
        stages.append(["x".join(map(str, stage.shape)) + busy, *times, *ratios, f"{stage.difference:.1e}"])
    head = ["x", "eager us", "compile us", "fused us", "copy us", "eager/fused", "compile/fused", "fused/copy", "diff"]
    notes = [f"torch.compile failed: {network.compile_error}"] if network.compile_error else []
    if not network.believable:
        notes.append("Other programs took cores during nearly every pass of the network: repeat on an idle machine.")
    if not all(stage.believable for stage in network.stages):
        notes.append("Rows marked busy lost their cores in nearly every call; their ratios are left out.")
    return (
        f"2. SE-ResNet-50 on photographs, eval, {network.swapped} SE blocks swapped for FusedSE\n\n"
        + table(["SE block", "images/s", "speed"], rows)
        + f"\n\nLargest output difference, relative to the largest output: {network.difference:.1e}\n"
        + f"A pass takes {plain * 1e3:.0f} ms before and {fused * 1e3:.0f} ms after. The SE blocks alone:\n\n"
        + "\n\n".join([table(head, stages), *notes])
    )


def ids_text(draws: Sequence[Draw], decoded: Sequence[Decoded]) -> str:
    rows = []
    for draw in draws:
        twin = next(other for other in draws if (other.layout, other.how) == (draw.layout, draw.how))
        speed, each = draw.count / draw.seconds / 1e6, draw.seconds / draw.count * 1e9
        own = [draw.generator, draw.how, f"{speed:.2f}", f"{each:.1f}", ratio(twin.seconds, draw.seconds)]
        rows.append([draw.layout, *own, "yes" if draw.increasing else "NO"])
    head = ["layout", "generator", "drawn", "million/s", "ns each", "twin/own", "increasing"]
    return (
        f"3. Snowflake IDs, {draws[0].count:,} each\n\n"
        + table(head, rows)
        + "\n\nThe twitter layout holds 4.096 million IDs a second and worker; the wide one 65.5 million.\n\n"
        + table(["id", "time", "worker", "sequence"], [[d.id, d.time, d.worker_id, d.sequence] for d in decoded])
    )


def write_json(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=2) + "\n")


def write_picture(path: Path, network: Network, trainings: dict[str, Training], title: str) -> None:
    """Left: each SE shape's time per contender, relative to eager. Right: the loss curves, one on the other."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    bars, curves = figure.subplots(1, 2, width_ratios=(2, 1))
    shown = [name for name in CONTENDERS if any(stage.seconds[name] is not None for stage in network.stages)]
    width = 0.8 / len(shown)
    for place, name in enumerate(shown):
        eager = [stage.seconds["eager"] or 1.0 for stage in network.stages]
        values = [(stage.seconds[name] or 0.0) if stage.believable else 0.0 for stage in network.stages]
        heights = [value / base for value, base in zip(values, eager, strict=True)]
        left = [index + (place - (len(shown) - 1) / 2) * width for index in range(len(values))]
        label = "copy of x (limit)" if name == "copy" else name
        drawn = bars.bar(left, heights, width, label=label, color=CONTENDERS[name])
        bars.bar_label(drawn, [f"{value * 1e6:.0f}" if value else "" for value in values], fontsize=8)
    names = ["x".join(map(str, stage.shape)) + ("" if stage.believable else "\n(busy)") for stage in network.stages]
    bars.set_xticks(range(len(network.stages)), names)
    bars.set_ylabel("time relative to eager (labels: us)")
    bars.set_title("SE forward, float32")
    bars.set_ylim(0, 1.2 * bars.get_ylim()[1])
    bars.legend(ncols=len(shown), loc="upper center")
    for (name, run), style in zip(trainings.items(), ("-", "--"), strict=True):
        curves.plot(run.losses, style, label=f"{name}: {run.accuracy:.1%}, {run.seconds:.1f} s")
    curves.set_yscale("log")
    curves.set_xlabel("step")
    curves.set_title("training loss on digits")
    curves.legend()
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)

"""The demo's results as text, JSON and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from senet_fast.demo.digits import Comparison, Training
from senet_fast.demo.ids import Decoded, Draw
from senet_fast.demo.network import Network, Setting
from senet_fast.text import microseconds, ratio, table

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
    rows = []
    for setting in network.settings:
        times = [f"{setting.seconds[name] * 1e3:.1f}" for name in ("before", "after")]
        errors = [f"{setting.errors[name]:.1e}" for name in ("before", "after")]
        rows.append([setting.dtype, *times, *speed_words(setting), *errors])
    columns = ["type", "before ms", "after ms", "speed", "95 % sure between", "rounds", "that is", "error", "after"]
    stages = []
    for stage in network.stages:
        eager, compiled, own, copy = (stage.seconds[name] for name in CONTENDERS)
        times = [microseconds(value) for value in (eager, compiled, own, copy)]
        ratios = [ratio(eager, own), ratio(compiled, own), ratio(own, copy)] if stage.believable else ["-"] * 3
        busy = "" if stage.believable else " (busy)"
        stages.append(["x".join(map(str, stage.shape)) + busy, *times, *ratios, f"{stage.difference:.1e}"])
    head = ["x", "eager us", "compile us", "fused us", "copy us", "eager/fused", "compile/fused", "fused/copy", "diff"]
    notes = [f"torch.compile failed: {network.compile_error}"] if network.compile_error else []
    if not all([one.believable for one in network.settings] + [one.believable for one in network.stages]):
        notes.append("What is marked busy lost its cores in nearly every call: no ratios of such SE shapes are shown.")
    return (
        f"2. fuse() on SE-ResNet-50: {network.fused} blocks; {network.batch} photographs, eager, channels_last\n\n"
        + table(columns, rows)
        + "\n\nspeed: the median of the rounds' ratios; error: before and after, from float32.\n"
        + "torch.compile of a whole network takes minutes: benchmarks/results/fusing.md.\n"
        + "The SE blocks alone, float32:\n\n"
        + "\n\n".join([table(head, stages), *notes])
    )


def speed_words(setting: Setting) -> list[str]:
    """The speed, between which values it lies, of how many rounds, and what to make of it."""
    speed, busy = setting.speed, "" if setting.believable else " (busy)"
    verdict = "within the noise" if speed.is_noise else "faster" if speed.median > 1 else "slower"
    return [f"{speed.median:.3f}", f"{speed.low:.3f} to {speed.high:.3f}", str(speed.rounds), verdict + busy]


def ids_text(draws: Sequence[Draw], decoded: Sequence[Decoded]) -> str:
    rows = []
    for draw in draws:
        twin = next(other for other in draws if (other.layout, other.how) == (draw.layout, draw.how))
        speed, each = draw.count / draw.seconds / 1e6, draw.seconds / draw.count * 1e9
        slower = ratio(twin.seconds / twin.count, draw.seconds / draw.count)
        own = [draw.generator, draw.how, f"{draw.count:,}", f"{speed:.2f}", f"{each:.1f}", slower]
        rows.append([draw.layout, *own, "yes" if draw.increasing else "NO"])
    head = ["layout", "generator", "drawn", "IDs", "million/s", "ns each", "twin/own", "increasing"]
    return (
        "3. Snowflake IDs\n\n"
        + table(head, rows)
        + "\n\nThe twitter layout holds 4.096 million IDs a second and worker; the wide one 65.5 million.\n\n"
        + table(["id", "time", "worker", "sequence"], [[d.id, d.time, d.worker_id, d.sequence] for d in decoded])
    )


def write_json(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=2) + "\n")


def write_picture(path: Path, network: Network, trainings: dict[str, Training], title: str) -> None:
    """The network's speed with fuse(); each SE shape's time per contender, relative to eager; the loss curves."""
    figure = Figure(figsize=(14, 4.8), layout="constrained", facecolor="white")
    whole, bars, curves = figure.subplots(1, 3, width_ratios=(1, 2.2, 1.2))
    for place, setting in enumerate(network.settings):
        speed = setting.speed
        whole.errorbar(
            place,
            speed.median,
            [[speed.median - speed.low], [speed.high - speed.median]],
            fmt="o",
            capsize=6,
            color=CONTENDERS["fused"],
        )
        whole.annotate(f"{speed.median:.3f}", (place, speed.median), (8, 0), textcoords="offset points", fontsize=9)
    whole.axhline(1, color=CONTENDERS["eager"], linestyle="--")
    named = [setting.dtype + ("" if setting.believable else "\n(busy)") for setting in network.settings]
    whole.set_xticks(range(len(named)), named)
    whole.set_xlim(-0.6, len(named) - 0.3)
    whole.set_ylabel("times as fast as before (bars: 95 % sure)")
    whole.set_title("SE-ResNet-50 with fuse()")
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

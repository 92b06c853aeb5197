"""The demo's results as text, JSON and a picture."""

import html
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
        + table(["SE block", "steps", "last loss", "test accuracy", "CPU seconds"], rows)
        + f"\n\nAt the same weights the losses are at most {same} apart (float64: {exact.same_weights:.1e}).\n"
        + f"The two runs drift up to {own} apart (float64: {exact.own_weights:.1e}): now and then rounding puts\n"
        + "a ReLU's input on the other side of 0, and a part of the gradient comes or goes."
    )


def network_text(whole: Network) -> str:
    rows = []
    for setting in whole.settings:
        times = [f"{setting.seconds[name] * 1e3:.1f}" for name in ("before", "after")]
        errors = [f"{setting.errors[name]:.1e}" for name in ("before", "after")]
        what = [setting.network, setting.images, setting.mode, setting.dtype]
        rows.append([*what, *times, *speed_words(setting), *errors])
    times = ["before ms", "after ms", "speed", "95 % sure between", "rounds", "that is"]
    columns = ["network", "images", "mode", "type", *times, "error before", "after"]
    stages = []
    for stage in whole.stages:
        eager, compiled, own, copy = (stage.seconds[name] for name in CONTENDERS)
        values = [microseconds(value) for value in (eager, compiled, own, copy)]
        ratios = [ratio(eager, own), ratio(compiled, own), ratio(own, copy)] if stage.believable else ["-"] * 3
        busy = "" if stage.believable else " (busy)"
        stages.append(["x".join(map(str, stage.shape)) + busy, *values, *ratios, f"{stage.difference:.1e}"])
    head = ["x", "eager us", "compile us", "fused us", "copy us", "eager/fused", "compile/fused", "fused/copy", "diff"]
    notes = list(whole.notes)
    if not all([one.believable for one in whole.settings] + [one.believable for one in whole.stages]):
        notes.append("What is marked busy lost its cores in nearly every call: no ratios of such SE shapes are shown.")
    counts = ", ".join(f"{name} ({count} blocks)" for name, count in whole.fused.items())
    return (
        f"2. fuse() on {counts}: photographs, channels_last\n\n"
        + table(columns, rows)
        + "\n\nspeed: the median of the rounds' ratios, before / after; error: before and after, from eager float32.\n"
        + "".join(f"{note}\n" for note in notes)
        + "\nThe SE blocks of SE-ResNet-50 alone, float32:\n\n"
        + table(head, stages)
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


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>senet_fast: what it does on this machine</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }}
pre {{ overflow-x: auto; font-size: 13px }}
</style>
<h1>What senet_fast does on this machine</h1>
<p>Squeeze-and-Excitation blocks as one op. Left: how many times as fast two networks are after <code>fuse</code>,
where 1 is as fast as before. Middle: each block of SE-ResNet-50 beside PyTorch, and beside merely copying its input.
Right: both blocks train a network to the same losses. Below: the figures, and Snowflake IDs.</p>
<img src="{picture}" alt="Speeds of networks, times of SE blocks, and training losses; the figures are below.">
{parts}
</html>
"""


def write_page(path: Path, picture: str, parts: Sequence[str]) -> None:
    """The picture with everything that is printed, for a browser."""
    blocks = "\n".join(f"<pre>{html.escape(part, quote=False)}</pre>" for part in parts)
    path.write_text(PAGE.format(picture=html.escape(picture), parts=blocks))


def write_picture(path: Path, network: Network, trainings: dict[str, Training], title: str) -> None:
    """Speeds of networks with fuse(); each SE shape's time per contender, relative to eager; the loss curves.

    On a background of its own, so that it is read on light pages and dark ones alike.
    """
    figure = Figure(figsize=(15, 4.8), layout="constrained", facecolor="white")
    whole, bars, curves = figure.subplots(1, 3, width_ratios=(1.5, 2.2, 1.2))
    for place, setting in enumerate(network.settings):
        speed = setting.speed
        spread = [[speed.median - speed.low], [speed.high - speed.median]]
        whole.errorbar(place, speed.median, spread, fmt="o", capsize=6, color=CONTENDERS["fused"])
        words = f"{speed.median:.2f}x" + ("\n(noise)" if speed.is_noise else "")
        whole.annotate(words, (place, speed.median), (8, 0), textcoords="offset points", fontsize=9, va="center")
    whole.axhline(1, color=CONTENDERS["eager"], linestyle="--")
    named = [
        f"{one.network}\n{one.images} image{'s' if one.images > 1 else ''}\n{one.dtype}\n"
        + one.mode.replace(" ", "\n")
        + ("" if one.believable else "\n(busy)")
        for one in network.settings
    ]
    whole.set_xticks(range(len(named)), named, fontsize=8)
    whole.set_xlim(-0.6, len(named) - 0.3)
    whole.set_ylabel("times as fast as before (bars: 95 % sure)")
    whole.set_title("whole networks after fuse()")
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
    bars.set_title("SE blocks of SE-ResNet-50, forward, float32")
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

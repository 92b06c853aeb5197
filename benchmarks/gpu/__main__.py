"""The tables of a GPU: `python -m benchmarks.gpu`. Writes gpu-DATE-NAME.json and .md into benchmarks/results, again
after every case; --resume goes on with those of the day, if the sources are the same.

The op in CUDA graphs, cold (every tensor has left the L2 before it is used again) and hot, beside eager PyTorch,
torch.compile, also in CUDA graphs, and a copy of the same size; then SE-ResNet-50 with and without SE. Contenders take
turns, medians by CUDA events. --dry-run takes the same steps on the CPU with tiny tensors: its times mean nothing.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch_config

from benchmarks.gpu import networks, op
from benchmarks.gpu.clock import Clock, GpuClock, Rehearsal
from benchmarks.gpu.sources import MEASURED, fingerprint, may_be_kept
from benchmarks.rows import RESULTS
from senet_fast.measure import surroundings
from senet_fast.text import microseconds, ratio, table


def gpu() -> dict[str, Any]:
    """The GPU's name and what nvidia-smi says of its state."""
    if not torch.cuda.is_available():
        return {"name": "none: a dry run on the CPU"}
    found: dict[str, Any] = {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    if smi := shutil.which("nvidia-smi"):
        asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,mig.mode.current"
        said = subprocess.run([smi, f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True)
        found |= dict(
            zip(asked.split(","), said.stdout.splitlines()[0].split(", "), strict=False) if said.stdout else {}
        )
    return found


def op_table(rows: list[dict[str, Any]], kind: str) -> str:
    head = (
        "case",
        "",
        "ours us",
        "GB/s",
        "copy GB/s",
        "of copy",
        "eager us",
        "eager/ours",
        "compile us",
        "compile/ours",
    )
    lines = []
    for row in rows:
        ours, eager, compiled, copy = (row["seconds"].get(name) for name in op.CONTENDERS)
        moved = op.KINDS[kind].units * row["bytes"] / 1e9
        speeds = ["-" if s is None else f"{moved / s:.0f}" for s in (ours, copy)]
        line = [row["case"], row["heat"], microseconds(ours), *speeds, ratio(copy, ours)]
        line += [microseconds(eager), ratio(eager, ours), microseconds(compiled), ratio(compiled, ours)]
        lines.append([*line, *(microseconds(row["seconds"].get(kernel)) for kernel in op.KERNELS)])
    return table((*head, *(f"{kernel} us" for kernel in op.KERNELS)), lines)


def network_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        plain = row["seconds"].get("no SE")
        for name in networks.VERSIONS:
            seconds = row["seconds"].get(name)
            speed = "-" if seconds is None else f"{row['batch'] / seconds:.0f}"
            cost = "-" if seconds is None or plain is None else f"{(seconds / plain - 1) * 100:+.1f} %"
            lines.append([f"{row['kind']} {row['batch']}, {name}", speed, cost])
    return table(("SE-ResNet-50, bf16 channels_last, 224 x 224", "images/s", "SE's cost in time"), lines)


def markdown(results: dict[str, Any]) -> str:
    """All of it as text, with what went wrong and what the time did not suffice for."""
    versions, card = results["versions"], results["gpu"]
    state = ", ".join(f"{key} {value}" for key, value in card.items() if key != "name")
    parts = [f"{results['date'][:10]}, {card['name']}; torch {versions['torch']}, {state or 'no GPU'}."]
    if results["dry_run"]:
        parts.append("**A dry run: these times mean nothing.**")
    for kind, (what, limit, _) in op.KINDS.items():
        if rows := [row for row in results["op"] if row["kind"] == kind]:
            parts += [f"**{kind}**: {what}, in a CUDA graph. Copy: `{limit}`.", op_table(rows, kind)]
    if results["networks"]:
        parts.append(network_table(results["networks"]))
    judged = [(row, target) for row in results["op"] for target in op.targets(row)]
    if judged:
        lines = [
            [
                f"{row['kind']} {row['case']}",
                f"{t.reached:.2f} {t.what}",
                f"{t.least:.2f}",
                "yes" if t.reached >= t.least else "no",
            ]
            for row, t in judged
        ]
        parts.append(table(("target", "reached", "wanted", "met"), lines))
    for row in [*results["op"], *results["networks"]]:
        parts += [
            f"FAILED {row['kind']} {row.get('case', '')} {name}: {text}" for name, text in row["problems"].items()
        ]
    parts += [f"Out of time, not measured: {name}" for name in results["left_out"]]
    return "\n\n".join(parts)


def beginning(dry_run: bool) -> dict[str, Any]:
    empty: dict[str, Any] = {"op": [], "networks": [], "left_out": []}
    return {**surroundings(), "sources": fingerprint(MEASURED), "gpu": gpu(), "dry_run": dry_run, **empty}


def path_of(results: dict[str, Any], folder: Path) -> Path:
    name = "dry-run" if results["dry_run"] else results["gpu"]["name"]
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / f"gpu-{results['date'][:10]}-{name}.json"


def write(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    path.with_suffix(".md").write_text(markdown(results) + "\n")


def run(clock: Clock, results: dict[str, Any], seconds: float, path: Path) -> None:
    """The first case, the networks, then the other cases until the time is up; what there is, is written after each."""
    functorch_config.donated_buffer = False  # a compiled backward may then run more than once
    dry_run, done = results["dry_run"], {row["case"] for row in results["op"]}
    cases, end, longest = op.tiny_cases() if dry_run else op.cases(), time.monotonic() + seconds, 0.0
    results["left_out"] = [case.id for case in cases if case.id not in done]
    for place, case in enumerate(cases):
        begin = time.monotonic()
        if case.id not in done:
            if begin + longest > end:
                continue
            results["op"] += op.measure(case, clock, "eager" if dry_run else "inductor")
            results["left_out"].remove(case.id)
            longest = max(longest, time.monotonic() - begin)
            print(f"{case.id}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
            write(results, path)
        if place == 0 and not results["networks"]:
            begin = time.monotonic()
            results["networks"] = networks.measure(clock, dry_run)
            print(f"networks: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
            write(results, path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--seconds", type=float, default=1200.0, help="no case begins that would end later")
    parser.add_argument("--results", type=Path, help="the folder; default: benchmarks/results, or build of a dry run")
    parser.add_argument("--resume", action="store_true", help="keep the day's cases of the same sources")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU; --dry-run rehearses on the CPU")
    results = beginning(options.dry_run)
    path = path_of(results, options.results or (Path("build") if options.dry_run else RESULTS))
    if options.resume and path.exists():
        before = json.loads(path.read_text())
        if may_be_kept(before, results["sources"], "every case is measured"):
            results |= {name: before[name] for name in ("op", "networks")}
    run(Rehearsal() if options.dry_run else GpuClock(), results, options.seconds, path)
    write(results, path)
    print(markdown(results))
    print(f"\n{path.with_suffix('.md')}")
    return 1 if any(row["problems"] for row in [*results["op"], *results["networks"]]) else 0


if __name__ == "__main__":
    sys.exit(main())

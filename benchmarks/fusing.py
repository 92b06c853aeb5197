"""What fuse(model) makes of whole networks: `python -m benchmarks.fusing -k seresnet50`.

Networks of timm and speechbrain with random weights and BatchNorm statistics from one batch; eager, fused, compiled and
both take turns in one process. The JSON file keeps the rows of other networks, so that they can be run one by one.
"""

import argparse
import copy
import ctypes
import gc
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import place, publish
from benchmarks.rows import Mode, moved, row_options, selected, take
from benchmarks.shapes import LAYOUTS
from senet_fast import fuse
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.network import calibrate, relative_difference
from senet_fast.demo.text import ratio, table

MARK = "fusing table: python -m benchmarks.fusing"
NETWORKS = ("seresnet50", "seresnext50_32x4d", "mobilenetv3_large_100", "efficientnet_b0", "regnety_016", "ecapa")
VERSIONS = ("eager", "fused", "compiled", "compiled + fused")
PIXELS, FRAMES, MELS = 224, 300, 80
TOLERANCE = 1e-4  # float32, against the largest output
SLOW = 0.2  # seconds: longer calls alternate one by one


MODES = [
    Mode(network, kind, batch, layout)
    for network in NETWORKS
    for layout in (("nchw",) if network == "ecapa" else ("nchw", "nhwc"))
    for kind, batch in (("forward", 1), ("forward", 16), ("step", 8))
]


def inputs(mode: Mode, batch: int) -> Tensor:
    if mode.network == "ecapa":
        return torch.randn(batch, FRAMES, MELS)
    return torch.randn(batch, 3, PIXELS, PIXELS).contiguous(memory_format=LAYOUTS[mode.layout])


def create(mode: Mode) -> nn.Module:
    """The network, calibrated. BatchNorm weights that start at 0 become 1: they would feed zeros to the SE blocks."""
    torch.manual_seed(0)
    if mode.network == "ecapa":
        sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # speechbrain imports it; not for the network
        network: nn.Module = importlib.import_module("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN(MELS)
    else:
        network = importlib.import_module("timm").create_model(mode.network)
        network = network.to(memory_format=LAYOUTS[mode.layout])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    with torch.no_grad():
        calibrate(network, inputs(mode, 8))
    return network.train(mode.kind == "step")


def contender(network: Callable[[Tensor], Tensor], kind: str, x: Tensor) -> Callable[[], object]:
    if kind == "forward":
        return torch.inference_mode()(lambda: network(x))

    def step() -> None:
        network(x).square().mean().backward()

    return step


def peak(call: Callable[[], object]) -> float | None:
    """MB of memory that one call adds at its peak; None where the kernel does not say."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1e3


def measure(mode: Mode, seconds: float, compiled: bool) -> dict[str, Any]:
    """Median seconds and peak memory of the versions, and how far the fused one is from eager."""
    torch._dynamo.reset()
    networks: dict[str, Any] = {"eager": create(mode)}
    networks["fused"] = copy.deepcopy(networks["eager"])
    report = fuse(networks["fused"])
    if compiled:
        networks["compiled"] = torch.compile(copy.deepcopy(networks["eager"]))
        networks["compiled + fused"] = torch.compile(copy.deepcopy(networks["fused"]))
    x = inputs(mode, mode.batch)
    with torch.inference_mode(mode.kind == "forward"):
        torch.manual_seed(0)
        expected = networks["eager"](x).detach()
        torch.manual_seed(0)
        difference = relative_difference(expected, networks["fused"](x).detach())
    if mode.kind == "forward" and not difference <= TOLERANCE:
        raise AssertionError(f"{mode.id}: the fused network's outputs differ by {difference:.1e}")
    calls = {name: contender(network, mode.kind, x) for name, network in networks.items()}
    for call in calls.values():
        call()
    memory = {name: peak(call) for name, call in calls.items()}
    first = interleave({"eager": calls["eager"]}, 0, rounds=1, calls=1)["eager"]
    times = interleave(calls, seconds, rounds=5, calls=1 if first > SLOW else None, timed=moved)
    return {
        **{"batch": mode.batch, "blocks": len(report.fused), "seconds": times, "peak_mb": memory},
        **{"believable": times.believable, "difference": difference},
    }


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        eager = row["seconds"]["eager"]
        speeds = [row["seconds"].get(name) for name in VERSIONS]
        peaks = [row["peak_mb"].get(name) for name in VERSIONS]
        rows.append(
            [
                *(row["mode"] if row["believable"] else f"{row['mode']} (busy)", row["blocks"]),
                *("-" if seconds is None else f"{row['batch'] / seconds:.1f}" for seconds in speeds),
                ratio(eager, speeds[1]),
                ratio(speeds[2], speeds[3]) if speeds[2] else "-",
                *("-" if megabytes is None else f"{megabytes:.0f}" for megabytes in peaks),
            ]
        )
    packages = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "timm", "speechbrain"))
    head = ["network, pass, batch", "blocks", *(f"{name} images/s" for name in VERSIONS)]
    head += ["fused : eager", "compiled + fused : compiled", *(f"{name} MB" for name in VERSIONS)]
    note = "Forward in inference mode; a step is forward and backward. MB: what one call adds at its peak."
    return f"{results['date'][:10]}, {place(results)}; {packages}. {note}\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fusing", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="timing per mode, shared by its versions")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes a network")
    row_options(parser, "fusing", "seresnet50 nhwc")
    options = parser.parse_args()
    modes = selected(options, MODES)
    where = surroundings("timm", "speechbrain")
    results = take(options, MODES, modes, where, lambda mode: measure(mode, options.seconds, options.compile))
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()

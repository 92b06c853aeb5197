"""Whole networks as they are, with FusedSE and without SE: `python -m benchmarks.networks`.

Networks of timm and torchvision with random weights and BatchNorm statistics from one batch, so that activations keep
their size; the versions of a network take turns in one process.
"""

import argparse
import copy
import importlib.util
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.report import place, publish
from benchmarks.rows import moved, row_options, selected, take
from benchmarks.shapes import DTYPES, LAYOUTS
from benchmarks.swapping import fuse_tails, fused, replace
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.network import calibrate, relative_difference
from senet_fast.demo.text import ratio, table

MARK = "networks table: python -m benchmarks.networks"
NETWORKS = {  # name: its package
    "seresnet50": "timm",
    "efficientnet_b0": "timm",
    "mobilenet_v3_large": "torchvision",
    "mobilenet_v3_small": "torchvision",
    "regnet_y_400mf": "torchvision",
}
VERSIONS = ("eager", "fused", "in place", "tail", "none")
PIXELS = 224
CALIBRATION_IMAGES = 8
TOLERANCE = 1e-4  # float32, against the largest output


class Mode(NamedTuple):
    """One row: `kind` is "forward" or "step" (forward, backward, SGD)."""

    network: str
    kind: str
    batch: int
    layout: str
    dtype: str

    @property
    def id(self) -> str:
        return f"{self.network} {self.kind} {self.batch} {self.layout} {self.dtype}"


MODES = [
    *(
        Mode(network, "forward", batch, layout, dtype)
        for network, dtype, layout, batch in itertools.product(NETWORKS, DTYPES, LAYOUTS, (1, 16))
    ),
    Mode("seresnet50", "step", 8, "nhwc", "fp32"),
]


def create(name: str) -> nn.Module:
    """The network, calibrated. BatchNorm weights that start at 0 become 1: they would feed zeros to the SE blocks."""
    torch.manual_seed(0)
    if NETWORKS[name] == "timm":
        import timm

        network: nn.Module = timm.create_model(name)
    else:
        import torchvision

        network = torchvision.models.get_model(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    with torch.no_grad():
        calibrate(network, torch.randn(CALIBRATION_IMAGES, 3, PIXELS, PIXELS))
    return network


def versions(mode: Mode) -> dict[str, nn.Module]:
    """The versions, which share nothing. "in place" differs at inference, "tail" is known for seresnet50."""
    eager = create(mode.network).to(DTYPES[mode.dtype]).to(memory_format=LAYOUTS[mode.layout])
    eager.train(mode.kind == "step")
    makers: dict[str, Callable[[nn.Module], nn.Module]] = {"fused": fused, "none": lambda block: nn.Identity()}
    if mode.kind == "forward":
        makers["in place"] = partial(fused, inplace=True)
    networks = {"eager": eager} | {name: copy.deepcopy(eager) for name in makers}
    for name, make in makers.items():
        if replace(networks[name], make) == 0:
            raise AssertionError(f"{mode.network} has no SE block that is known here")
    if mode.network == "seresnet50":
        networks["tail"] = copy.deepcopy(eager)
        fuse_tails(networks["tail"])
    return networks


def contender(network: nn.Module, kind: str, images: Tensor) -> Callable[[], object]:
    if kind == "forward":
        return torch.inference_mode()(lambda: network(images))
    labels = torch.arange(len(images))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def measure(mode: Mode, seconds: float) -> dict[str, Any]:
    """Median seconds of the versions, and how far those with FusedSE are from `eager`."""
    networks = versions(mode)
    images = torch.randn(mode.batch, 3, PIXELS, PIXELS, dtype=DTYPES[mode.dtype])
    images = images.contiguous(memory_format=LAYOUTS[mode.layout])
    with torch.no_grad():
        outputs = {name: network(images).float() for name, network in networks.items() if name != "none"}
    difference = max(relative_difference(outputs["eager"], output) for output in outputs.values())
    if mode.dtype == "fp32" and not difference <= TOLERANCE:
        raise AssertionError(f"{mode.id}: outputs with FusedSE differ by {difference:.1e}")
    calls = {name: contender(one, mode.kind, images) for name, one in networks.items()}
    times = interleave(calls, seconds, timed=moved)
    return {"seconds": times, "believable": times.believable, "difference": difference}


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        times = [row["seconds"].get(name) for name in VERSIONS]
        name = row["mode"] if row["believable"] else f"{row['mode']} (busy)"
        shown = ["-" if seconds is None else f"{seconds * 1e3:.2f}" for seconds in times]
        ratios = [ratio(times[0], one) if row["believable"] else "-" for one in times[1:]]
        rows.append([name, *shown, *ratios, f"{row['difference']:.0e}"])
    packages = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", *sorted(set(NETWORKS.values()))))
    head = ["network, pass, batch", *(f"{name} ms" for name in VERSIONS), *(f"eager/{name}" for name in VERSIONS[1:])]
    busy = "Busy: other programs took the cores in nearly every pass."
    return f"{results['date'][:10]}, {place(results)}; {packages}. {busy}\n\n{table([*head, 'diff'], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="timing per mode, shared by its versions")
    row_options(parser, "networks", "seresnet50 nhwc")
    options = parser.parse_args()
    modes = selected(options, MODES)
    missing = sorted({NETWORKS[mode.network] for mode in modes if not importlib.util.find_spec(NETWORKS[mode.network])})
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    where = surroundings("timm", "torchvision")
    results = take(options, MODES, modes, where, lambda mode: measure(mode, options.seconds))
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()

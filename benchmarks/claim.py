"""What SE costs a whole network: `python -m benchmarks.claim`.

Each network of senet_fast.models beside itself with SE: eager blocks, torch.compile of those, and the fused op with its
neighbours. The paper has 164 ms without and 167 ms with SE for an image through ResNet-50 on a CPU, and 190 and 209 ms
for a training step of 256 images on eight GPUs (arXiv 1709.01507, section 4).

A network a run is enough (-k "resnet50 forward"): rows of earlier runs on the same machine and torch stay in the table.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.report import place, publish
from benchmarks.rows import Mode, moved, row_options, selected, take
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.network import calibrate, relative_difference
from senet_fast.demo.text import ratio, table
from senet_fast.models import create
from senet_fast.se import SEBlock

MARK = "claim table: python -m benchmarks.claim"
PIXELS = {
    **dict.fromkeys(("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d", "senet154"), 224),
    **dict.fromkeys(("vgg16_bn", "bn_inception", "mobilenet_v1", "shufflenet_v1"), 224),
    "inception_resnet_v2": 299,
}
PASSES = (("forward", 1), ("forward", 16), ("step", 8))
CONTENDERS = ("plain", "eager", "compile", "ours")
SE = {"plain": False, "eager": SEBlock, "compile": SEBlock, "ours": True}
TOLERANCE = 1e-3  # float32, against the largest output
STATISTICS_IMAGES = 4


MODES = [
    Mode(network, kind, batch, layout) for network in PIXELS for layout in ("nchw", "nhwc") for kind, batch in PASSES
]


def networks(mode: Mode, names: list[str]) -> dict[str, nn.Module]:
    """Those with SE on the same weights; BatchNorm's statistics are those of a few images."""
    torch.manual_seed(0)
    made = {name: create(mode.network, se=SE[name]) for name in names}
    images = torch.randn(STATISTICS_IMAGES, 3, PIXELS[mode.network], PIXELS[mode.network])
    with torch.no_grad():
        calibrate(made["plain"], images)
        calibrate(made["eager"], images)
    for name in set(names) - {"plain", "eager"}:
        made[name].load_state_dict(made["eager"].state_dict())
    memory_format = torch.channels_last if mode.layout == "nhwc" else torch.contiguous_format
    return {name: network.to(memory_format=memory_format).train(mode.kind == "step") for name, network in made.items()}


def contender(network: nn.Module, name: str, kind: str, images: Tensor) -> Callable[[], object]:
    called: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False) if name == "compile" else network
    if kind == "forward":
        return torch.no_grad()(lambda: called(images))
    labels = torch.arange(len(images))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(called(images), labels).backward()
        optimizer.step()

    return step


def measure(mode: Mode, seconds: float, compiled: bool) -> dict[str, Any]:
    """Median seconds of the contenders."""
    torch._dynamo.reset()
    made = networks(mode, [name for name in CONTENDERS if compiled or name != "compile"])
    pixels = PIXELS[mode.network]
    images = torch.randn(mode.batch, 3, pixels, pixels)
    if mode.layout == "nhwc":
        images = images.contiguous(memory_format=torch.channels_last)
    for network in made.values():
        network.eval()
    with torch.no_grad():
        difference = relative_difference(made["eager"](images), made["ours"](images))
    if not difference <= TOLERANCE:
        raise AssertionError(f"{mode.id}: outputs with the fused op differ by {difference:.1e}")
    for network in made.values():
        network.train(mode.kind == "step")
    calls = {name: contender(network, name, mode.kind, images) for name, network in made.items()}
    times = interleave(calls, seconds, calls=3 if mode.batch == 1 else 1, timed=moved)
    return {"date": surroundings()["date"], "seconds": times, "believable": times.believable, "difference": difference}


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        times = [row["seconds"].get(name) for name in CONTENDERS]
        shown = ["-" if seconds is None else f"{seconds * 1e3:.1f}" for seconds in times]
        ratios = [ratio(one, times[0]) if row["believable"] else "-" for one in times[1:]]
        rows.append([row["mode"] + ("" if row["believable"] else " (busy)"), *shown, *ratios])
    head = ["network, pass, batch", *(f"{name} ms" for name in CONTENDERS), *(f"{one}/plain" for one in CONTENDERS[1:])]
    where = f"{results['date'][:10]}, {place(results)}; torch {results['versions']['torch']}, float32"
    return f"{where}.\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claim", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="timing per mode, shared by the contenders")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes a network")
    row_options(parser, "claim", "resnet50 forward")
    options = parser.parse_args()
    modes = selected(options, MODES)
    results = take(options, MODES, modes, surroundings(), lambda m: measure(m, options.seconds, not options.no_compile))
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()

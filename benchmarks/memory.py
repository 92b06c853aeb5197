"""Tensors alive at the peak of a pass, eager and fused: `python -m benchmarks.memory -k seresnet50`.

What counts is what torch's allocator has handed out and not got back, from torch.profiler's record of every tensor that
is made and freed, inside of operators too: the same number in every run. Resident pages are not that: they also depend
on which pages the C library gives back, and on the calls before.
"""

import argparse
import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from benchmarks import fusing, networks
from benchmarks.libraries import define_torchvision_operators
from benchmarks.report import place, publish
from benchmarks.rows import Mode, row_options, selected, take
from senet_fast import fuse
from senet_fast.demo.measure import surroundings
from senet_fast.demo.text import table
from senet_fast.fusion.run import guards
from senet_fast.models import create
from senet_fast.se import SEBlock, squeeze_excite

MARK = "memory table: python -m benchmarks.memory"
MBCONV = ("efficientnet_b0", "mobilenetv3_large_100")  # where a convolution follows y
OWN = "SE-ResNet-50"  # of senet_fast.models: eager with SEBlock, fused with se=True
NETWORKS = (OWN, "seresnet50", "regnety_016", "efficientnet_b0", "mobilenetv3_large_100")


MODES = [
    Mode(network, kind, batch, layout)
    for network in NETWORKS
    for kind, batch in (("step", 8), ("forward", 16))
    for layout in ("nchw", "nhwc")
]


def peak(call: Callable[[], object]) -> int:
    """Bytes of tensors at the peak of a call, beyond those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()  # negative where memory is freed
        most = max(most, alive)
    return most


def check_known() -> None:
    """A case whose answer is known: squares, their sums, and of these a sum and then its product are there together."""
    vector = torch.ones(1 << 20)

    def call() -> None:
        squares = vector * vector
        sums = squares + squares
        (sums + vector) * squares

    found = peak(call)
    if found != 4 * vector.nbytes:
        raise AssertionError(f"four vectors of {vector.nbytes} bytes: {found} bytes were found")


def versions(mode: Mode) -> tuple[dict[str, nn.Module], int]:
    """The network eager and fused, and the number of fused blocks."""
    if mode.network != OWN:
        eager = fusing.create(fusing.Mode(*mode))
        fused = copy.deepcopy(eager)
        return {"eager": eager, "fused": fused}, len(fuse(fused).fused)
    made = {"eager": create("resnet50", se=SEBlock), "fused": create("resnet50", se=True)}
    made["fused"].load_state_dict(made["eager"].state_dict())
    blocks = sum(isinstance(module, SEBlock) for module in made["eager"].modules())
    memory_format = fusing.LAYOUTS[mode.layout]
    return {
        name: network.to(memory_format=memory_format).train(mode.kind == "step") for name, network in made.items()
    }, blocks


class Recomputed:
    """A fused model that saves none of the op's results for backward, which makes them anew of x: as a context.

    `bytes`: of the results that would have been saved. That there are layers which read them is what MBConv is about:
    y = x * s is kept by the 1x1 convolution behind it, beside x, which the op keeps.
    """

    def __init__(self) -> None:
        self.made: dict[int, tuple[weakref.ref[Tensor], Callable[[], Tensor]]] = {}
        self.bytes = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with mock.patch.object(guards, "squeeze_excite", self._call), saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _call(self, *given: Any, **options: Any) -> Tensor:
        y = squeeze_excite(*given, **options)

        def again() -> Tensor:
            with torch.no_grad():
                return squeeze_excite(*given, **options)

        self.made[y.data_ptr()] = (weakref.ref(y), again)
        return y

    def _pack(self, tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        alive, again = self.made.get(tensor.data_ptr(), (lambda: None, None))
        y = alive()
        if again is None or y is None or y.shape != tensor.shape:
            return tensor
        self.bytes += tensor.nbytes
        return again

    def _unpack(self, saved: Tensor | Callable[[], Tensor]) -> Tensor:
        return saved if isinstance(saved, Tensor) else saved()


def measure(mode: Mode) -> dict[str, Any]:
    made, blocks = versions(mode)
    images = torch.randn(mode.batch, 3, fusing.PIXELS, fusing.PIXELS)
    images = images.contiguous(memory_format=fusing.LAYOUTS[mode.layout])
    peaks = {}
    for name, network in made.items():
        call = networks.contender(network, mode.kind, images)
        call()
        network.zero_grad()
        peaks[name] = peak(call)
        network.zero_grad()
    row = {"blocks": blocks, "peak_mb": {name: value / 1e6 for name, value in peaks.items()}}
    if mode.kind == "step" and mode.network in MBCONV:
        recomputed = Recomputed()
        call = networks.contender(made["fused"], mode.kind, images)
        call()
        made["fused"].zero_grad()
        with recomputed():
            row["peak_mb"]["recomputed"] = peak(call) / 1e6
        row["saved_mb"] = recomputed.bytes / 1e6
    return row


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        peaks = row["peak_mb"]
        eager, fused, recomputed = (peaks.get(name) for name in ("eager", "fused", "recomputed"))
        more = ["-", "-"]
        if recomputed is not None:
            more = [f"{row['saved_mb']:.1f}", f"{recomputed:.1f} ({1 - recomputed / fused:.1%} less)"]
        rows.append([row["mode"], row["blocks"], f"{eager:.1f}", f"{fused:.1f}", f"{fused / eager:.3f}", *more])
    note = "MB: tensors at the peak of one call, beyond parameters, momentum and images."
    head = ["network, pass, batch", "blocks", "eager MB", "fused MB", "fused : eager", "y saved MB", "y recomputed MB"]
    packages = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "timm"))
    return f"{results['date'][:10]}, {place(results)}; {packages}. {note}\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    row_options(parser, "memory", "seresnet50 nhwc")
    options = parser.parse_args()
    modes = selected(options, MODES)
    check_known()
    define_torchvision_operators()
    results = take(options, MODES, modes, surroundings("timm"), measure)
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()

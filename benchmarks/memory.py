"""Tensors alive at the peak of a pass, eager and fused: `python -m benchmarks.memory`.

What counts is what torch's allocator has handed out and not got back, from torch.profiler's record of every tensor that
is made and freed, inside of operators too: the same number in every run. Resident pages are not that: they also depend
on which pages the C library gives back, and on the calls before.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from benchmarks import rows
from benchmarks.contenders import OWN, pair, passing
from benchmarks.modes import Mode, modes
from senet_fast.fusion.run import guards
from senet_fast.se import squeeze_excite
from senet_fast.text import table

MBCONV = ("efficientnet_b0", "mobilenetv3_large_100")  # where a convolution follows y
NETWORKS = (OWN, "seresnet50", "regnety_016", "efficientnet_b0", "mobilenetv3_large_100")

MODES = modes(NETWORKS, (("step", 8), ("forward", 16)))


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
    made, blocks = pair(mode)
    images = mode.input()
    peaks = {}
    for name, network in made.items():
        call = passing(network, mode.kind, images)
        call()
        network.zero_grad()
        peaks[name] = peak(call)
        network.zero_grad()
    row = {"blocks": blocks, "peak_mb": {name: value / 1e6 for name, value in peaks.items()}}
    if mode.kind == "step" and mode.network in MBCONV:
        recomputed = Recomputed()
        call = passing(made["fused"], mode.kind, images)
        call()
        made["fused"].zero_grad()
        with recomputed():
            row["peak_mb"]["recomputed"] = peak(call) / 1e6
        row["saved_mb"] = recomputed.bytes / 1e6
    return row


def markdown(results: rows.Results) -> str:
    lines = []
    for row in results["rows"]:
        peaks = row["peak_mb"]
        eager, fused, recomputed = (peaks.get(name) for name in ("eager", "fused", "recomputed"))
        more = ["-", "-"]
        if recomputed is not None:
            more = [f"{row['saved_mb']:.1f}", f"{recomputed:.1f} ({1 - recomputed / fused:.1%} less)"]
        lines.append([row["mode"], row["blocks"], f"{eager:.1f}", f"{fused:.1f}", f"{fused / eager:.3f}", *more])
    note = "MB: tensors at the peak of one call, beyond parameters, momentum and images."
    heads = ["network, pass, batch", "blocks", "eager MB", "fused MB", "fused/eager", "y saved MB", "y recomputed MB"]
    return f"{note}\n\n{table(heads, lines)}"


def main() -> None:
    options = rows.command("memory", __doc__, "seresnet50 nhwc").parse_args()
    check_known()
    rows.run(options, MODES, measure, markdown, "timm")


if __name__ == "__main__":
    main()

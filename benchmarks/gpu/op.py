"""Rows of the op's table: forward, with the residual epilogue, and backward, beside eager, torch.compile and a copy."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.contenders import agree
from benchmarks.gpu.clock import Body, Clock, noted, take_turns
from benchmarks.harness import Blocks
from benchmarks.modes import DTYPES, Case, Layer
from benchmarks.shapes import of

CONTENDERS = ("ours", "eager", "compile", "copy")
KERNELS = ("ticket", "cluster")  # ours again, with the kernel that SENET_FAST_CUDA_KERNEL names
COLD = 4  # times the L2 is what a cold row goes through before it comes back to a tensor

Function = Callable[..., Tensor]


@contextmanager
def forced(kernel: str) -> Iterator[None]:
    os.environ["SENET_FAST_CUDA_KERNEL"] = kernel
    try:
        yield
    finally:
        del os.environ["SENET_FAST_CUDA_KERNEL"]


class Kind(NamedTuple):
    """A pass, and the plain operation that moves the same bytes: `units` times x."""

    what: str
    limit: str
    units: int


KINDS = {
    "forward": Kind("y = se(x)", "y.copy_(x)", 2),
    "epilogue": Kind("y = relu(se(x) + residual)", "torch.add(x, residual, out=y)", 3),
    "backward": Kind("the gradients of x and of the weights", "torch.add(grad_y, x, out=grad_x)", 3),
}


def cases() -> list[Case]:
    """What matters most comes first: who runs out of time leaves out the end."""
    s1, s2, s3, s4 = of("seresnet50")
    first = [(s1, 32), (s4, 32), (s4, 1), (s2, 32), (s3, 32), (s1, 256), (s4, 256), (s1, 1)]
    other = [*of("efficientnet_b0", (144, 56, 6)), *of("mobilenetv3_large", (960, 7, 240))]
    other += of("regnety_160", (1232, 14, 308))
    return [
        *(Case(layer, batch, layout, "bf16") for layer, batch in first for layout in ("nhwc", "nchw")),
        *(Case(layer, 32, layout, "bf16") for layer in other for layout in ("nhwc", "nchw")),
        *(Case(s1, 32, "nchw", dtype) for dtype in ("fp32", "fp16")),
    ]


def tiny_cases() -> list[Case]:
    layer = Layer("tiny", 1, 8, (7, 7), 2, "relu", "sigmoid")
    return [Case(layer, 2, "nhwc", "fp32")]


class Contenders(Blocks):
    """The functions and tensors of a case and kind; `sets` of each tensor, so that a cold row finds none in the L2."""

    def __init__(self, case: Case, kind: str, clock: Clock, backend: str) -> None:
        super().__init__(case, clock.device)
        self.case, self.kind, self.clock = case, kind, clock
        if kind == "epilogue":
            self.fused.post_activation = "relu"
        self.compiled = self.compile(backend)

    def tensors(self, sets: int) -> list[tuple[Tensor, ...]]:
        """x, and the residual or grad_y."""
        device = self.clock.device
        return [
            tuple(self.case.input(device) + 0.2 for _ in range(1 if self.kind == "forward" else 2)) for _ in range(sets)
        ]

    def function(self, name: str) -> Function:
        return {"eager": self.eager, "compile": self.compiled}.get(name, self.fused)

    def prepare(self, name: str, tensors: Sequence[tuple[Tensor, ...]]) -> list[Body]:
        if name == "copy":
            outs = [torch.empty_like(x) for x, *_ in tensors]
            if self.kind == "forward":
                return [partial(out.copy_, x) for (x,), out in zip(tensors, outs, strict=True)]
            return [partial(torch.add, *both, out=out) for both, out in zip(tensors, outs, strict=True)]
        function = self.function(name)
        if self.kind != "backward":
            return [torch.no_grad()(partial(function, *inputs)) for inputs in tensors]
        parameters = list(self.block.parameters())

        def backward(x: Tensor, grad_y: Tensor) -> Body:
            x = x.detach().requires_grad_()
            y = function(x)
            return lambda: torch.autograd.grad(y, [x, *parameters], grad_y, retain_graph=True)

        return [backward(*both) for both in tensors]

    def check(self, tensors: Sequence[tuple[Tensor, ...]]) -> None:
        """Ours agrees with eager, in forward and in the gradient of x: no time counts otherwise."""
        (x, *rest), tolerance = tensors[0], 3e-2 if DTYPES[self.case.dtype].itemsize == 2 else 1e-3
        results = []
        for name in ("ours", "eager"):
            given = x.detach().requires_grad_(self.kind == "backward")
            with torch.set_grad_enabled(self.kind == "backward"):
                y = self.function(name)(given, *(rest if self.kind == "epilogue" else []))
            results.append(torch.autograd.grad(y, given, rest[0])[0] if self.kind == "backward" else y)
        ours, eager = results
        agree("ours beside eager", eager, ours, tolerance)


def measure(case: Case, clock: Clock, backend: str) -> list[dict[str, Any]]:
    """Rows of a case: each kind, cold and hot."""
    rows = []
    for kind, (_, _, units) in KINDS.items():
        contenders = Contenders(case, kind, clock, backend)
        for heat in ("cold", "hot"):
            sets = max(2, -(-COLD * clock.l2_bytes // (units * case.bytes))) if heat == "cold" else 1
            tensors, problems, calls = contenders.tensors(sets), {}, {}
            with noted(problems, "ours"):
                contenders.check(tensors)
            for name in CONTENDERS:
                if name not in problems:
                    with noted(problems, name):
                        calls[name] = clock.record(partial(contenders.prepare, name, tensors))
            for name in KERNELS:
                with noted({}, name), forced(name):  # no problem: a kernel may refuse a shape
                    calls[name] = clock.record(partial(contenders.prepare, name, tensors))
            seconds = {name: time / sets for name, time in take_turns(clock, calls).items()}
            row = {"case": case.id, "kind": kind, "heat": heat, "batch": case.batch, "bytes": case.bytes}
            rows.append({**row, "seconds": seconds, "problems": problems})
            del tensors, calls
            if clock.device == "cuda":
                torch.cuda.empty_cache()
    return rows


class Target(NamedTuple):
    what: str
    least: float
    reached: float  # both as factors: larger is better


def targets(row: dict[str, Any]) -> list[Target]:
    """The project's targets on an H100 that a row is subject to and that can be judged."""
    seconds, kind, large = row["seconds"], row["kind"], row["batch"] >= 32 and row["bytes"] >= 25e6
    wanted = []
    if kind == "forward" and row["heat"] == "cold" and large:
        wanted += [("a copy's GB/s", "copy", 0.9), ("torch.compile's speed", "compile", 1.4)]
    if kind == "epilogue" and row["heat"] == "cold" and large:
        wanted.append(("eager's speed", "eager", 2.5))
    if kind == "backward" and row["heat"] == "cold" and large:
        wanted.append(("eager's speed", "eager", 2.0))
    found = [
        Target(f"of {what}", least, seconds[peer] / seconds["ours"])
        for what, peer, least in wanted
        if peer in seconds and "ours" in seconds
    ]
    if kind == "forward" and row["batch"] == 1 and row["heat"] == "hot" and "ours" in seconds:
        found.append(Target("of 6 us at batch 1", 1.0, 6e-6 / seconds["ours"]))
    return found

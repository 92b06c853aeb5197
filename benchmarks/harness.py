"""The contenders of a case and the three passes that are timed: forward, backward, training step."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.shapes import DTYPES, Case
from senet_fast.se import FusedSE, SEBlock

Forward = Callable[[Tensor], Tensor]
PASSES = ("forward", "backward", "step")
CONTENDERS = ("eager", "compile", "ours", "copy")
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


class Setup:
    """Input, parameters and contenders of one case. Outputs are never fed back: values stay of ordinary size."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        layer = case.layer
        self.block = SEBlock(
            layer.channels, hidden_channels=layer.hidden, activation=layer.activation, gate=layer.gate
        ).to(DTYPES[case.dtype])
        self.fused = FusedSE.from_block(self.block)
        self.x = case.input()
        self.y = torch.empty_like(self.x)
        self.grad = torch.randn_like(self.x)
        with torch.no_grad():
            expected, actual = self.block(self.x), self.fused(self.x)
        difference = ((actual - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE[case.dtype]:
            raise AssertionError(f"{case.id}: the fused output differs by {difference:.1e}")

    def compile(self) -> Forward:
        """The block under torch.compile; reset first, or after eight shapes it would quietly run eager."""
        torch._dynamo.reset()
        return torch.compile(self.block, dynamic=False)

    def call(self, name: str, kind: str, compiled: Forward | None = None) -> Callable[[], object]:
        """A contender's pass. A backward times itself and returns its seconds; its forward is not counted."""
        if name == "copy":
            return timed_copy(self.x, self.y) if kind == "backward" else lambda: self.y.copy_(self.x)
        forward = compiled if name == "compile" else {"eager": self.block, "ours": self.fused}[name]
        assert forward is not None
        if kind == "forward":
            return no_grad(forward, self.x)
        x = self.x.detach().requires_grad_()
        inputs = [x, *self.block.parameters()]
        if kind == "step":
            return lambda: torch.autograd.grad(forward(x), inputs, self.grad)
        return timed_backward(forward, x, inputs, self.grad)


def no_grad(forward: Forward, x: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return forward(x)

    return call


def timed_copy(x: Tensor, y: Tensor) -> Callable[[], float]:
    def call() -> float:
        start = time.perf_counter()
        y.copy_(x)
        return time.perf_counter() - start

    return call


def timed_backward(forward: Forward, x: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> Callable[[], float]:
    def call() -> float:
        y = forward(x)
        start = time.perf_counter()
        torch.autograd.grad(y, inputs, grad)
        return time.perf_counter() - start

    return call

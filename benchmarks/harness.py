"""The contenders of a case and the three passes that are timed: forward, backward, training step."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

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

    def contender(self, name: str, kind: str, compiled: Forward | None = None) -> "Pass":
        """A contender's pass over x; "copy" has the same one for every kind."""
        if name == "copy":
            return Pass(lambda _: self.y.copy_(self.x))
        forward = compiled if name == "compile" else {"eager": self.block, "ours": self.fused}[name]
        assert forward is not None
        if kind == "forward":
            without_graph = torch.no_grad()(forward)
            return Pass(lambda _: without_graph(self.x))
        x = self.x.detach().requires_grad_()
        inputs = [x, *self.block.parameters()]
        if kind == "step":
            return Pass(lambda _: torch.autograd.grad(forward(x), inputs, self.grad))
        return Pass(lambda y: torch.autograd.grad(y, inputs, self.grad), lambda: forward(x))


class Pass(NamedTuple):
    """What is timed, `run`, and what makes its argument before the clock starts."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None

    def __call__(self) -> float:
        """The seconds that one run took."""
        argument = self.prepare()
        start = time.perf_counter()
        self.run(argument)
        return time.perf_counter() - start

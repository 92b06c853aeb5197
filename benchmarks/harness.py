"""The contenders of a case and the passes that are timed."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.shapes import DTYPES, Case
from senet_fast.se import FusedSE, SEBlock, squeeze_excite

Forward = Callable[[Tensor], Tensor]
CONTENDERS = ("eager", "compile", "ours", "limit")
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


class Kind(NamedTuple):
    """A pass: what ours does in it, and the plain tensor operation that moves the same bytes (the limit).

    eager and torch.compile do the same with fresh outputs, which is all they have; where that is `forward` once more,
    torch.compile is left out.
    """

    ours: str
    limit: str
    compiled: bool = True


KINDS = {
    "forward": Kind("y = se(x), a fresh tensor", "y.copy_(x)"),
    "out": Kind("squeeze_excite(x, ..., out=y) at inference", "y.copy_(x)", compiled=False),
    "in_place": Kind("FusedSE(inplace=True) at inference", "x.mul_(1)", compiled=False),
    "residual": Kind("relu(se(x) + residual), with out=y at inference", "torch.add(x, residual, out=y)"),
    "backward": Kind("the gradients of x and of all parameters", "torch.add(grad_y, x, out=grad_x)"),
    "step": Kind("forward and backward", "the limits of both"),
}


class Setup:
    """Input, parameters and contenders of one case. Outputs are never fed back: values stay of ordinary size."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        layer = case.layer
        self.block = SEBlock(
            layer.channels, hidden_channels=layer.hidden, activation=layer.activation, gate=layer.gate
        ).to(DTYPES[case.dtype])
        self.fused = FusedSE.from_block(self.block)
        self.x, self.residual, self.grad = case.input(), case.input(), case.input()
        self.y = torch.empty_like(self.x)
        with torch.no_grad():
            expected, actual = self.block(self.x), self.fused(self.x)
        difference = ((actual - expected).abs().max() / expected.abs().max()).item()
        if not difference <= TOLERANCE[case.dtype]:
            raise AssertionError(f"{case.id}: the fused output differs by {difference:.1e}")

    def with_residual(self, x: Tensor) -> Tensor:
        """As residual networks write it."""
        return self.block(x).add_(self.residual).relu_()

    def compile(self, kind: str) -> Forward:
        """The pass under torch.compile; reset first, or after eight shapes it would quietly run eager."""
        torch._dynamo.reset()
        return torch.compile(self.with_residual if kind == "residual" else self.block, dynamic=False)

    def contender(self, name: str, kind: str, compiled: Forward | None = None) -> "Pass":
        """A contender's pass of a kind."""
        if name == "limit":
            return self._limit(kind)
        if kind in ("backward", "step"):
            return self._gradients({"eager": self.block, "compile": compiled, "ours": self.fused}[name], kind)
        if name == "ours" and kind == "in_place":
            in_place = torch.no_grad()(FusedSE.from_block(self.block, inplace=True).eval())
            return Pass(in_place, lambda: self.y.copy_(self.x))
        forwards = {"compile": compiled, "eager": self.with_residual if kind == "residual" else self.block}
        return Pass(partial(torch.no_grad()(forwards[name] if name in forwards else self._into(kind)), self.x))

    def _into(self, kind: str) -> Forward:
        if kind == "forward":
            return self.fused
        fc1, fc2 = self.block.fc1, self.block.fc2
        options: dict[str, Any] = {"activation": self.block.activation, "gate": self.block.gate, "out": self.y}
        if kind == "residual":
            options |= {"residual": self.residual, "post_activation": "relu"}
        return lambda x: squeeze_excite(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, **options)

    def _gradients(self, forward: Forward | None, kind: str) -> "Pass":
        assert forward is not None
        x = self.x.detach().requires_grad_()
        inputs = [x, *self.block.parameters()]
        if kind == "step":
            return Pass(lambda _=None: torch.autograd.grad(forward(x), inputs, self.grad))
        return Pass(lambda y: torch.autograd.grad(y, inputs, self.grad), lambda: forward(x))

    def _limit(self, kind: str) -> "Pass":
        x, y, copy = self.x, self.y, lambda: self.y.copy_(self.x)
        if kind == "in_place":
            return Pass(lambda one: one.mul_(1), copy)
        add = partial(torch.add, self.residual if kind == "residual" else self.grad, x, out=y)
        return Pass({"residual": add, "backward": add, "step": lambda: (copy(), add())}.get(kind, copy))


class Pass(NamedTuple):
    """What is timed, `run`, and what makes its argument before the clock starts, if it takes one."""

    run: Callable[..., object]
    prepare: Callable[[], Any] | None = None

    def arguments(self) -> tuple[Any, ...]:
        return () if self.prepare is None else (self.prepare(),)

    def __call__(self) -> float:
        """The seconds that one run took."""
        arguments = self.arguments()
        start = time.perf_counter()
        self.run(*arguments)
        return time.perf_counter() - start

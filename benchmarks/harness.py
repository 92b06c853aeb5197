"""The contenders of a case and the passes that are timed."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.contenders import agree
from benchmarks.modes import DTYPES, Case
from senet_fast.measure import plainly
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


class Blocks:
    """The block of a case, plain and fused, with the same parameters."""

    def __init__(self, case: Case, device: str = "cpu") -> None:
        torch.manual_seed(0)
        layer = case.layer
        block = SEBlock(layer.channels, hidden_channels=layer.hidden, activation=layer.activation, gate=layer.gate)
        self.block = block.to(device, DTYPES[case.dtype])
        self.fused = FusedSE.from_block(self.block)

    def eager(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As people write it, and with a residual as residual networks do at inference."""
        y: Tensor = self.block(x)
        return y if residual is None else y.add_(residual).relu_()

    def compile(self, backend: str = "inductor") -> Callable[..., Tensor]:
        """`eager` under torch.compile; reset first, or after eight shapes it would quietly run eager."""
        torch._dynamo.reset()
        return torch.compile(self.eager, dynamic=False, backend=backend)


class Setup(Blocks):
    """Input and contenders of one case. Outputs are never fed back: values stay of ordinary size."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.x, self.residual, self.grad = case.input(), case.input(), case.input()
        self.y = torch.empty_like(self.x)
        with torch.no_grad():
            agree(case.id, self.block(self.x), self.fused(self.x), TOLERANCE[case.dtype])

    def contender(self, name: str, kind: str) -> "Pass":
        """A contender's pass of a kind."""
        if name == "limit":
            return self._limit(kind)
        plain: Forward = self.compile() if name == "compile" else self.eager
        if kind in ("backward", "step"):
            return self._gradients(self.fused if name == "ours" else plain, kind)
        if name == "ours" and kind == "in_place":
            in_place = torch.no_grad()(FusedSE.from_block(self.block, inplace=True).eval())
            return Pass(in_place, lambda: self.y.copy_(self.x))
        if kind == "residual" and name != "ours":
            return Pass(partial(torch.no_grad()(plain), self.x, self.residual))
        return Pass(partial(torch.no_grad()(self._into(kind) if name == "ours" else plain), self.x))

    def _into(self, kind: str) -> Forward:
        if kind == "forward":
            return self.fused
        fc1, fc2 = self.block.fc1, self.block.fc2
        options: dict[str, Any] = {"activation": self.block.activation, "gate": self.block.gate, "out": self.y}
        if kind == "residual":
            options |= {"residual": self.residual, "post_activation": "relu"}
        return lambda x: squeeze_excite(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, **options)

    def _gradients(self, forward: Forward, kind: str) -> "Pass":
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
        return plainly(partial(self.run, *self.arguments()))

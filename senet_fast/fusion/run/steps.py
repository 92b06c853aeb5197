"""A call of the op in the middle of a forward, with the original code for where it would not compute the same."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.recognise.excitation import Norm, Path
from senet_fast.fusion.run.guards import PLAN, Op, Parts, fits
from senet_fast.se.guards import has_hooks, only_inference


class Code:
    """A graph as a function of (module, *values). Pickles as source."""

    def __init__(self, graph: fx.Graph) -> None:
        made = graph.python_code("self")
        self.source, self.globals = made.src, dict(made.globals)
        self._compile()

    def _compile(self) -> None:
        names = dict(self.globals)
        exec(compile(self.source, "<senet_fast.fuse>", "exec"), names)
        self.function = names["forward"]

    def __call__(self, *values: Any) -> Any:
        return self.function(*values)

    def __getstate__(self) -> dict[str, Any]:
        used = {name: value for name, value in self.globals.items() if not isinstance(value, ModuleType)}
        modules = {name: value.__name__ for name, value in self.globals.items() if isinstance(value, ModuleType)}
        return {"source": self.source, "used": used, "modules": modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import importlib

        modules = {name: importlib.import_module(path) for name, path in state["modules"].items()}
        self.source, self.globals = state["source"], state["used"] | modules
        self._compile()


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the original."""

    code: Code
    parts: Parts


@dataclass(frozen=True, eq=False)
class Step:
    """An excitation in the middle of a forward, with the neighbours that the op can take over.

    The original is ``before`` (a norm, an activation), ``block`` (the excitation) and ``after`` (an addition, an
    activation). Each of these runs where the op would not compute the same.
    """

    op: Op
    owner: Path  # of the module that the op's paths start at
    plan: Any  # of the owner, where that is a fused block: another plan means that it was changed
    before: Piece | None
    norm: Norm | None
    pre_activation: str
    block: Piece
    after: Piece | None
    residual: bool
    post_activation: str
    fresh: Parts | None  # what made v, whose place y may take at inference; None: it must not

    def run(self, module: nn.Module, v: Tensor, residual: Tensor | None, *others: Any) -> Any:
        """What the original computes of v."""
        inference, overwrites = only_inference()
        before, after = self.before, self.after
        absorbs = before is not None and inference and before.parts.plain(module)
        x = v if before is None or absorbs else before.code(module, v)
        owner = self.owner.submodule(module)
        if not self._applies(owner, x):
            if absorbs:
                x = before.code(module, v)  # type: ignore[union-attr]
            return self._rest(module, self.block.code(module, x, *others), residual)
        options: dict[str, Any] = {}
        if absorbs:
            options["pre_activation"] = self.pre_activation
            if self.norm is not None:
                scale, shift = self.norm.affine(lambda path: path.tensor(module))  # type: ignore[arg-type, return-value]
                options["pre_scale"], options["pre_shift"] = scale, shift
        finishes = after is not None and after.parts.plain(module)
        if finishes and self.residual:
            finishes = fits(residual, x)
        if finishes:
            options["residual"], options["post_activation"] = residual, self.post_activation
        if overwrites and self.fresh is not None and (absorbs or before is None) and self.fresh.plain(module):
            options["out"] = v
        y = self.op(owner, x, **options)
        return y if finishes else self._rest(module, y, residual)

    @property
    def source(self) -> tuple[object, ...]:
        """What it says, to compare."""
        pieces = [None if piece is None else piece.code.source for piece in (self.before, self.block, self.after)]
        fresh = None if self.fresh is None else self.fresh.known
        options = (self.norm, self.pre_activation, self.residual, self.post_activation)
        return (*pieces, *options, fresh, self.owner, self.plan, self.op.excitation)

    def _applies(self, owner: nn.Module, x: Any) -> bool:
        if self.plan is not None and (owner.__dict__.get(PLAN) is not self.plan or has_hooks(owner)):
            return False
        if not self.op.applies(owner, x):
            return False
        # Beside weights of another type, y may have another type than x.
        weight = self.op.tensors[0].tensor(owner)  # type: ignore[union-attr]
        return bool(x.dtype == weight.dtype or x.dtype == torch.get_autocast_dtype(x.device.type))  # type: ignore[union-attr]

    def _rest(self, module: nn.Module, y: Any, residual: Any) -> Any:
        if self.after is None:
            return y
        return self.after.code(module, y, residual) if self.residual else self.after.code(module, y)

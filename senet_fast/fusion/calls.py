"""Calls of the op in the place of a module's own code, each with the guard that says where it computes the same."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.excitation import Excitation, Norm, Path
from senet_fast.se import squeeze_excite
from senet_fast.se.guards import has_hooks, has_plain_tensors, is_plain, is_untouched, only_inference


class Parts:
    """Modules whose calls are replaced. ``in_mode``: what they do was seen in the mode that they are in now."""

    def __init__(self, module: nn.Module, paths: Iterable[str], in_mode: bool = False) -> None:
        at = [Path.of(path) for path in dict.fromkeys(paths)]
        self.known = tuple((path, type(path.submodule(module))) for path in at)
        self.modes = tuple(path.submodule(module).training for path in at) if in_mode else None

    def plain(self, module: nn.Module) -> bool:
        """Whether they are what they were, with plain tensors, and nobody sees their calls."""
        modes, compiling = self.modes, torch.compiler.is_compiling()
        for at, (path, kind) in enumerate(self.known):
            part = module
            for name in path:
                part = part._modules[name]  # type: ignore[assignment]
            if not is_untouched(part, kind, compiling) or not has_plain_tensors(part):
                return False
            if modes is not None and part.training is not modes[at]:
                return False
        return True

    def any_trains(self, module: nn.Module) -> bool:
        return any(path.submodule(module).training for path, _ in self.known)


class Op:
    """The op as an excitation of the tensors of a module, in the place of its ``parts``."""

    def __init__(self, module: nn.Module, excitation: Excitation, parts: Iterable[str]) -> None:
        self.excitation, self.parts = excitation, Parts(module, parts)
        self.options = {rank: excitation.options(dim) for rank, dim in excitation.dims}
        self.norms = tuple({norm.module for norm in excitation.norms})
        self.direct = excitation.is_plain
        self.tensors = tuple(path for layer in excitation.layers for path in (layer.weight, layer.bias))
        self.own_tensors = [path for path in self.tensors if path is not None and len(path) == 1]  # of no part

    def applies(self, module: nn.Module, x: Any) -> bool:
        """Whether it computes what the module would."""
        if not is_plain(x) or x.dim() not in self.options:
            return False
        excitation = self.excitation
        if excitation.inference_only and (module.training or self.parts.any_trains(module)):
            return False
        if excitation.shape is not None and x.shape[1:] != excitation.shape:
            return False
        if not self.parts.plain(module):
            return False
        if not all(is_plain(path.tensor(module)) for path in self.own_tensors):
            return False
        weight = self.tensors[0].tensor(module)  # type: ignore[union-attr]
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):  # type: ignore[union-attr]
            return False  # the original may promote x, or refuse it
        return all(not path.submodule(module).training for path in self.norms)

    def weights(self, module: nn.Module) -> list[Tensor | None]:
        if self.direct:
            return [None if path is None else path.tensor(module) for path in self.tensors]
        return self.excitation.weights(lambda path: path.tensor(module))  # type: ignore[arg-type, return-value]

    def __call__(self, module: nn.Module, x: Tensor, **more: Any) -> Tensor:
        return squeeze_excite(x, *self.weights(module), **self.options[x.dim()], **more)  # type: ignore[arg-type, misc]


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


PLAN = "_senet_fast_plan"  # the attribute of a fused module


def fits(residual: Any, x: Tensor) -> bool:
    """Whether the op takes ``residual`` beside x: an addition would also broadcast it, or promote types."""
    return isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype

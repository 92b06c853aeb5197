"""A call of the op in the middle of a forward, with the original code for where it would not compute the same."""

from dataclasses import dataclass, field
from types import BuiltinFunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.recognise.excitation import Norm, Path, submodule_at, tensor_at
from senet_fast.fusion.run.convolution import Convolution, ModuleConvolution
from senet_fast.fusion.run.guards import FORWARD, Op, Parts, Slotted, affine_of, fits, fold, hooked, prologue
from senet_fast.se.guards import constant, costs_nothing_in_front, only_inference

_scopes: dict[tuple[tuple[str, str | int], ...], dict[str, Any]] = {}


def _scope(names: dict[str, Any]) -> dict[str, Any]:
    """Globals with these ``names``, shared by the functions that know nothing else. Dynamo compares in Python,
    at each call, what it reaches by two ways, such as torch in the globals of two functions.
    """
    lasting = (ModuleType, BuiltinFunctionType, float)  # a class of the user's would never be released
    usual = (torch.device, type(None))
    if not all(isinstance(value, lasting) or any(value is one for one in usual) for value in names.values()):
        return dict(names)
    # Floats by their value: pickle makes inf and nan anew for each function.
    known = {name: repr(value) if isinstance(value, float) else id(value) for name, value in names.items()}
    return _scopes.setdefault(tuple(sorted(known.items())), dict(names))


class Code:
    """A graph as a ``function`` of (module, *values). Pickles as source."""

    __slots__ = ("function", "globals", "source")

    def __init__(self, graph: fx.Graph) -> None:
        made = graph.python_code("self")
        self.source, self.globals = made.src, dict(made.globals)
        self._compile()

    def _compile(self) -> None:
        made: dict[str, Any] = {}
        exec(compile(self.source, "<senet_fast.fuse>", "exec"), _scope(self.globals), made)
        self.function = made["forward"]

    def __getstate__(self) -> dict[str, Any]:
        used = {name: value for name, value in self.globals.items() if not isinstance(value, ModuleType)}
        modules = {name: value.__name__ for name, value in self.globals.items() if isinstance(value, ModuleType)}
        return {"source": self.source, "used": used, "modules": modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import importlib

        modules = {name: importlib.import_module(path) for name, path in state["modules"].items()}
        self.source, self.globals = state["source"], state["used"] | modules
        self._compile()


class Piece(Slotted):
    """A part of the original, from v (and, behind the op, a residual) to what it makes of it."""

    __slots__ = ("code", "parts")

    def __init__(self, code: Code, parts: Parts) -> None:
        self.code, self.parts = code, parts

    def plain(self, module: nn.Module) -> bool:
        return self.parts.plain(module)

    def run(self, module: nn.Module, *values: Any) -> Any:
        return self.code.function(module, *values)


class Step:
    """What happens at an excitation in a forward or a graph, with the neighbours that the op can take over.

    The original is ``before`` (a norm, an activation), the excitation itself and ``after`` (an addition, an
    activation), each a piece that says whether it is ``plain``: nobody sees its calls, and it does what it did. Each
    runs where the op would not compute the same.
    """

    __slots__ = ()

    before: Any
    after: Any
    residual: bool
    pre_activation: str
    post_activation: str
    fresh: Any  # what made v, whose place y may take at inference; None: it must not
    conv: Convolution | None  # beside the gate, which the op may compute as well

    def applies(self, module: Any, x: Any) -> bool:
        """Whether the op computes what the excitation itself does of x."""
        raise NotImplementedError

    def original(self, module: Any, x: Any, *others: Any) -> Any:
        raise NotImplementedError

    def affine(self, module: Any) -> tuple[Tensor, Tensor] | None:
        """(scale, shift) of the norm in ``before``."""
        raise NotImplementedError

    def op(self, module: Any, x: Tensor, **options: Any) -> Tensor:
        raise NotImplementedError

    def run(self, module: Any, v: Tensor, residual: Any, *others: Any) -> Any:
        """What the original computes of v."""
        conv = self.conv
        if conv is None:
            return self._gated(module, v, residual, *others)
        gates_input = conv.side == "input"
        if only_inference() and self.convolves(module, v, residual):
            return conv.run(module, v, residual, conv.activation if gates_input else self.post_activation)
        if gates_input:
            y = self._gated(module, v, None, *others)
            return conv.code.run(module, y, residual) if conv.adds else conv.code.run(module, y)
        u = v if conv.front is None else conv.front.run(module, v)
        return self._gated(module, conv.code.run(module, u), residual, *others)

    def convolves(self, module: Any, v: Any, residual: Any) -> bool:
        """Whether the op computes what the convolution, the excitation and what is beside them do of v."""
        conv = self.conv
        assert conv is not None
        beside = () if conv.side == "input" else (self.before, self.after)
        return (
            self.applies(module, v)
            and all(piece is None or piece.plain(module) for piece in (conv.code, *beside))
            and conv.takes(module, v, residual)
        )

    def _gated(self, module: Any, v: Tensor, residual: Any, *others: Any) -> Any:
        """Without the convolution."""
        inference = only_inference()
        before, after = self.before, self.after
        plain = before is not None and inference and before.plain(module)
        absorbs = plain and not costs_nothing_in_front(v)
        x = v if before is None or absorbs else before.run(module, v)
        if not self.applies(module, x):
            y = self.original(module, before.run(module, v) if absorbs else x, *others)
            return y if after is None else self._after(module, y, residual)
        options = prologue(self.pre_activation, self.affine(module)) if absorbs else {}
        finishes = after is not None and after.plain(module) and (not self.residual or fits(residual, x))
        if finishes:
            options["residual"], options["post_activation"] = residual, self.post_activation
        if inference and self.fresh is not None and (plain or before is None) and self.fresh.plain(module):
            options["out"] = x
        y = self.op(module, x, **options)
        return y if finishes or after is None else self._after(module, y, residual)

    def _after(self, module: Any, y: Any, residual: Any) -> Any:
        return self.after.run(module, y, residual) if self.residual else self.after.run(module, y)


@dataclass(frozen=True, eq=False, slots=True)
class ModuleStep(Step):
    """Of a module, or of a fused child of it."""

    block: Op
    owner: Path  # of the module that the op's paths start at
    fused: Any  # the forward of the owner, where that is a fused block: another one means that it was changed
    before: Piece | None
    norm: Norm | None
    pre_activation: str
    own: Piece
    after: Piece | None
    residual: bool
    post_activation: str
    fresh: Parts | None
    conv: ModuleConvolution | None = None
    _facts: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_facts", (tuple(self.owner), affine_of(self.norm)))

    @constant
    def facts(self) -> Any:
        """Where the owner is, and the norm."""
        return self._facts

    @constant
    def number(self) -> int | None:
        """Of the forward that the owner had."""
        return None if self.fused is None else int(self.fused.number)

    def applies(self, module: nn.Module, x: Any) -> bool:
        owner = submodule_at(module, self.facts()[0])
        number = self.number()
        if number is not None:
            # By its number, as Dynamo compares objects in Python at each call.
            fused = owner.__dict__.get(FORWARD)
            if fused is None or fused.number != number or hooked(owner):
                return False
        if not self.block.applies(owner, x):
            return False
        # Beside weights of another type, y may have another type than x.
        weight: Any = tensor_at(owner, self.block.facts()[3][0])
        return bool(x.dtype == weight.dtype or x.dtype == torch.get_autocast_dtype(x.device.type))

    def original(self, module: nn.Module, x: Any, *others: Any) -> Any:
        return self.own.run(module, x, *others)

    def affine(self, module: nn.Module) -> tuple[Tensor, Tensor] | None:
        norm = self.facts()[1]
        return None if norm is None else fold(module, norm)

    def op(self, module: nn.Module, x: Tensor, **options: Any) -> Tensor:
        return self.block(submodule_at(module, self.facts()[0]), x, **options)

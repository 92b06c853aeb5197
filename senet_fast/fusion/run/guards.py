"""Calls of the op in the place of a module's own code, each with the guard that says where it computes the same."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from senet_fast.fusion.recognise.excitation import Excitation, Norm, Path, submodule_at, tensor_at
from senet_fast.se import squeeze_excite
from senet_fast.se.guards import constant, has_hooks, has_plain_tensors, is_plain, is_untouched
from senet_fast.se.ops import folded


class Asked:
    """What fused modules answer to Dynamo as constants: a base of their classes."""

    @constant
    def _senet_fast_plain(self: Any, parts: int) -> Any:
        found = _parts[parts]
        return found.guarded if found.plain(self) else None

    @constant
    def _senet_fast_hooks(self: Any) -> bool:
        return has_hooks(self)


_parts: "WeakValueDictionary[int, Parts]" = WeakValueDictionary()


def hooked(module: Any) -> bool:
    """Whether a call of a fused module is seen by anybody; as with other modules, Dynamo does not guard that."""
    return bool(module._senet_fast_hooks() if torch.compiler.is_dynamo_compiling() else has_hooks(module))


class Slotted:
    """Dynamo looks into the ``__dict__`` of an object at each call of a method, so these have none. Every protocol of
    pickle takes them.
    """

    __slots__ = ()

    def __getstate__(self) -> dict[str, Any]:
        names: tuple[str, ...] = type(self).__slots__
        return {name: getattr(self, name) for name in names if name != "__weakref__"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Parts(Slotted):
    """Modules whose calls are replaced. ``in_mode``: what they do was seen in the mode that they are in now."""

    __slots__ = ("__weakref__", "known", "modes")

    def __init__(self, module: nn.Module, paths: Iterable[str], in_mode: bool = False) -> None:
        at = [Path.of(path) for path in dict.fromkeys(paths)]
        self.known = tuple((path, type(path.submodule(module))) for path in at)
        self.modes = tuple(path.submodule(module).training for path in at) if in_mode else None

    def plain(self, module: nn.Module) -> bool:
        """Whether they are what they were, with plain tensors, and nobody sees their calls."""
        if torch.compiler.is_dynamo_compiling():
            return self._plain_to_dynamo(module)
        modes = self.modes
        for at, (path, kind) in enumerate(self.known):
            part = module
            for name in path:
                part = part._modules[name]  # type: ignore[assignment]
            if not is_untouched(part, kind) or not has_plain_tensors(part):
                return False
            if modes is not None and part.training is not modes[at]:
                return False
        return True

    def _plain_to_dynamo(self, module: Any) -> bool:
        """The same, and of what it depends on only what Dynamo guards of any module: types and modes, no hooks."""
        parts = module._senet_fast_plain(self._number())
        for path, mode in parts or ():
            part = submodule_at(module, path)
            if not isinstance(part, nn.Module) or (mode is not None and part.training is not mode):
                return False
        return parts is not None

    @constant
    def _number(self) -> int:
        _parts[id(self)] = self
        return id(self)

    @property
    def guarded(self) -> tuple[tuple[tuple[str, ...], bool | None], ...]:
        """Their paths and modes."""
        modes = self.modes or (None,) * len(self.known)
        return tuple((tuple(path), mode) for (path, _), mode in zip(self.known, modes, strict=True))

    def any_trains(self, module: nn.Module) -> bool:
        return any(path.submodule(module).training for path, _ in self.known)


def names_of(path: Path | None) -> tuple[str, ...] | None:
    """As a constant."""
    return None if path is None else tuple(path)


Affine = tuple[tuple[tuple[str, ...] | None, ...], float]


def affine_of(norm: Norm | None) -> Affine | None:
    """A norm as a constant: its tensors and eps."""
    return None if norm is None else (tuple(map(names_of, norm.tensors)), norm.eps)


def fold(module: nn.Module, norm: Affine, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(scale, shift) [n] of a norm in ``module``, of tensors in ``dtype``."""
    return folded([None if names is None else tensor_at(module, names) for names in norm[0]], norm[1], dtype)


def prologue(activation: str, norm: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """What stands in front of the op, as its options; ``norm``: scale and shift."""
    options: dict[str, Any] = {"pre_activation": activation}
    if norm is not None:
        options["pre_scale"], options["pre_shift"] = norm
    return options


class Op(Slotted):
    """The op as an excitation of the tensors of a module, in the place of its ``parts``."""

    __slots__ = ("_facts", "_options", "excitation", "parts")

    def __init__(self, module: nn.Module, excitation: Excitation, parts: Iterable[str]) -> None:
        self.excitation, self.parts = excitation, Parts(module, parts)
        tensors = [path for layer in excitation.layers for path in (layer.weight, layer.bias)]
        known = {path for path, _ in self.parts.known}
        apart = {layer.bias for layer in excitation.layers if layer.bias_apart}
        own = [p for p in tensors if p is not None and (p in apart or p.parent not in known)]
        self._options = {rank: tuple(excitation.options(dim).items()) for rank, dim in excitation.dims}
        self._facts = (
            *(excitation.inference_only, excitation.shape, excitation.is_plain),
            tuple(map(names_of, tensors)),
            tuple(map(tuple, own)),
            tuple(map(tuple, {norm.module for norm in excitation.norms})),
        )

    @constant
    def options(self, rank: int) -> Any:
        """The op's, by their names, for an x of so many axes; None where it is not for such."""
        return self._options.get(rank)

    @constant
    def facts(self) -> Any:
        """Whether it is for inference only; the only shape of x, if any; whether its weights are the module's own;
        where all those are, which of them are of no part or of another than the first weight, and where its norms are.
        """
        return self._facts

    def applies(self, module: nn.Module, x: Any) -> bool:
        """Whether it computes what the module would."""
        inference_only, shape, _, tensors, own_tensors, norms = self.facts()
        if not is_plain(x) or self.options(x.dim()) is None:
            return False
        if inference_only and (module.training or self.parts.any_trains(module)):
            return False
        if shape is not None and x.shape[1:] != shape:
            return False
        if not self.parts.plain(module):
            return False
        weight: Any = tensor_at(module, tensors[0])
        for names in own_tensors:
            own: Any = tensor_at(module, names)
            if not is_plain(own) or own.dtype != weight.dtype or own.device != weight.device:
                return False
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return False  # the original may promote x, or refuse it
        return all(not submodule_at(module, names).training for names in norms)

    def weights(self, module: nn.Module) -> list[Tensor | None]:
        _, _, direct, tensors, _, _ = self.facts()
        if direct:
            return [None if names is None else tensor_at(module, names) for names in tensors]
        return self.excitation.weights(lambda path: path.tensor(module))  # type: ignore[arg-type, return-value]

    def __call__(self, module: nn.Module, x: Tensor, **more: Any) -> Tensor:
        return squeeze_excite(x, *self.weights(module), **dict(self.options(x.dim())), **more)  # type: ignore[arg-type, misc]


FORWARD = "_senet_fast_forward"  # the attribute of a fused module


def fits(residual: Any, x: Tensor) -> bool:
    """Whether the op takes ``residual`` beside x: an addition would also broadcast it, or promote types."""
    return isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype

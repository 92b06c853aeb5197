"""Calls of the op in the place of a module's own code, each with the guard that says where it computes the same."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.fusion.recognise.excitation import Excitation, Path
from senet_fast.se import squeeze_excite
from senet_fast.se.guards import has_plain_tensors, is_plain, is_untouched


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
        parts_known = {path for path, _ in self.parts.known}
        apart = {layer.bias for layer in excitation.layers if layer.bias_apart}
        self.own_tensors = [p for p in self.tensors if p is not None and (p in apart or p.parent not in parts_known)]

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
        weight = self.tensors[0].tensor(module)  # type: ignore[union-attr]
        for path in self.own_tensors:  # of no part, or of another than the weight
            own = path.tensor(module)
            if not is_plain(own) or own.dtype != weight.dtype or own.device != weight.device:  # type: ignore[union-attr]
                return False
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):  # type: ignore[union-attr]
            return False  # the original may promote x, or refuse it
        return all(not path.submodule(module).training for path in self.norms)

    def weights(self, module: nn.Module) -> list[Tensor | None]:
        if self.direct:
            return [None if path is None else path.tensor(module) for path in self.tensors]
        return self.excitation.weights(lambda path: path.tensor(module))  # type: ignore[arg-type, return-value]

    def __call__(self, module: nn.Module, x: Tensor, **more: Any) -> Tensor:
        return squeeze_excite(x, *self.weights(module), **self.options[x.dim()], **more)  # type: ignore[arg-type, misc]


FORWARD = "_senet_fast_forward"  # the attribute of a fused module


def fits(residual: Any, x: Tensor) -> bool:
    """Whether the op takes ``residual`` beside x: an addition would also broadcast it, or promote types."""
    return isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype

"""Gives a module a forward that calls the op, and nothing else: children, parameters and attributes stay.

The module's class becomes a subclass of its own with the same name, so its instances stay instances, and copies,
replicas and pickles carry the new forward along. Setting an attribute of a fused module undoes its fusion: what was
matched may no longer be what it computes.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.fusion.excitation import Excitation, Path
from senet_fast.fusion.match import has_hooks
from senet_fast.se import squeeze_excite

PLAN = "_senet_fast_plan"


class BlockPlan:
    """The forward of a module that is an excitation and nothing else."""

    def __init__(self, module: nn.Module, excitation: Excitation) -> None:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        self.argument = parameters[0].name
        self.names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.excitation = excitation
        self.watched = {*module.__dict__, *module._modules} - {*nn.Module().__dict__}
        self.modules = tuple(Path.of(path) for path, _ in module.named_modules() if path)
        self.options = {rank: excitation.options(dim) for rank, dim in excitation.dims}
        self.norm_modules = tuple({norm.module for norm in excitation.norms})
        self.plain = not excitation.norms and not any(layer.transposed for layer in excitation.layers)
        self.tensors = tuple(path for layer in excitation.layers for path in (layer.weight, layer.bias))

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockPlan":
        return self  # never changed

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """x, where the other arguments have the values that were traced; else None."""
        given = dict(zip(self.names, args, strict=False))
        if len(args) > len(self.names) or given.keys() & kwargs.keys():
            return None
        given.update(kwargs)
        x = given.pop(self.argument, None)
        traced = all(name in self.defaults and value is self.defaults[name] for name, value in given.items())
        return x if traced else None

    def applies(self, module: nn.Module, x: Any) -> bool:
        """Whether the op computes what the module would."""
        if not isinstance(x, Tensor) or x.dim() not in self.options:
            return False
        if self.excitation.inference_only and module.training:
            return False
        weight = self.tensors[0].tensor(module)  # type: ignore[union-attr]
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):  # type: ignore[union-attr]
            return False  # the original may promote x, or refuse it
        for path in self.norm_modules:
            if path.submodule(module).training:
                return False
        return not any(has_hooks(path.submodule(module)) for path in self.modules)

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.plain:
            weights = [None if path is None else path.tensor(module) for path in self.tensors]
        else:
            weights = self.excitation.weights(lambda path: path.tensor(module))  # type: ignore[arg-type, return-value]
        return squeeze_excite(x, *weights, **self.options[x.dim()])  # type: ignore[arg-type]


@functools.cache
def _fused_class(original: Any) -> Any:
    own_forward = original.forward
    of_class = {name for kind in original.__mro__ if kind not in nn.Module.__mro__ for name in vars(kind)}

    @functools.wraps(own_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__.get(PLAN)
        if plan is None:  # an instance that the class made of itself
            return own_forward(self, *args, **kwargs)
        x = args[0] if len(args) == 1 and not kwargs else plan.input(args, kwargs)
        if plan.applies(self, x):
            return plan(self, x)
        return own_forward(self, *args, **kwargs)

    def __setattr__(self: Any, name: str, value: Any) -> None:
        original.__setattr__(self, name, value)
        if PLAN in self.__dict__ and (name in self.__dict__[PLAN].watched or name in of_class):
            restore(self)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _rebuilt, (original,), self.__getstate__()

    body = {
        "forward": forward,
        "__setattr__": __setattr__,
        "__reduce_ex__": __reduce_ex__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_senet_fast_original": original,
    }
    return type(original.__name__, (original,), body)


def _rebuilt(original: type[nn.Module]) -> nn.Module:
    """An empty instance for a pickle's state."""
    made: nn.Module = object.__new__(_fused_class(original))  # type: ignore[arg-type]
    return made


def is_fused(module: nn.Module) -> bool:
    return PLAN in module.__dict__


def can_swap(module: nn.Module) -> bool:
    """Whether the class of ``module`` can be exchanged for a subclass, unnoticed by copies and pickles."""
    kind = type(module)
    plain = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    return plain and "forward" not in module.__dict__ and not isinstance(module, torch.jit.ScriptModule)


def install(module: nn.Module, excitation: Excitation) -> None:
    """Make ``module.forward`` the op."""
    module.__dict__[PLAN] = BlockPlan(module, excitation)
    module.__class__ = _fused_class(type(module))  # type: ignore[arg-type]


def restore(module: nn.Module) -> None:
    """Give a fused module its own forward back."""
    del module.__dict__[PLAN]
    module.__class__ = type(module)._senet_fast_original  # type: ignore[attr-defined]

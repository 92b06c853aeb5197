"""Gives a module a forward that calls the op, and nothing else: children, parameters and attributes stay.

The module's class becomes a subclass of its own with the same name, so its instances stay instances, and copies,
replicas and pickles carry the new forward along. Setting an attribute of a fused module undoes its fusion: what was
matched may no longer be what it computes.
"""

import functools
from typing import Any

import torch
from torch import nn

from senet_fast.fusion.run.forwards import FusedForward
from senet_fast.fusion.run.guards import FORWARD, Asked
from senet_fast.se.kept import forget


@functools.cache
def _fused_class(original: Any) -> Any:
    own_forward = original.forward
    of_class = {name for kind in original.__mro__ if kind not in nn.Module.__mro__ for name in vars(kind)}

    @functools.wraps(own_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        fused = self.__dict__.get(FORWARD)
        # It is None in an instance that the class made of itself. No number is below 0, but Dynamo looks again in every
        # call at what was read here, and so does not take what it compiled for another forward.
        if fused is None or fused.number < 0:
            return own_forward(self, *args, **kwargs)
        return fused.run(self, own_forward, args, kwargs)

    # torch.compile counts compilations by code object.
    forward.__code__ = forward.__code__.replace(  # type: ignore[attr-defined]
        co_name=f"forward_of_{original.__name__}"
    )

    def __setattr__(self: Any, name: str, value: Any) -> None:
        original.__setattr__(self, name, value)
        if FORWARD in self.__dict__ and (name in self.__dict__[FORWARD].watched or name in of_class):
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
    return type(original.__name__, (original, Asked), body)


def _rebuilt(original: type[nn.Module]) -> nn.Module:
    """An empty instance for a pickle's state."""
    made: nn.Module = object.__new__(_fused_class(original))  # type: ignore[arg-type]
    return made


def is_fused(module: nn.Module) -> bool:
    return FORWARD in module.__dict__


def can_swap(module: nn.Module) -> bool:
    """Whether the class of ``module`` can be exchanged for a subclass, unnoticed by copies and pickles."""
    kind = type(module)
    plain = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    return plain and "forward" not in module.__dict__ and not isinstance(module, torch.jit.ScriptModule)


def install(module: nn.Module, forward: FusedForward) -> None:
    """Make ``module.forward`` what ``forward`` runs."""
    module.__dict__[FORWARD] = forward
    module.__class__ = _fused_class(type(module))  # type: ignore[arg-type]


def restore(module: nn.Module) -> int:
    """Give a fused module its own forward back; returns how many excitations that had."""
    fused = module.__dict__.pop(FORWARD)
    forget(module)
    module.__class__ = type(module)._senet_fast_original  # type: ignore[attr-defined]
    return int(fused.blocks)

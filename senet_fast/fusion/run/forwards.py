"""The forwards that fused modules run, and the calls in which they run their own instead."""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from senet_fast.fusion.recognise.excitation import Excitation
from senet_fast.fusion.run.guards import FORWARD, Op, Parts
from senet_fast.fusion.run.steps import Code, ModuleStep
from senet_fast.se.guards import hooks_of_all_modules

Forward = Callable[..., Any]


_numbers = itertools.count()
_of_blocks: dict[tuple[Any, ...], int] = {}


class FusedForward:
    """What is the same for every fused module. Never changed once it is made, so copies share it.

    ``number``: by this Dynamo tells forwards apart, to which all else in here is constant.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        self.names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.watched = {*module.__dict__, *module._modules} - {*nn.Module().__dict__}
        self.number = next(_numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "number"}  # of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.number = self._number()

    def _number(self) -> int:
        return next(_numbers)

    @property
    def blocks(self) -> int:
        """Excitations that have no module of their own."""
        return 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedForward":
        return self

    def run(self, module: nn.Module, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Values by name, defaults included; None where they do not fit."""
        if len(args) > len(self.names):
            return None
        given = dict(zip(self.names, args, strict=False))
        if given.keys() & kwargs.keys() or not kwargs.keys() <= {*self.names, *self.defaults}:
            return None
        return self.defaults | given | kwargs


class BlockForward(FusedForward):
    """The forward of a module that is an excitation and nothing else."""

    def __init__(self, module: nn.Module, excitation: Excitation) -> None:
        super().__init__(module)
        self.op = Op(module, excitation, (path for path, _ in module.named_modules() if path))
        self.number = self._number()

    def _number(self) -> int:
        """Blocks that are alike share what is compiled of them."""
        return _of_blocks.setdefault((self.op.excitation, self.op.parts.known), next(_numbers))

    def run(self, module: nn.Module, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else self._input(args, kwargs)
        if self.op.applies(module, x) and not hooks_of_all_modules():
            return self.op(module, x)
        return own(module, *args, **kwargs)

    def _input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """x, where the other arguments have the values that were traced; else None."""
        values = self.arguments(args, kwargs)
        if values is None or any(values[name] is not value for name, value in self.defaults.items()):
            return None
        return values.get(self.names[0])


Key = tuple[Any, ...]


def key(training: bool, constants: Iterable[Any]) -> Key:
    """Constants that are equal but of different types are different: 0 and False."""
    return (training, *((type(value), value) for value in constants))


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """The forward of one mode, for certain values of the arguments that are no tensors."""

    code: Code
    steps: tuple[ModuleStep, ...]
    inlined: Parts  # children whose code is a part of this


class HostForward(FusedForward):
    """The forward of a module with excitations in its middle."""

    def __init__(self, module: nn.Module, constants: list[str], variants: dict[Key, Variant]) -> None:
        super().__init__(module)
        self.constants, self.variants = constants, variants
        self.tensors = [name for name in self.names if name not in constants]
        self.usual: dict[bool, Variant | None] | None = None  # by the mode, where the constants have their defaults
        if {*constants} <= {*self.defaults}:
            defaults = [self.defaults[name] for name in constants]
            with contextlib.suppress(TypeError):  # a default without a hash
                self.usual = {training: variants.get(key(training, defaults)) for training in (False, True)}

    def run(self, module: nn.Module, own: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors: Any = args
        if kwargs or self.usual is None or len(args) != len(self.tensors):
            values = self.arguments(args, kwargs)
            if values is None or not values.keys() >= {*self.names}:
                return own(module, *args, **kwargs)
            tensors = [values[name] for name in self.tensors]
            try:
                variant = self.variants.get(key(module.training, [values[name] for name in self.constants]))
            except TypeError:  # a constant without a hash
                variant = None
        else:
            variant = self.usual[module.training]
        if variant is None:
            return own(module, *args, **kwargs)
        for value in tensors:
            if not isinstance(value, Tensor):
                return own(module, *args, **kwargs)
        if not variant.inlined.plain(module) or hooks_of_all_modules():
            return own(module, *args, **kwargs)
        return variant.code.function(module, module, variant.steps, *tensors)

    @property
    def blocks(self) -> int:
        return max(sum(step.fused is None for step in variant.steps) for variant in self.variants.values())

    def is_stale(self, module: nn.Module) -> bool:
        """Whether a fused block below got another forward than it had."""
        steps = [step for variant in self.variants.values() for step in variant.steps if step.fused is not None]
        return any(step.owner.submodule(module).__dict__.get(FORWARD) is not step.fused for step in steps)

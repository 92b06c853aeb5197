"""Graphs of what modules compute."""

import contextlib
import inspect
import operator
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import fx, nn

from senet_fast.fusion.graph.nodes import attribute, is_made_by_trace
from senet_fast.fusion.graph.parts import may_hold_layers
from senet_fast.fusion.graph.refusal import Refused

Modes = tuple[bool, bool, bool]


def modes() -> Modes:
    """What a forward may change for a part of itself, which its graph would not show."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


class _Proxy(fx.Proxy):
    """Keeps `x += y` in place, as it is in the module; fx would make `x + y` of it."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _RankedProxy(_Proxy):
    """A tensor whose number of axes is known, so that code may ask for it."""

    @property
    def ndim(self) -> int:
        return int(self.node.meta["rank"])

    def dim(self) -> int:
        return self.ndim

    @property
    def shape(self) -> tuple[fx.Proxy, ...]:
        sizes = self.tracer.create_proxy("call_function", getattr, (self, "shape"), {})
        return tuple(sizes[axis] for axis in range(self.ndim))  # type: ignore[index]

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(
        self,
        leaves: Callable[[nn.Module, str], bool],
        rank: int | None,
        constants: dict[str, Any] | None = None,
        steady: bool = False,
    ) -> None:
        super().__init__()
        self.leaves, self.rank, self.constants = leaves, rank, constants or {}
        self.modes = modes() if steady else None

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if self.modes is not None and modes() != self.modes:
            raise Refused("trace", "it changes autocast or the grad mode for a part of itself")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if self.rank is None or not (node.op == "placeholder" or self._keeps_rank(node)):
            return _Proxy(node, self)
        node.meta["rank"] = self.rank
        return _RankedProxy(node, self)

    def _keeps_rank(self, node: fx.Node) -> bool:
        """Whether ``node`` is a mean with as many axes as the input that it is of."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or "rank" not in source.meta:
            return False
        if node.op == "call_module":
            pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
            return isinstance(attribute(self.root, str(node.target)), pools)
        return node.target in ("mean", torch.mean) and (node.kwargs.get("keepdim") is True or node.args[2:] == (True,))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.modes is not None:
            return self.leaves(m, module_qualified_name)
        library = super().is_leaf_module(m, module_qualified_name)
        return library or self.leaves(m, module_qualified_name) or not may_hold_layers(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for what must be given; what has a default keeps it, or has the value of ``constants``."""
        required = required_arguments(root_fn)
        given: list[Any] = [self.root]
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.name in self.constants:
                given.append(self.constants[parameter.name])
            elif parameter.name in required:
                given.append(self.create_proxy("placeholder", parameter.name, (), {}))
            elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                given.append(parameter.default)
            else:
                break
        return root_fn, given


def required_arguments(forward: Callable[..., Any]) -> list[str]:
    """Names of the arguments of an unbound forward without a default. Refused for a keyword among them."""
    names = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise Refused("trace", f"keyword argument {parameter.name} has no default")
            names.append(parameter.name)
    return names


def signature(forward: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """The names of the arguments of an unbound forward, and their defaults. Refused unless all have a place."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(parameter.kind is not parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        raise Refused("trace", "takes any arguments, or some by keyword only")
    return [p.name for p in parameters], {p.name: p.default for p in parameters if p.default is not p.empty}


def trace(
    module: nn.Module,
    known: Container[str] = (),
    rank: int | None = None,
    constants: dict[str, Any] | None = None,
) -> fx.Graph:
    """The graph of ``module.forward`` with default arguments, for any number of axes of its inputs or for ``rank``.

    Children that could be part of an excitation are traced through; where that fails, those without parameters
    (activations with a backward of their own) and then all others are left as calls. ``known``: paths of children
    that are always left as calls. Raises Refused.
    """
    if isinstance(module, fx.GraphModule):
        return module.graph
    tries: list[Callable[[nn.Module, str], bool]] = [
        lambda child, path: path in known,
        lambda child, path: path in known or not any(True for _ in child.parameters()),
        lambda child, path: path in known or not isinstance(child, nn.Sequential),
    ]
    reason: Exception | None = None
    for leaves in tries:
        try:
            return _Tracer(leaves, rank, constants).trace(module)
        except Refused:
            raise
        except Exception as error:  # anything that somebody's forward does with a proxy
            reason = error
    raise Refused("trace", "it can not be traced") from reason


def trace_exactly(module: nn.Module, inlined: Container[str], constants: dict[str, Any]) -> fx.Graph:
    """The graph of all that ``module.forward`` does, with every child but ``inlined`` left as a call.

    ``constants``: the values of arguments that are no tensors. Refused also where autocast, the grad mode or the
    number of axes would make it another one: the graph is to take the place of the forward.
    """
    graphs = []
    for on in (True, False):
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(on))
            for device in ("cpu", "cuda"):
                stack.callback(torch.set_autocast_enabled, device, torch.is_autocast_enabled(device))
                torch.set_autocast_enabled(device, on)
            tracer = _Tracer(lambda child, path: path not in inlined, None, constants, steady=True)
            try:
                graphs.append(tracer.trace(module))
            except Refused:
                raise
            except Exception as error:  # anything that somebody's forward does with a proxy
                what = f"{type(error).__name__}: {str(error).partition('.')[0]}"
                raise Refused("trace", f"cannot be traced ({what})") from error
    if any(node.op == "get_attr" and is_made_by_trace(module, str(node.target)) for node in graphs[0].nodes):
        raise Refused("trace", "it makes a tensor of its own")
    if str(graphs[0]) != str(graphs[1]):
        raise Refused("trace", "depends on autocast or the grad mode")
    return graphs[0]

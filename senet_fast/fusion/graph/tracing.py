"""Graphs of what modules compute, with the code of their children written out."""

import contextlib
import inspect
import itertools
import operator
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from senet_fast.fusion.graph.nodes import attribute, is_made_by_trace
from senet_fast.fusion.graph.parts import has_tensors, is_layer, is_small
from senet_fast.fusion.graph.refusal import Refused, note

Modes = tuple[bool, bool, bool]


@dataclass(frozen=True)
class Opened:
    """The call of a child that is written out: ``nodes`` compute ``result``, attributes that they read not counted.

    ``arguments``: positional and by name; None where no call can be made of it: it changes a list of the caller's, say.
    """

    path: str
    arguments: Any
    nodes: tuple[fx.Node, ...]
    result: fx.Node


@dataclass(frozen=True)
class View:
    """What a forward computes: ``graph``, of the code and the attributes of ``module``, mostly a copy.

    ``opened``: calls in the order in which they end. ``exact``: the graph could take the place of the forward, is for
    any number of axes, makes no tensors from nothing, and changes neither autocast nor the grad mode.
    """

    module: nn.Module
    graph: fx.Graph
    opened: list[Opened] = field(default_factory=list)
    exact: bool = True


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
    """``strict``: what no graph shows is refused."""

    proxy_buffer_attributes = True

    def __init__(self, known: Container[str], rank: int | None, constants: dict[str, Any], strict: bool) -> None:
        super().__init__()
        self.known, self.rank, self.constants, self.strict = known, rank, constants, strict
        self.modes, self.exact = modes(), rank is None
        self.opened: list[Opened] = []

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        hidden = ""
        if modes() != self.modes:
            hidden = "it changes autocast or the grad mode for a part of itself"
        elif kind == "get_attr" and is_made_by_trace(self.root, str(target)):
            hidden = "it makes a tensor of its own"
        if hidden and self.strict:
            raise Refused("trace", hidden)
        self.exact = self.exact and not hidden
        return super().create_node(kind, target, *args, **kwargs)

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
        library = super().is_leaf_module(m, module_qualified_name)
        return library or module_qualified_name in self.known or not is_small(m)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write the child out. A function of one tensor is a call, whose values tell more than its code; and so is what
        can not be traced or makes no tensor.
        """
        path = self.path_of_module(m)
        function = len(args) == 1 and not kwargs and not has_tensors(m) and not any(map(is_layer, m.modules()))
        if function or self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        given = self._arguments(args, kwargs)
        last = next(iter(reversed(self.graph.nodes)), None)
        stack, exact, opened = self.module_stack.copy(), self.exact, len(self.opened)
        try:
            made = super().call_module(m, forward, args, kwargs)
        except Exception as error:  # anything that somebody's forward does with a proxy
            note(Refused("trace", f"{path} can not be traced"), error)
            made = None
        new = [*itertools.takewhile(lambda node: node is not last, reversed(self.graph.nodes))][::-1]
        nodes = tuple(node for node in new if node.op != "get_attr")
        if isinstance(made, fx.Proxy) and made.node in nodes:
            unchanged = given == self._arguments(args, kwargs)
            self.opened.append(Opened(path, given if unchanged else None, nodes, made.node))
            return made
        for node in reversed(nodes):
            self.graph.erase_node(node)
        self.module_stack, self.exact = stack, exact
        del self.opened[opened:]
        return self.create_proxy("call_module", path, args, kwargs)

    def _arguments(self, *values: Any) -> Any:
        try:
            return self.create_arg(values)
        except NotImplementedError:  # objects that no graph can hold
            return None

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for what must be given; what has a default keeps it, or has the value of ``constants``."""
        given: list[Any] = [self.root]
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            if parameter.name in self.constants:
                given.append(self.constants[parameter.name])
            elif parameter.kind is parameter.KEYWORD_ONLY:
                if parameter.default is parameter.empty:
                    raise Refused("trace", f"keyword argument {parameter.name} has no default")
            elif parameter.default is not parameter.empty:
                given.append(parameter.default)
            elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.kind is not parameter.VAR_KEYWORD:
                given.append(self.create_proxy("placeholder", parameter.name, (), {}))
        return root_fn, given


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
    strict: bool = False,
) -> View:
    """What ``module.forward`` computes with default arguments, for any number of axes of its inputs or for ``rank``.

    Children whose code can be traced are written out, but for large ones and those at the paths of ``known``.
    ``constants``: the values of arguments that are no tensors. ``strict``: as of :func:`trace_exactly`. Raises Refused.
    """
    if isinstance(module, fx.GraphModule):
        return View(module, module.graph)
    tracer = _Tracer(known, rank, constants or {}, strict)
    try:
        graph = tracer.trace(module)
        graph.lint()  # where a child that could not be traced has told somebody of what it had made by then
    except Refused:
        raise
    except Exception as error:  # anything that somebody's forward does with a proxy
        raise Refused("trace", "it can not be traced") from error
    return View(module, graph, tracer.opened, tracer.exact)


def trace_exactly(module: nn.Module, known: set[str], constants: dict[str, Any], seen: View | None = None) -> View:
    """What is to take the place of ``module.forward``, whatever autocast and the grad mode are. Raises Refused.

    ``seen``: what :func:`trace` returned for the same, if that was asked.
    """
    view = seen if seen is not None and seen.exact else trace(module, known, constants=constants, strict=True)
    with _switched():
        other = trace(module, known, constants=constants, strict=True)
    if str(view.graph) != str(other.graph):
        raise Refused("trace", "depends on autocast or the grad mode")
    return view


@contextlib.contextmanager
def _switched() -> Iterator[None]:
    """The other grad mode, and autocast on where it is off."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(not torch.is_grad_enabled()))
        for device in ("cpu", "cuda"):
            on = torch.is_autocast_enabled(device)
            stack.callback(torch.set_autocast_enabled, device, on)
            torch.set_autocast_enabled(device, not on)
        yield

"""Graphs of what modules compute."""

import contextlib
import inspect
import math
import operator
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

MAX_INLINED = 64  # modules below a child that is traced through


class NotTraced(Exception):
    """A forward that depends on more than fx can see."""


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


def is_quantized(module: nn.Module) -> bool:
    """Whether this is one of torch's modules with packed weights."""
    where = type(module).__module__
    return where.startswith("torch.ao.nn.") and ".quantized." in where


def is_layer(module: nn.Module) -> bool:
    """Whether this could be a layer of an excitation."""
    if isinstance(module, nn.Linear) or (is_quantized(module) and layer_sizes(module) is not None):
        return True
    return isinstance(module, _ConvNd) and (math.prod(module.kernel_size) == 1 or isinstance(module, nn.Conv1d))


def layer_sizes(module: Any) -> tuple[int, int] | None:
    """(in, out) of a layer, quantized or not."""
    for what in ("features", "channels"):
        if hasattr(module, f"in_{what}") and hasattr(module, f"out_{what}"):
            return getattr(module, f"in_{what}"), getattr(module, f"out_{what}")
    return None


def _is_inlined(module: nn.Module) -> bool:
    """Whether it may hold a part of an excitation: it has layers and norms, and no tensors of its own."""
    for count, part in enumerate(module.modules()):
        own = any(True for _ in part.parameters(recurse=False)) or any(True for _ in part.buffers(recurse=False))
        if count > MAX_INLINED or (own and not is_layer(part) and not isinstance(part, (_BatchNorm, nn.LayerNorm))):
            return False
    return True


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
            raise NotTraced("it changes autocast or the grad mode for a part of itself")
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
        return library or self.leaves(m, module_qualified_name) or not _is_inlined(m)

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
    """Names of the arguments of an unbound forward without a default. NotTraced for a keyword among them."""
    names = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            if parameter.kind is parameter.KEYWORD_ONLY:
                raise NotTraced(f"keyword argument {parameter.name} has no default")
            names.append(parameter.name)
    return names


def signature(forward: Callable[..., Any]) -> tuple[list[str], dict[str, Any]]:
    """The names of the arguments of an unbound forward, and their defaults. NotTraced unless all have a place."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(parameter.kind is not parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
        raise NotTraced("takes any arguments, or some by keyword only")
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
    that are always left as calls. Raises NotTraced.
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
        except NotTraced:
            raise
        except Exception as error:  # anything that somebody's forward does with a proxy
            reason = error
    raise NotTraced(f"{type(reason).__name__}: {reason}")


def trace_exactly(module: nn.Module, inlined: Container[str], constants: dict[str, Any]) -> fx.Graph:
    """The graph of all that ``module.forward`` does, with every child but ``inlined`` left as a call.

    ``constants``: the values of arguments that are no tensors. NotTraced also where autocast, the grad mode or the
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
            except NotTraced:
                raise
            except Exception as error:  # anything that somebody's forward does with a proxy
                raise NotTraced(f"cannot be traced ({type(error).__name__}: {str(error).partition('.')[0]})") from error
    if str(graphs[0]) != str(graphs[1]):
        raise NotTraced("depends on autocast or the grad mode")
    return graphs[0]


def attribute(module: nn.Module, path: str) -> Any:
    """``module.a.b.c`` for the path "a.b.c"."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def ancestors(target: fx.Node, stop: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """``target`` and all that it is computed from, not past the nodes of ``stop``, which are left out."""
    found: set[fx.Node] = set()
    waiting = [target]
    stop = set(stop)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in stop:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def descendants(source: fx.Node) -> set[fx.Node]:
    """All that is computed from ``source``, without itself."""
    found: set[fx.Node] = set()
    waiting = list(source.users)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.users)
    return found


def readers(node: fx.Node) -> list[fx.Node]:
    """The users of a tensor's values, without those that ask for its shape."""

    def asks(user: fx.Node) -> bool:
        named = user.target is getattr and user.args[1:] in (("ndim",), ("shape",), ("dtype",), ("device",))
        return named or (user.op == "call_method" and user.target in ("size", "dim"))

    return [user for user in node.users if not asks(user)]


def writes(node: fx.Node, module: nn.Module | None = None, to: fx.Node | None = None) -> bool:
    """Whether ``node`` changes its first input (or, if given, ``to``), by its name or its module's or own option."""
    if to is not None and node.args[:1] != (to,):
        return False
    if node.op == "call_module":
        return module is not None and bool(getattr(attribute(module, str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    if getattr(node.target, "__module__", None) == "torch.nn.functional":  # F.relu(x, True)
        in_place |= any(value is True for value in node.args[1:])
    return in_place or name in ("imul", "iadd", "setitem") or name.partition(".")[0].endswith("_")

"""Graphs of what modules compute, and pieces of those graphs run by themselves."""

import contextlib
import copy
import inspect
import math
import operator
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

MAX_INLINED = 64  # modules below a child that is traced through


class NotTraced(Exception):
    """A forward that depends on more than fx can see."""


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


def is_layer(module: nn.Module) -> bool:
    """Whether this could be a layer of an excitation."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, _ConvNd) and (math.prod(module.kernel_size) == 1 or isinstance(module, nn.Conv1d))


def _is_inlined(module: nn.Module) -> bool:
    """Whether it may hold a part of an excitation: it has layers and norms, and no tensors of its own."""
    for count, part in enumerate(module.modules()):
        own = any(True for _ in part.parameters(recurse=False)) or any(True for _ in part.buffers(recurse=False))
        if count > MAX_INLINED or (own and not is_layer(part) and not isinstance(part, (_BatchNorm, nn.LayerNorm))):
            return False
    return True


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, leaves: Callable[[nn.Module, str], bool], rank: int | None) -> None:
        super().__init__()
        self.leaves, self.rank = leaves, rank

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
        return library or self.leaves(m, module_qualified_name) or not _is_inlined(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for what must be given; what has a default keeps it."""
        required = required_arguments(root_fn)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in required)]


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


def trace(module: nn.Module, known: Container[str] = (), rank: int | None = None) -> fx.Graph:
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
            return _Tracer(leaves, rank).trace(module)
        except NotTraced:
            raise
        except Exception as error:  # anything that somebody's forward does with a proxy
            reason = error
    raise NotTraced(f"{type(reason).__name__}: {reason}")


def attribute(module: nn.Module, path: str) -> Any:
    """``module.a.b.c`` for the path "a.b.c"."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def light_copy(module: nn.Module) -> nn.Module:
    """A copy that shares its parameters and buffers with the original, and tells nobody that it is run."""
    copied = copy.deepcopy(module, {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]})
    for part in copied.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return copied


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Work this small is faster on one thread, ten times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Sandbox:
    """Runs pieces of a module's graph on copies of what they use: on the CPU, with random parameters and statistics."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, training: bool = False, seed: int = 0) -> None:
        self.module, self.dtype, self.training = module, dtype, training
        self.generator = torch.Generator().manual_seed(seed)
        self.copies: dict[str, Any] = {}
        self.tensors: dict[int, Tensor] = {}  # by the id of the original: tied ones stay tied

    def tensor(self, original: Tensor, path: str) -> Tensor:
        """The copy of a parameter or buffer. Buffers keep their values, but for a norm's statistics."""
        if id(original) not in self.tensors:
            self.tensors[id(original)] = self._copied(original, path)
        return self.tensors[id(original)]

    def _copied(self, original: Tensor, path: str) -> Tensor:
        if not original.is_floating_point():
            return torch.zeros(original.shape, dtype=original.dtype) if original.is_meta else original.cpu().clone()
        made = torch.empty(original.shape, dtype=self.dtype)
        if isinstance(original, nn.Parameter):
            spread = 1.5 / math.sqrt(max(1, math.prod(original.shape[1:])))
            return nn.Parameter(made.normal_(generator=self.generator).mul_(spread))
        if original.is_meta or path.endswith(("running_mean", "running_var")):
            return made.uniform_(0.3, 1.7, generator=self.generator)
        return made.copy_(original)

    def get(self, path: str) -> Any:
        """The copy of a submodule, parameter or buffer."""
        if path not in self.copies:
            original = attribute(self.module, path)
            made = self.tensor(original, path) if isinstance(original, Tensor) else self.copy(original)
            self.copies[path] = made
        return self.copies[path]

    def copy(self, original: nn.Module) -> nn.Module:
        """A module whose tensors are this sandbox's."""
        made = light_copy(original).train(self.training)
        for part in made.modules():
            holders: list[dict[str, Any]] = [part._parameters, part._buffers]
            for holder in holders:
                for name, tensor in holder.items():
                    if tensor is not None:
                        holder[name] = self.tensor(tensor, name)
        return made

    def random(self, shape: Iterable[int]) -> Tensor:
        """Values whose means over space differ from channel to channel and image to image."""
        shape = list(shape)
        x = torch.randn(shape, dtype=self.dtype, generator=self.generator)
        return x + 2 * x[..., :1]

    def run(self, target: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """The value of ``target``, everything computed anew from the ``known`` values."""
        values = dict(known)
        for node in _needed(target, values):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
            if node.op == "get_attr":
                values[node] = self.get(node.target)  # type: ignore[arg-type]
            elif node.op == "call_module":
                values[node] = self.get(node.target)(*args, **kwargs)  # type: ignore[arg-type]
            elif node.op == "call_function":
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            elif node.op == "call_method":
                values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)  # type: ignore[arg-type]
            else:
                raise NotTraced(f"{node.op} {node.name} is not known")
        return values[target]


def _needed(target: fx.Node, known: dict[fx.Node, Any]) -> list[fx.Node]:
    """What must be computed for ``target``, in the order of the graph."""
    needed = ancestors(target, known)
    return [node for node in target.graph.nodes if node in needed]


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

"""Copies of modules that tell nobody that they run, and pieces of graphs run by themselves on such copies."""

import contextlib
import copy
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.graph.nodes import ancestors, attribute
from senet_fast.fusion.graph.refusal import Refused, first_line
from senet_fast.fusion.graph.sizes import Number, hint, value_of


def deep_copy(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    """``copy.deepcopy`` of a module, with what is ``known`` by its id.

    A module has a dozen dicts, for hooks mostly, and most are empty: deepcopy makes each the long way.
    """
    values = (value for part in module.modules() for value in vars(part).values())
    empty = {id(value): type(value)() for value in values if type(value) in (OrderedDict, dict, set) and not value}
    return copy.deepcopy(module, empty | known)


def light_copy(module: nn.Module, training: bool | None = None, share_buffers: bool = True) -> nn.Module:
    """A copy, in the given mode, that shares its parameters and buffers and tells nobody that it is run."""
    shared = [*module.parameters(), *(module.buffers() if share_buffers else ())]
    copied = deep_copy(module, {id(tensor): tensor for tensor in shared})
    for part in copied.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    if training is not None:
        copied.train(training)  # somebody's own may not return the module
    return copied


def copied_or_refused(module: nn.Module, training: bool | None = None) -> nn.Module:
    """A light copy. Raises Refused where the module's own code can not be copied."""
    try:
        return light_copy(module, training)
    except Exception as error:  # whatever somebody's code does when it is copied
        raise Refused("copy", f"it can not be copied: {type(error).__name__}: {first_line(error)}") from error


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
    """Runs pieces of a module's graph on copies of what they use: on the CPU, with random parameters and statistics.

    ``number``: of the sizes that are symbols in the graph of an export.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, training: bool = False, seed: int = 0, number: Number = hint
    ) -> None:
        self.module, self.dtype, self.training, self.number = module, dtype, training, number
        self.generator = torch.Generator().manual_seed(seed)
        self.copies: dict[str, Any] = {}
        self.sizes: dict[fx.Node, int] | None = None
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
        made = light_copy(original, self.training)
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

    def shape_of(self, node: fx.Node) -> list[int] | None:
        """The shape of ``node`` in the graph of an export, whose code may fit no other."""
        traced = value_of(node)
        return [self.number(size) for size in traced.shape] if isinstance(traced, Tensor) else None

    def run(self, target: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """The value of ``target``, everything computed anew from the ``known`` values and the sizes of an export."""
        if self.sizes is None:
            symbols = {node: value_of(node) for node in target.graph.nodes}
            self.sizes = {node: self.number(size) for node, size in symbols.items() if isinstance(size, torch.SymInt)}
        values = self.sizes | known
        needed = ancestors(target, values)
        for node in (node for node in target.graph.nodes if node in needed):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
            if node.op == "get_attr":
                values[node] = self.get(node.target)
            elif node.op == "call_module":
                values[node] = self.get(node.target)(*args, **kwargs)
            elif node.op == "call_function":
                values[node] = node.target(*args, **kwargs)
            elif node.op == "call_method":
                values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                raise Refused("run", f"{node.op} {node.name} is not known")
        return values[target]

"""How modules are called inside of a model: with which values that are no tensors, and tensors of which shapes."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import light_copy
from senet_fast.fusion.graph.tracing import signature, trace

Constant = bool | int | float | str | None


@dataclass(frozen=True)
class Call:
    """The values that are no tensors, by name, and the shapes of the tensors, if known."""

    constants: tuple[tuple[str, Constant], ...] = ()
    shapes: tuple[tuple[int, ...], ...] | None = None


class Calls:
    """The calls that a run with ``example_inputs`` makes, or else those that the graphs of the modules above show."""

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        self.model = model
        self.graphs: dict[str, fx.Graph | None] = {}
        self.recorded = {} if example_inputs is None else _recorded(model, example_inputs)

    def of(self, path: str) -> list[Call]:
        """Of the module at ``path``. Graphs are looked at where there is anything to choose."""
        if path in self.recorded:
            return self.recorded[path]
        try:
            names, defaults = signature(type(self.model.get_submodule(path)).forward)
        except Refused:
            return []
        above = path
        while above and defaults:
            above = above.rpartition(".")[0]
            graph = self._graph(above)
            target = path[len(above) + 1 :] if above else path
            nodes = [node for node in graph.nodes if (node.op, node.target) == ("call_module", target)] if graph else []
            if nodes:
                return [call for node in nodes if (call := _call(names, node.args, node.kwargs)) is not None]
        return []

    def _graph(self, path: str) -> fx.Graph | None:
        if path not in self.graphs:
            module = self.model.get_submodule(path)
            leaves = {p for p, part in module.named_modules() if p and not isinstance(part, nn.Sequential)}
            try:
                self.graphs[path] = trace(light_copy(module, training=False), leaves).graph
            except Exception as error:  # somebody's code can be neither copied nor traced
                note(Refused("trace", "the arguments of what is below it are not known"), error)
                self.graphs[path] = None
        return self.graphs[path]


def _call(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """With tensors, or nodes of a graph in their place; None for a call with a list or the like."""
    given = dict(zip(names, args, strict=False)) | kwargs
    constants = tuple((name, value) for name, value in given.items() if not isinstance(value, Tensor | fx.Node))
    shapes = tuple(tuple(given[name].shape) for name in names if isinstance(given.get(name), Tensor))
    return Call(constants, shapes or None) if all(isinstance(value, Constant) for _, value in constants) else None


def _recorded(model: nn.Module, example_inputs: Any) -> dict[str, list[Call]]:
    """Different calls of each module while a copy of ``model`` runs, in eval mode, on what is given."""
    found: dict[str, list[Call]] = {}
    copied = light_copy(model, training=False, share_buffers=False)

    def record(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            names, _ = signature(type(module).forward)
        except Refused:
            return
        call, calls = _call(names, args, kwargs), found.setdefault(path, [])
        if call is not None and call not in calls:
            calls.append(call)

    for path, module in copied.named_modules():
        module.register_forward_pre_hook(functools.partial(record, path), with_kwargs=True)
    with torch.no_grad():
        if isinstance(example_inputs, dict):
            copied(**example_inputs)
        elif isinstance(example_inputs, tuple | list):
            copied(*example_inputs)
        else:
            copied(example_inputs)
    return found

"""How modules are called inside of a model: with which values that are no tensors, and tensors of which shapes."""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from senet_fast.fusion.sandbox import light_copy
from senet_fast.fusion.trace import NotTraced, signature, trace

Constant = bool | int | float | str | None


@dataclass(frozen=True)
class Call:
    """The values that are no tensors, by name, and the shapes of the tensors, if known."""

    constants: tuple[tuple[str, Constant], ...] = ()
    shapes: tuple[tuple[int, ...], ...] | None = None


class Calls:
    """The calls that the graphs of the modules above show."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.graphs: dict[str, fx.Graph | None] = {}

    def of(self, path: str) -> list[Call]:
        """Those from the nearest module above that calls the one at ``path``, where that has anything to choose."""
        try:
            names, defaults = signature(type(self.model.get_submodule(path)).forward)
        except NotTraced:
            return []
        above = path
        while above and defaults:
            above = above.rpartition(".")[0]
            graph = self._graph(above)
            target = path[len(above) + 1 :] if above else path
            nodes = [node for node in graph.nodes if (node.op, node.target) == ("call_module", target)] if graph else []
            if nodes:
                return [call for node in nodes if (call := _call(node, names)) is not None]
        return []

    def _graph(self, path: str) -> fx.Graph | None:
        if path not in self.graphs:
            module = self.model.get_submodule(path)
            leaves = {p for p, part in module.named_modules() if p and not isinstance(part, nn.Sequential)}
            try:
                self.graphs[path] = trace(light_copy(module).eval(), leaves)
            except Exception:  # it can be neither copied nor traced
                self.graphs[path] = None
        return self.graphs[path]


def _call(node: fx.Node, names: list[str]) -> Call | None:
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    constants = {name: value for name, value in given.items() if not isinstance(value, fx.Node)}
    if not all(isinstance(value, Constant) for value in constants.values()):
        return None
    return Call(tuple(constants.items()))

"""The sizes of graphs that torch.export or Dynamo traced, where some are symbols, as numbers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

Number = Callable[[Any], int]


def value_of(node: fx.Node) -> Any:
    """The fake tensor or the symbol that ``node`` stood for when it was traced; None without one."""
    return node.meta.get("example_value", node.meta.get("val"))


def hint(size: Any) -> int:
    """What a size was when the graph was traced."""
    return int(size.node.hint if isinstance(size, torch.SymInt) else size)


def moved(graph: fx.Graph) -> Number | None:
    """As :func:`hint`, with another number for each symbol; None where there is none."""
    inputs = [value_of(node) for node in graph.nodes if node.op == "placeholder"]
    symbols: dict[Any, int] = {}
    for size in _sizes(inputs):
        if isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
            symbols.setdefault(size.node.expr, size.node.hint + 1 + len(symbols))
    if not symbols:
        return None
    return lambda size: int(size.node.expr.subs(symbols) if isinstance(size, torch.SymInt) else size)


def _sizes(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        yield from value.shape if isinstance(value, Tensor) else [value]

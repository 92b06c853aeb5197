"""The sizes of graphs that torch.export or Dynamo traced, where some are symbols, as numbers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

Number = Callable[[Any], int]
UNTOLD = 4  # in the place of a size that only the data tells


def value_of(node: fx.Node) -> Any:
    """The fake tensor or the symbol that ``node`` stood for when it was traced; None without one."""
    return node.meta.get("example_value", node.meta.get("val"))


def hint(size: Any, moved: int = 0) -> int:
    """What a size was when the graph was traced; ``moved`` by 1 or 2: what other numbers for its symbols make it."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if not moved and size.node.hint is not None:
        return int(size.node.hint)
    return int(size.node.expr.subs({symbol: _value(symbol, size, moved) for symbol in size.node.expr.free_symbols}))


def _value(symbol: Any, size: torch.SymInt, moved: int) -> int:
    was = type(size.node)(symbol, size.node.shape_env, int, None).hint
    digits = int("".join(filter(str.isdigit, symbol.name)) or 0)
    value = UNTOLD + digits % 3 if was is None else int(was)
    return value + moved * (1 + digits % 5) + (moved // 2) * value  # near enough that no map of a network gets empty


MOVED: tuple[Number, ...] = (partial(hint, moved=1), partial(hint, moved=2))


def others(graph: fx.Graph) -> tuple[Number, ...]:
    """As :func:`hint`, with other numbers for the symbols; none where the graph has no symbols."""
    values = map(value_of, graph.nodes)
    sizes = (size for value in values for size in (value.shape if isinstance(value, Tensor) else [value]))
    return MOVED if any(isinstance(size, torch.SymInt) for size in sizes) else ()

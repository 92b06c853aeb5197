"""Nodes of graphs: what they are computed from, who reads them, who writes to memory."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn


def attribute(module: nn.Module, path: str) -> Any:
    """``module.a.b.c`` for the path "a.b.c"."""
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def is_made_by_trace(module: nn.Module, name: str) -> bool:
    """Whether tracing put this attribute there, for a tensor that the forward makes."""
    return name.startswith("_tensor_constant") and not isinstance(module, fx.GraphModule)


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


def asks_for_size(node: fx.Node) -> bool:
    """Whether it is of the shape of a tensor, or an item of something."""
    return node.target in (getattr, operator.getitem, "size", "dim")


def readers(node: fx.Node) -> list[fx.Node]:
    """The users of a tensor's values, without those that ask for its shape."""

    def asks(user: fx.Node) -> bool:
        named = user.target is getattr and user.args[1:] in (("shape",), ("dtype",), ("device",))
        return named or asks_for_rank(user) or (user.op, user.target) == ("call_method", "size")

    return [user for user in node.users if not asks(user)]


def rank_checks(node: fx.Node) -> list[fx.Node]:
    """What asserts something about the number of axes of ``node``, as timm's norms do, and does nothing else."""
    asking = [user for user in node.users if asks_for_rank(user)]
    made_of_it = {*asking}.union(*map(descendants, asking))
    found = [n for n in node.graph.nodes if n in made_of_it]
    alone = {*found, node}
    checks = all(n.op != "call_module" and alone.issuperset(n.all_input_nodes) for n in found)
    ends = all(n.users or n.target is torch._assert or n in asking for n in found)
    return found if checks and ends else []


def asks_for_rank(node: fx.Node) -> bool:
    """Whether it is the number of axes of a tensor."""
    return (node.target is getattr and node.args[1:] == ("ndim",)) or (node.op, node.target) == ("call_method", "dim")


def writes(node: fx.Node, module: nn.Module | None = None, to: fx.Node | None = None) -> bool:
    """Whether ``node`` changes its first input (or, if given, ``to``), by its name or its module's or own option; or an
    input (or ``to``) by the schema of an op, statistics of its own not counted.
    """
    written = _written(node)
    if to in written or (to is None and any(n.op not in ("get_attr", "placeholder") for n in written)):
        return True
    if to is not None and node.args[:1] != (to,):
        return False
    if node.op == "call_module":
        return module is not None and bool(getattr(attribute(module, str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    if getattr(node.target, "__module__", None) == "torch.nn.functional":  # F.relu(x, True)
        in_place |= any(value is True for value in node.args[1:])
    return in_place or name in ("imul", "iadd", "setitem") or name.partition(".")[0].endswith("_")


def _written(node: fx.Node) -> list[fx.Node]:
    """What an op changes by its schema."""
    op: Any = node.target
    if isinstance(op, torch._ops.OpOverloadPacket) and "default" in op.overloads():  # type: ignore[no-untyped-call]
        op = op.default
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return []
    given = dict(zip((argument.name for argument in op._schema.arguments), node.args, strict=False)) | node.kwargs
    changed = [a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [value for name in changed if isinstance(value := given.get(name), fx.Node)]


def region(x: fx.Node, y: fx.Node) -> list[fx.Node]:
    """What lies between x and y, y included, in the order of the graph; with what is made of constants for it alone."""
    inside = ancestors(y) & descendants(x)
    for node in reversed(y.graph.nodes):
        alone = node.users and node.op not in ("placeholder", "get_attr") and inside.issuperset(node.users)
        if alone and all(n.op != "placeholder" for n in ancestors(node)):
            inside.add(node)
    return [node for node in y.graph.nodes if node in inside]

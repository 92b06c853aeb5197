"""Modules whose whole forward is an excitation."""

import contextlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from senet_fast.fusion.graph.parts import check_plain, may_pool
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import copied_or_refused
from senet_fast.fusion.graph.tracing import trace
from senet_fast.fusion.install import rewrite
from senet_fast.fusion.recognise.excitation import Excitation
from senet_fast.fusion.recognise.match import Match
from senet_fast.fusion.run.forwards import BlockForward
from senet_fast.fusion.verify.comparison import shape_to_try
from senet_fast.fusion.verify.matches import find
from senet_fast.fusion.verify.swaps import check_swap

RANKS = (4, 3, 5)


@dataclass
class Finding:
    """What a module is: a block with this ``forward``, or one that has excitations as ``parts`` of it."""

    forward: BlockForward | None = None
    parts: list[Match] = field(default_factory=list)
    reasons: list[Refused] = field(default_factory=list)


def block(module: nn.Module, known: set[str], shapes: Iterable[tuple[int, ...]] = ()) -> Finding:
    """``known``: paths of children that are accounted for. ``shapes``: of x in examples, if there are any."""
    try:
        copied = copied_or_refused(module, training=False)  # tracing may run code that sets attributes
        graphs = _graphs(copied, known)
    except Refused as reason:
        note(reason)
        found = (_exported(copied, shape) for shape in shapes if reason.stage == "trace")
        return next(filter(None, found), Finding())
    matches: list[Match] = []
    reasons: list[Refused] = []
    for graph in graphs:
        found_here, refused = find(copied, graph)
        if len(matches) == 1 and len(found_here) == 1 and _is_whole(matches[0]) and _is_whole(found_here[0]):
            matches = [_joined(matches[0], found_here[0])]
        elif not matches:
            matches, reasons = found_here, reasons or refused
    whole = [match for match in matches if _is_whole(match)]
    try:
        if whole or (reasons and not matches):
            _check_children(module)
    except Refused as reason:
        return Finding(reasons=[reason])
    if len(whole) != 1:
        return Finding(parts=matches, reasons=reasons)
    try:
        if not rewrite.can_swap(module):
            raise Refused("install", "it can not be given another forward")
        return Finding(_checked(copied, whole[0].excitation), reasons=reasons)
    except Refused as reason:
        return Finding(reasons=[*reasons, reason])


def _graphs(module: nn.Module, known: set[str]) -> list[fx.Graph]:
    """The graph of the forward, or those for each number of axes where its code asks for that. Raises Refused."""
    try:
        return [trace(module, known)]
    except Refused as reason:
        untraced = reason
    graphs = []
    for rank in RANKS:
        with contextlib.suppress(Refused):  # a number of axes that it does not take; that of the first try is told
            graphs.append(trace(module, known, rank))
    if not graphs:
        untraced.pools = may_pool(module)
        raise untraced
    return graphs


def _check_children(module: nn.Module) -> None:
    for path, child in module.named_modules():
        if path:
            check_plain(child, path)


def _exported(module: nn.Module, shape: tuple[int, ...]) -> Finding | None:
    """For code that no symbol goes through: its graph for x of one shape, and a forward for that and any batch."""
    try:
        parameter = next(module.parameters())
        x = torch.empty((2, *shape[1:]), dtype=parameter.dtype, device=parameter.device)
        graph_module: Any = torch.export.export(module, (x,)).module()
        matches, refused = find(graph_module, graph_module.graph)
    except Exception as error:  # whatever export does not take
        note(Refused("export", f"it can not be exported for {shape}"), error)
        return None
    try:
        _check_children(module)
        if len(matches) != 1 or not _is_whole(matches[0]) or not rewrite.can_swap(module):
            return Finding(reasons=refused) if refused else None
        return Finding(_checked(module, replace(matches[0].excitation, shape=tuple(shape[1:]))))
    except Refused as reason:
        return Finding(reasons=[reason])


def _is_whole(match: Match) -> bool:
    """Whether the graph takes x alone and returns y."""
    nodes = match.y.graph.nodes
    output = next(node for node in reversed(nodes) if node.op == "output")
    return output.args[0] in (match.y, (match.y,)) and [node for node in nodes if node.op == "placeholder"] == [match.x]


def _joined(match: Match, other: Match) -> Match:
    """``match``, also for the numbers of axes of ``other`` where that is the same excitation."""
    excitation, more = match.excitation, other.excitation
    if replace(excitation, dims=()) != replace(more, dims=()):
        return match
    return replace(match, excitation=replace(excitation, dims=(*excitation.dims, *more.dims)))


def _checked(module: nn.Module, excitation: Excitation) -> BlockForward:
    """The forward, once the module itself, run as a user would, agrees with it."""
    forward = BlockForward(module, excitation)
    shapes = [[batch, *excitation.shape] for batch in (1, 2, 5)] if excitation.shape is not None else []
    for rank, dim in excitation.dims if not shapes else ():
        shapes.append(shape_to_try(rank, dim, excitation.channels, (2, 9, 5, 7, 3)))
    for training, shape in itertools.product((False, True)[: 2 - excitation.inference_only], shapes):
        check_swap(module, lambda copied: rewrite.install(copied, forward), [shape], training)
    return forward

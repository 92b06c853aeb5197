"""Modules whose whole forward is an excitation."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from senet_fast.fusion.graph.parts import check_plain
from senet_fast.fusion.graph.refusal import NotTraced, Rejected
from senet_fast.fusion.graph.sandbox import light_copy
from senet_fast.fusion.graph.tracing import trace
from senet_fast.fusion.install import rewrite
from senet_fast.fusion.recognise.match import Match
from senet_fast.fusion.run.forwards import BlockForward
from senet_fast.fusion.verify.matches import find
from senet_fast.fusion.verify.swaps import check_swap

RANKS = (4, 3, 5)


@dataclass
class Finding:
    """What a module is: a block with this ``plan``, or one that has excitations as ``parts`` of it."""

    plan: BlockForward | None = None
    parts: list[Match] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def block(module: nn.Module, known: set[str], shapes: Iterable[tuple[int, ...]] = ()) -> Finding:
    """``known``: paths of children that are accounted for. ``shapes``: of x in examples, if there are any."""
    matches: list[Match] = []
    rejected: list[Rejected] = []
    try:
        copied = light_copy(module).eval()  # tracing may run code that sets attributes
    except Exception:  # it can not be copied
        return Finding()
    traced = []
    with contextlib.suppress(NotTraced):
        traced.append(trace(copied, known))
    if not traced:  # code that asks for the number of axes
        for rank in RANKS:
            with contextlib.suppress(NotTraced):
                traced.append(trace(copied, known, rank))
    if not traced:
        for shape in shapes:
            finding = _exported(copied, shape)
            if finding is not None:
                return finding
    for graph in traced:
        found, refused = find(copied, graph)
        if len(matches) == 1 and len(found) == 1 and _is_whole(matches[0]) and _is_whole(found[0]):
            matches = [_joined(matches[0], found[0])]
        elif not matches:
            matches, rejected = found, rejected or refused
    reasons = [str(reason) for reason in rejected]
    whole = [match for match in matches if _is_whole(match)]
    if whole or (rejected and not matches):
        try:
            for path, child in module.named_modules():
                if path:
                    check_plain(child, path)
        except Rejected as reason:
            return Finding(reasons=[str(reason)])
    if len(whole) != 1:
        return Finding(parts=matches, reasons=reasons)
    try:
        if not rewrite.can_swap(module):
            raise Rejected("it can not be given another forward")
        return Finding(_checked(copied, whole[0]), reasons=reasons)
    except Rejected as reason:
        return Finding(reasons=[*reasons, str(reason)])


def _exported(module: nn.Module, shape: tuple[int, ...]) -> Finding | None:
    """For code that no symbol goes through: its graph for x of one shape, and a plan for that shape and any batch."""
    try:
        parameter = next(module.parameters())
        x = torch.empty((2, *shape[1:]), dtype=parameter.dtype, device=parameter.device)
        graph_module: Any = torch.export.export(module, (x,)).module()
        matches, rejected = find(graph_module, graph_module.graph)
    except Exception:  # whatever export does not take
        return None
    try:
        for path, child in module.named_modules():
            if path:
                check_plain(child, path)
        if len(matches) != 1 or not _is_whole(matches[0]) or not rewrite.can_swap(module):
            return Finding(reasons=[str(reason) for reason in rejected]) if rejected else None
        plan = BlockForward(module, replace(matches[0].excitation, shape=tuple(shape[1:])))
        for batch in (1, 2, 5):
            for training in (False, True) if not plan.op.excitation.inference_only else (False,):
                check_swap(module, lambda copied: rewrite.install(copied, plan), [[batch, *shape[1:]]], training)
    except Rejected as reason:
        return Finding(reasons=[str(reason)])
    return Finding(plan)


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


def _checked(module: nn.Module, match: Match) -> BlockForward:
    """The plan, once the module itself, run as a user would, agrees with it."""
    excitation = match.excitation
    plan = BlockForward(module, excitation)
    for training in (False, True) if not excitation.inference_only else (False,):
        for rank, dim in excitation.dims:
            shape = [2, 9, 5, 7, 3][:rank]
            shape[dim] = excitation.channels or 13
            check_swap(module, lambda copied: rewrite.install(copied, plan), [shape], training)
    return plan

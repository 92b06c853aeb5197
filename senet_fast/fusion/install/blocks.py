"""Modules whose whole forward is an excitation."""

import contextlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from senet_fast.fusion.graph.parts import check_plain, may_pool
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import copied_or_refused
from senet_fast.fusion.graph.tracing import View, trace
from senet_fast.fusion.install import rewrite
from senet_fast.fusion.recognise.excitation import Excitation
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.run.forwards import BlockForward, FusedForward
from senet_fast.fusion.verify.comparison import shape_to_try
from senet_fast.fusion.verify.matches import find
from senet_fast.fusion.verify.swaps import check_swap

RANKS = (4, 3, 5)


@dataclass
class Finding:
    """What a module is: one that gets this ``forward``, or one with ``sites`` in a ``view`` of its own."""

    forward: FusedForward | None = None
    view: View | None = None
    sites: list[Site] = field(default_factory=list)
    reasons: list[Refused] = field(default_factory=list)


def block(module: nn.Module, known: set[str], shapes: Iterable[tuple[int, ...]] = ()) -> Finding:
    """Whether it is an excitation as a whole, and which its forward has.

    ``known``: paths of children that are accounted for. ``shapes``: of x in examples, if there are any.
    """
    try:
        copied = copied_or_refused(module, training=False)  # tracing may run code that sets attributes
        views = _views(copied, known)
    except Refused as reason:
        note(reason)
        found = (_exported(copied, shape) for shape in shapes if reason.stage == "trace")
        return next(filter(None, found), Finding())
    sites: list[Site] = []
    reasons: list[Refused] = []
    for view in views:
        more, refused = find(view)
        if len(sites) == 1 and len(more) == 1 and _is_whole(sites[0]) and _is_whole(more[0]):
            _join(sites[0], more[0])
        elif not sites:
            sites, reasons = more, reasons or refused
    whole = [site for site in sites if _is_whole(site)]
    try:
        if whole or (reasons and not sites):
            _check_children(module)
        if len(whole) != 1:
            return Finding(None, views[0], sites, reasons)
        if not rewrite.can_swap(module):
            raise Refused("install", "it can not be given another forward")
        return Finding(_checked(copied, whole[0].excitation), reasons=reasons)
    except Refused as reason:
        return Finding(reasons=[*reasons, reason] if sites else [reason])


def _views(module: nn.Module, known: set[str]) -> list[View]:
    """The one of the forward, or those for each number of axes where its code asks for that. Raises Refused."""
    try:
        return [trace(module, known)]
    except Refused as reason:
        untraced = reason
    views = []
    for rank in RANKS:
        with contextlib.suppress(Refused):  # a number of axes that it does not take; that of the first try is told
            views.append(trace(module, known, rank))
    if not views:
        untraced.pools = may_pool(module)
        raise untraced
    return views


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
        sites, refused = find(View(graph_module, graph_module.graph))
    except Exception as error:  # whatever export does not take
        note(Refused("export", f"it can not be exported for {shape}"), error)
        return None
    try:
        _check_children(module)
        if len(sites) != 1 or not _is_whole(sites[0]) or not rewrite.can_swap(module):
            return Finding(reasons=refused) if refused else None
        return Finding(_checked(module, replace(sites[0].excitation, shape=tuple(shape[1:]))))
    except Refused as reason:
        return Finding(reasons=[reason])


def _is_whole(site: Site) -> bool:
    """Whether the graph takes x alone and returns y."""
    nodes = site.y.graph.nodes
    output = next(node for node in reversed(nodes) if node.op == "output")
    return output.args[0] in (site.y, (site.y,)) and [node for node in nodes if node.op == "placeholder"] == [site.x]


def _join(site: Site, other: Site) -> None:
    """Let it be for the numbers of axes of ``other`` as well, where that is the same excitation."""
    one, more = site.excitation, other.excitation
    if replace(one, dims=()) == replace(more, dims=()):
        site.excitation = replace(one, dims=(*one.dims, *more.dims))


def _checked(module: nn.Module, excitation: Excitation) -> BlockForward:
    """The forward, once the module itself, run as a user would, agrees with it."""
    forward = BlockForward(module, excitation)
    shapes = [[batch, *excitation.shape] for batch in (1, 2, 5)] if excitation.shape is not None else []
    for rank, dim in excitation.dims if not shapes else ():
        shapes.append(shape_to_try(rank, dim, excitation.channels, (2, 9, 5, 7, 3)))
    for training, shape in itertools.product((False, True)[: 2 - excitation.inference_only], shapes):
        check_swap(module, lambda copied: rewrite.install(copied, forward), [shape], training)
    return forward

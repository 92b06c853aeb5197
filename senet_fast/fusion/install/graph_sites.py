"""Excitations in an fx.GraphModule, with the neighbours that one call can take over."""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet_fast.fusion.graph.nodes import attribute, writes
from senet_fast.fusion.graph.parts import check_plain
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import Sandbox, copied_or_refused
from senet_fast.fusion.graph.sizes import Number, hint, others
from senet_fast.fusion.graph.tracing import View
from senet_fast.fusion.recognise.arithmetic import operands
from senet_fast.fusion.recognise.excitation import Norm
from senet_fast.fusion.recognise.layers import stage_of
from senet_fast.fusion.recognise.site import Site, add_neighbours, check_reads_only
from senet_fast.fusion.run.graph_call import ADD, ADD_IN_PLACE, Part, excite
from senet_fast.fusion.verify.comparison import difference, differentiated, inferred, shape_to_try
from senet_fast.fusion.verify.matches import find, holds_in_training, verified


def site_of(
    module: fx.GraphModule, copied: fx.GraphModule, bare: Site, taken: set[fx.Node], numbers: Sequence[Number]
) -> Site:
    """``bare`` with the neighbours that the op can take over, none of them of ``taken``, which gets them.

    ``module``: with its hooks, which its copy, whose graph it is in, has not. ``numbers``: for the graph's
    symbols, beside what they were.
    """
    site = replace(bare)
    add_neighbours(copied, site, training=True, inference=True, free=lambda nodes: _free(module, nodes, taken))
    if site.prologue is not None and site.maker is None and any(writes(n, copied) for n in site.prologue.nodes):
        site.prologue = None
    if not site.has_neighbours or overtakes(copied, site):
        return bare
    checked = _checked(copied, site, (hint, *numbers))
    if checked is None:
        return bare
    taken.update(site.nodes)
    return checked


def _free(module: fx.GraphModule, nodes: tuple[fx.Node, ...], taken: set[fx.Node]) -> bool:
    """Whether these belong to no other excitation, and are nothing but their forwards."""
    try:
        for node in nodes:
            if node.op == "call_module":
                check_plain(module.get_submodule(str(node.target)), str(node.target))
    except Refused:
        return False
    return not taken & {*nodes}


def overtakes(module: fx.GraphModule, site: Site) -> bool:
    """Whether something else writes to memory between the two ends, which become one call."""
    order = [*site.y.graph.nodes]
    between = order[order.index(site.source) + 1 : order.index(site.last)]
    own = {*site.nodes}
    return any(node not in own and writes(node, module) for node in between)


def _checked(module: fx.GraphModule, site: Site, numbers: Sequence[Number]) -> Site | None:
    """``site`` for the numbers of axes that its neighbours take; None unless the call computes what the graph does."""
    dims = []
    for rank, dim in site.excitation.dims:
        try:
            ways = itertools.product((False, True), numbers)
            differs = next(filter(None, (_difference(module, site, rank, dim, *way) for way in ways)), "")
        except Exception as error:  # whatever the neighbours do with another number of axes
            note(Refused("neighbours", f"they do not take {rank} axes", node=site.x), error)
            continue
        if differs:
            note(Refused("neighbours", f"with them the op's {differs} differ from its own", node=site.x))
            return None
        dims.append((rank, dim))
    return replace(site, excitation=replace(site.excitation, dims=tuple(dims))) if dims else None


def _difference(module: fx.GraphModule, site: Site, rank: int, dim: int, training: bool, number: Number) -> str:
    """What differs between the graph and the call; "" for nothing."""
    sandbox = Sandbox(module, torch.float32, training, seed=rank, number=number)
    residual = site.epilogue.residual if site.epilogue is not None else None
    inputs = list(dict.fromkeys([site.source, *([residual] if residual is not None else [])]))
    shape = sandbox.shape_of(site.x) or shape_to_try(rank, dim, site.excitation.channels)
    values = [sandbox.random(shape) for _ in inputs]

    def own(*given: Tensor) -> Any:
        return sandbox.run(site.last, dict(zip(inputs, given, strict=True)))

    def other(*given: Tensor) -> Any:
        return excite(*arguments(module, site, dict(zip(inputs, given, strict=True)).__getitem__, sandbox.get))

    # The call first, which uses all tensors, those of the makers as well.
    called, run = (differentiated(f, values, lambda: [*sandbox.tensors.values()]) for f in (other, own))
    run_again, called_again = (inferred(f, [value.clone() for value in values]) for f in (own, other))
    return difference(run, called) or difference(run_again, called_again)


def arguments(module: nn.Module, site: Site, value: Callable[[fx.Node], Any], get: Callable[[str], Any]) -> Any:
    """Of :func:`excite`: ``value`` of nodes, ``get`` for children, parameters and buffers by their path."""

    def parts(nodes: tuple[fx.Node, ...], activation: str) -> tuple[Part, ...]:
        made: list[Part] = []
        for node in nodes:
            pair = operands(module, node, "add")
            if node.op == "call_module":
                place = () if pair is None else (int(site.epilogue is not None and pair[0] is site.epilogue.residual),)
                made.append((get(str(node.target)), _kind(module, str(node.target)), *place))
            elif pair is not None:
                made.append(ADD_IN_PLACE if writes(node) else ADD)
            elif (stage := stage_of(module, node)) is not None and isinstance(norm := stage.part, Norm):
                made.append((*(None if path is None else get(str(path)) for path in norm.tensors), norm.eps))
            else:
                made.append(activation)
        return tuple(made)

    excitation = site.excitation
    weights = tuple(excitation.weights(lambda path: get(str(path))))
    before, after = site.prologue, site.epilogue
    return (
        value(site.source),
        *(weights, excitation.options(excitation.dims[0][1])),
        *((parts(before.nodes, before.activation), before.activation) if before else ((), "identity")),
        value(after.residual) if after and after.residual else None,
        *((parts(after.nodes, after.activation), after.activation) if after else ((), "identity")),
        None if site.maker is None else tuple((get(path), _kind(module, path)) for path in site.maker),
    )


def _kind(module: nn.Module, path: str) -> str:
    return type(module.get_submodule(path)).__name__


def in_graph(module: fx.GraphModule) -> tuple[list[Site], list[Refused]]:
    """The excitations in a copy of the graph of ``module``, and why others are left."""
    try:
        copied = copied_or_refused(module)
    except Refused as reason:
        return [], [reason]
    assert isinstance(copied, fx.GraphModule)
    drop_unused_sizes(copied.graph)
    found, reasons = find(View(copied, copied.graph))
    sites: list[Site] = []
    numbers = others(copied.graph)
    for site in found:
        try:
            check_rewritable(module, site, numbers)
            for path in site.children:
                check_plain(module.get_submodule(path), path)
            sites.append(site)
        except Refused as reason:
            reasons.append(reason)
    taken: set[fx.Node] = set()
    return [site_of(module, copied, site, taken, numbers) for site in sites], reasons


def check_rewritable(module: nn.Module, site: Site, numbers: Sequence[Number], folds: bool = True) -> None:
    """Refused where a call of the op cannot take its place.

    ``numbers``: for the graph's symbols, beside those that it was found with. ``folds``: calls that fold a norm
    of fixed statistics or transpose a weight may stand in front of it.
    """
    excitation = site.excitation
    if not folds and not excitation.is_plain:
        raise Refused("rewrite", "its norm, transposed weight or bias apart cannot be folded in this graph")
    if any(isinstance(attribute(module, path), _BatchNorm) for path in site.children):
        raise Refused("rewrite", "its norm cannot be folded in a graph that may train it")
    every = (hint, *numbers)
    fixed = excitation.norms and all(holds_in_training(module, site, number) for number in every)
    if excitation.inference_only and not fixed:
        raise Refused("rewrite", "it differs in training mode")
    if len({dim for _, dim in excitation.dims}) > 1:
        raise Refused("rewrite", "its gated axis depends on the number of axes")
    check_reads_only(module, site)
    for number in numbers:
        if verified(module, site, number) != excitation:
            raise Refused("rewrite", "it is one only for the sizes that it was exported with")


def drop_unused_sizes(graph: fx.Graph) -> None:
    """``b, c, _, _ = x.size()`` leaves reads of x that nobody wants."""
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)

"""Excitations in an fx.GraphModule, with the neighbours that one call can take over."""

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet_fast.fusion.graph.nodes import attribute, rank_checks, writes
from senet_fast.fusion.graph.parts import check_plain
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import Sandbox, copied_or_refused
from senet_fast.fusion.graph.sizes import Number, hint, others
from senet_fast.fusion.graph.tracing import View
from senet_fast.fusion.recognise.arithmetic import operands
from senet_fast.fusion.recognise.excitation import Layer, Norm, Path
from senet_fast.fusion.recognise.layers import stage_of
from senet_fast.fusion.recognise.neighbours import Pointwise, Prologue, maker_of
from senet_fast.fusion.recognise.site import Site, add_neighbours, check_reads_only
from senet_fast.fusion.run.graph_call import ADD, ADD_IN_PLACE, GraphStep, Part, excite, kind_name
from senet_fast.fusion.verify.comparison import difference, differentiated, inferred, shape_to_try
from senet_fast.fusion.verify.matches import find, holds_in_training, verified

SIZES = (2, 6, 9, 5, 4)  # of inputs to try: the op has a kernel with a convolution for maps of any rank


def site_of(
    module: fx.GraphModule, copied: fx.GraphModule, bare: Site, taken: set[fx.Node], numbers: Sequence[Number]
) -> Site:
    """``bare`` with the neighbours that the op can take over, none of them of ``taken``, which gets them.

    ``module``: with its hooks, which its copy, whose graph it is in, has not. ``numbers``: for the graph's
    symbols, beside what they were.
    """
    site = replace(bare)
    add_neighbours(copied, site, training=True, inference=True, free=lambda nodes: _free(module, nodes, taken))
    site.prologue, site.front = (
        part if part is not None and not _overwrites(copied, part) else None for part in (site.prologue, site.front)
    )
    narrow = replace(site, conv=None, front=None)
    for wanted in (site, narrow) if site.conv is not None else (narrow,):
        if wanted.has_neighbours:
            try:
                checked = _checked(copied, wanted, (hint, *numbers))
            except Refused as reason:
                note(reason)
                continue
            taken.update(wanted.nodes)
            return checked
    return bare


def _free(module: fx.GraphModule, nodes: tuple[fx.Node, ...], taken: set[fx.Node]) -> bool:
    """Whether these belong to no other excitation, and are nothing but their forwards."""
    try:
        for node in nodes:
            if node.op == "call_module":
                check_plain(module.get_submodule(str(node.target)), str(node.target))
    except Refused:
        return False
    return not taken & {*nodes}


def _overwrites(module: fx.GraphModule, part: Prologue) -> bool:
    """Whether it writes to memory that may be read elsewhere."""
    return maker_of(module, part.source) is None and any(writes(node, module) for node in part.nodes)


def check_between(module: fx.GraphModule, site: Site) -> None:
    """Refused if something else writes to memory between the two ends, which become one call."""
    order = [*site.y.graph.nodes]
    between = order[order.index(site.source) + 1 : order.index(site.last)]
    own = {*site.nodes}
    if any(node not in own and writes(node, module) for node in between):
        raise Refused("neighbours", "something is written to between what is beside it", node=site.x)


def _check_convolution(conv: Pointwise) -> None:
    """Refused unless one child has its weight, and this call alone uses it: so what is prepared can be kept."""
    weight = conv.layer.weight
    if not weight.parent:
        raise Refused("neighbours", f"{weight} is no child's, of which what is prepared could be kept", node=conv.last)
    of_child, of_graph = ("call_module", str(weight.parent)), ("get_attr", str(weight))
    nodes = conv.source.graph.nodes
    calls = [node for node in nodes if (node.op, node.target) == of_child]
    calls += [user for node in nodes if (node.op, node.target) == of_graph for user in node.users]
    if len(calls) > 1:
        raise Refused("neighbours", f"{weight} is used more than once", node=conv.last)


def _checked(module: fx.GraphModule, site: Site, numbers: Sequence[Number]) -> Site:
    """``site`` for the numbers of axes that its neighbours take; Refused if the call computes something else."""
    check_between(module, site)
    if site.conv is not None:
        _check_convolution(site.conv)
    dims = []
    convolves = site.conv is None
    for rank, dim in site.excitation.dims:
        try:
            ways = itertools.product((False, True), numbers)
            trials = [_Trial(module, site, rank, dim, *way) for way in ways]
            differs = next(filter(None, (trial.difference() for trial in trials)), "")
            convolves = convolves or any(trial.convolves() for trial in trials)
        except Exception as error:  # whatever the neighbours do with another number of axes
            note(Refused("neighbours", f"they do not take {rank} axes", node=site.x), error)
            continue
        if differs:
            raise Refused("neighbours", f"with them the op's {differs} differ from its own", node=site.x)
        dims.append((rank, dim))
    if not dims:
        raise Refused("neighbours", "they take no x that it takes", node=site.x)
    if not convolves:
        raise Refused("neighbours", "the op has no kernel with a convolution for such maps", node=site.x)
    return replace(site, excitation=replace(site.excitation, dims=tuple(dims)))


class _Trial:
    """The graph and the call with the same random numbers."""

    def __init__(self, module: fx.GraphModule, site: Site, rank: int, dim: int, training: bool, number: Number) -> None:
        self.module, self.site, self.training = module, site, training
        self.sandbox = Sandbox(module, torch.float32, training, seed=rank, number=number)
        entering = behind = site.excitation.channels
        if site.conv is not None:
            behind, entering = attribute(module, str(site.conv.layer.weight)).shape[:2]
        channels = {site.residual: behind} if site.residual is not None else {}
        self.values = {
            node: self.sandbox.random(self.sandbox.shape_of(node) or shape_to_try(rank, dim, size, SIZES))
            for node, size in ({site.source: entering} | channels).items()
        }

    def difference(self) -> str:
        """What differs; "" for nothing."""
        values = [*self.values.values()]
        # The call first, which uses all tensors, those of the makers as well.
        called, run = (differentiated(f, values, self._tensors) for f in (self._call, self._own))
        run_again, called_again = (inferred(f, [value.clone() for value in values]) for f in (self._own, self._call))
        return difference(run, called) or difference(run_again, called_again)

    def convolves(self) -> bool:
        """Whether the call computes the convolution by the op."""
        v, residual, *given = self._arguments(*self.values.values())
        with torch.no_grad():
            return GraphStep(*given).convolves(None, v, residual)

    def _tensors(self) -> list[Tensor]:
        """Whose gradients are compared: in front of a norm that trains that of a bias is rounding."""
        conv = self.site.conv
        bias = conv.layer.bias if conv is not None and self.training else None
        apart = None if bias is None else self.sandbox.get(str(bias))
        return [tensor for tensor in self.sandbox.tensors.values() if tensor is not apart]

    def _own(self, *given: Tensor) -> Any:
        known = dict(zip(self.values, given, strict=True))
        for node in self.site.nodes:
            if not node.users and node is not self.site.last:
                self.sandbox.run(node, known)  # an assertion
        return self.sandbox.run(self.site.last, known)

    def _call(self, *given: Tensor) -> Any:
        return excite(*self._arguments(*given))

    def _arguments(self, *given: Tensor) -> Any:
        known = dict(zip(self.values, given, strict=True))
        return arguments(self.module, self.site, known.__getitem__, self.sandbox.get)


def arguments(module: nn.Module, site: Site, value: Callable[[fx.Node], Any], get: Callable[[str], Any]) -> Any:
    """Of :func:`excite`: ``value`` of nodes, ``get`` for children, parameters and buffers by their path."""
    conv, excitation = site.conv, site.excitation
    checks = {*rank_checks(conv.nodes[0])} if conv is not None else {}  # true of all that gets there

    def child(path: str) -> Part:
        return get(path), kind_name(module.get_submodule(path))

    def tensors(paths: Iterable[Path | None]) -> tuple[Any, ...]:
        return tuple(None if path is None else get(str(path)) for path in paths)

    def parts(nodes: Iterable[fx.Node], activation: str) -> tuple[Part, ...]:
        made: list[Part] = []
        for node in nodes:
            if node in checks:
                continue
            pair = operands(module, node, "add")
            if node.op == "call_module":
                place = () if pair is None else (int(pair[0] is site.residual),)
                made.append((*child(str(node.target)), *place))
            elif pair is not None:
                made.append(ADD_IN_PLACE if writes(node) else ADD)
            else:
                stage = stage_of(module, node)
                part = stage.part if stage is not None else None
                if isinstance(part, Norm):
                    made.append((*tensors(part.tensors), part.eps))
                elif isinstance(part, Layer):
                    made.append((*tensors((part.weight, part.bias)), get(str(part.weight.parent))))
                else:
                    made.append(activation)
        return tuple(made)

    before, after = site.prologue, site.epilogue
    beside = None
    if conv is not None:
        nodes, activation = conv.nodes, conv.activation
        if site.front is not None:
            nodes, activation = (*site.front.nodes, *nodes), site.front.activation
        made_of = () if excitation.is_plain else tensors(excitation.sources)
        beside = (conv.side, str(conv.layer.weight), made_of, parts(nodes, activation), activation)
    return (
        value(site.source),
        None if site.residual is None else value(site.residual),
        *(tuple(excitation.weights(lambda path: get(str(path)))), excitation.options(excitation.dims[0][1])),
        *((parts(before.nodes, before.activation), before.activation) if before else ((), "identity")),
        *((parts(after.nodes, after.activation), after.activation) if after else ((), "identity")),
        None if site.maker is None else tuple(map(child, site.maker)),
        beside,
    )


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

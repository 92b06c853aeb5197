"""Modules with excitations in the middle of their forward: written out there, or fused children with neighbours.

The graph of the module's own forward is cut at each excitation; the rest stays as it is and calls the same children.
"""

import operator
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from torch import fx, nn

from senet_fast.fusion.graph.nodes import asks_for_size, attribute, region
from senet_fast.fusion.graph.parts import check_plain
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.tracing import trace_exactly
from senet_fast.fusion.recognise.excitation import Path
from senet_fast.fusion.recognise.match import Match
from senet_fast.fusion.recognise.site import Site, add_neighbours, check_reads_only, written_out
from senet_fast.fusion.run.forwards import BlockForward, Variant
from senet_fast.fusion.run.guards import Op, Parts
from senet_fast.fusion.run.steps import Code, ModuleStep, Piece
from senet_fast.fusion.verify.matches import find

MAX_INLINED = 8  # containers in front of an excitation that are looked into


def variant_of(
    module: nn.Module,
    forwards: Mapping[str, BlockForward],
    opaque: set[str],
    inlined: set[str],
    training: bool,
    constants: dict[str, Any],
) -> tuple[Variant | None, list[Site], list[Refused]]:
    """The forward in this mode with its excitations cut out, those, and why others are left.

    ``module``: a copy, in this mode. ``forwards``: of the children that are fused blocks, by their path; ``opaque``:
    paths of children that are not looked into; ``inlined``: of those that must be. Raises Refused.
    """
    try:
        cut = _Cut(module, forwards, training, constants, inlined)
    except Refused as reason:  # code with a backward of its own
        note(reason)
        inlined = {path for path in inlined if next(attribute(module, path).parameters(), None) is not None}
        cut = _Cut(module, forwards, training, constants, inlined)
    if not training:
        cut = cut.with_makers({*forwards, *opaque})
    for path in cut.inlined:
        check_plain(attribute(module, path), path)
    cut.sites = [site for site in cut.sites if site.pays]
    return cut.variant() if cut.sites else None, cut.sites, cut.reasons


class _Cut:
    """The graph of a forward with the children at ``inlined`` written out, and its excitations. Raises Refused."""

    def __init__(
        self,
        module: nn.Module,
        forwards: Mapping[str, BlockForward],
        training: bool,
        constants: dict[str, Any],
        inlined: set[str],
    ) -> None:
        self.module, self.forwards, self.training, self.constants = module, forwards, training, constants
        self.inlined = inlined
        self.graph = trace_exactly(module, inlined, constants)
        self.sites, self.reasons = _sites(module, self.graph, forwards, training)

    def _with(self, inlined: set[str]) -> "_Cut | None":
        """The same with other children written out; None where these can not be traced."""
        try:
            return _Cut(self.module, self.forwards, self.training, self.constants, inlined)
        except Refused as reason:
            note(reason)
            return None

    def with_makers(self, opaque: set[str]) -> "_Cut":
        """With what stands in front of the excitations looked into, to see what makes x; nothing at ``opaque``."""
        cut, blocked = self, set(opaque)
        while len(cut.inlined) < MAX_INLINED:
            more = {path for site in cut.sites if (path := _maker_to_open(cut.module, site.x, blocked)) is not None}
            if not more:
                break
            opened = cut._with(cut.inlined | more)
            blocked |= more
            cut = opened or cut
        used = {path for site in cut.sites if site.prologue is not None for path in _inside(site.prologue.nodes)}
        return cut._closed(cut.inlined - self.inlined - used)

    def _closed(self, opened: set[str]) -> "_Cut":
        """With calls where nothing but who made x was seen: these cost less than what is in them, written out."""
        closed = self._with(self.inlined - opened) if opened else None
        if closed is None or [site.owner for site in closed.sites] != [site.owner for site in self.sites]:
            return self
        for site, seen in zip(closed.sites, self.sites, strict=True):
            if site.prologue is None and seen.prologue is None:  # of the same tensor
                site.maker = seen.maker
        closed.reasons = self.reasons
        closed.inlined = self.inlined  # asked for at each call: what got a hook must not see its result overwritten
        return closed

    def variant(self) -> Variant:
        return _variant(self.module, self.graph, self.sites, self.forwards, self.inlined)


def containers(match: Match) -> set[str]:
    """Paths of the children whose code holds a part of an excitation that is written out."""
    return _inside(region(match.x, match.y))


def _inside(nodes: Iterable[fx.Node]) -> set[str]:
    """Paths of the children whose code holds some of ``nodes``."""
    found: set[str] = set()
    for node in nodes:
        stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        found |= {*stack} - ({str(node.target)} if node.op == "call_module" else set())
    return found - {""}


def _sites(
    module: nn.Module, graph: fx.Graph, forwards: Mapping[str, BlockForward], training: bool
) -> tuple[list[Site], list[Refused]]:
    sites = []
    matches, reasons = find(module, graph)
    for match in matches:
        try:
            for path in match.modules:
                check_plain(attribute(module, path), path)
            check_reads_only(module, match)
            site = written_out(match)
            for node in site.block[:-1]:
                if not asks_for_size(node) and any(user not in site.block for user in node.users):
                    raise Refused("cut", f"{node.name} is used beside it", node=node)
            sites.append(site)
        except Refused as reason:
            reasons.append(reason)
    for node in graph.nodes:
        forward = forwards.get(str(node.target)) if node.op == "call_module" else None
        if forward is not None and len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node):
            sites.append(Site(node.args[0], node, [node], forward.op.excitation, Path.of(str(node.target)), fused=True))
    for site in sites:
        add_neighbours(module, site, training, prologue=not training, free=lambda nodes: True)
    return sites, reasons


def _maker_to_open(module: nn.Module, node: fx.Node, known: Container[str]) -> str | None:
    """The child in front of ``node`` whose code may be looked into: no layer of torch's, no fused block."""
    while node.op == "call_module":
        path = str(node.target)
        part = attribute(module, path)
        library = type(part).__module__.startswith("torch.nn.") and not isinstance(part, nn.Sequential)
        if not library:
            return path if path not in known else None
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) or not isinstance(node.args[0], fx.Node):
            return None
        node = node.args[0]
    return None


def _variant(
    module: nn.Module, graph: fx.Graph, sites: list[Site], forwards: Mapping[str, BlockForward], inlined: set[str]
) -> Variant:
    absorbed: dict[fx.Node, Site] = {}
    for site in sites:
        for node in site.nodes:
            if node in absorbed:
                raise Refused("cut", "has excitations that share what is between them")
            absorbed[node] = site
    lasts = {site.last: site for site in sites}
    for node in reversed(graph.nodes):
        if node in absorbed and node not in lasts and any(user not in absorbed for user in node.users):
            del absorbed[node]  # a size that others use too

    made = fx.Graph()
    values: dict[fx.Node, Any] = {}
    self_, steps = made.placeholder("module_"), made.placeholder("steps_")
    built: list[ModuleStep] = []
    for node in graph.nodes:
        if node in lasts:
            step, others = _step(module, lasts[node], forwards)
            residual = step.residual and lasts[node].epilogue.residual  # type: ignore[union-attr]
            given = [lasts[node].source, residual or None, *others]
            at = made.call_function(operator.getitem, (steps, len(built)))
            built.append(step)
            values[node] = made.call_method("run", (at, self_, *(other and values[other] for other in given)))
        elif node not in absorbed:
            values[node] = made.node_copy(node, lambda source: values[source])
            values[node].type = None
    made.lint()
    return Variant(Code(made), tuple(built), Parts(module, sorted(inlined), in_mode=True))


def _step(module: nn.Module, site: Site, forwards: Mapping[str, BlockForward]) -> tuple[ModuleStep, list[fx.Node]]:
    """The step, and the nodes that its block uses beside x."""
    block, others = _cut(module, [site.x], site.block, site.y)
    before = after = None
    if site.prologue is not None:
        before, used = _cut(module, [site.source], list(site.prologue.nodes), site.x)
        assert not used
    if site.epilogue is not None:
        inputs = [site.y, *([site.epilogue.residual] if site.epilogue.residual is not None else [])]
        after, used = _cut(module, inputs, list(site.epilogue.nodes), site.epilogue.last)
        assert not used
    forward = forwards[str(site.owner)] if site.fused else None
    op = forward.op if forward is not None else Op(module, site.excitation, _called(site.block))
    step = ModuleStep(
        block=op,
        owner=site.owner,
        fused=forward,
        before=before,
        norm=site.prologue.norm if site.prologue is not None else None,
        pre_activation=site.prologue.activation if site.prologue is not None else "identity",
        own=block,
        after=after,
        residual=site.epilogue is not None and site.epilogue.residual is not None,
        post_activation=site.epilogue.activation if site.epilogue is not None else "identity",
        fresh=None if site.maker is None else Parts(module, site.maker),
    )
    return step, others


def _called(nodes: list[fx.Node]) -> list[str]:
    return [str(node.target) for node in nodes if node.op == "call_module"]


def _cut(
    module: nn.Module, inputs: list[fx.Node], nodes: list[fx.Node], result: fx.Node
) -> tuple[Piece, list[fx.Node]]:
    """``result`` as a function of (module, *inputs, *others), computed by ``nodes``; and those others."""
    used = dict.fromkeys(source for node in nodes for source in node.all_input_nodes)
    outside = [node for node in used if node not in nodes and node not in inputs]
    others = [node for node in outside if node.op != "get_attr"]
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in [*inputs, *others]:
        values[node] = graph.placeholder(node.name)
    copied: Callable[[fx.Node], fx.Node] = values.__getitem__
    for node in [*(node for node in outside if node.op == "get_attr"), *nodes]:
        values[node] = graph.node_copy(node, copied)
        values[node].type = None
    graph.output(values[result])
    return Piece(Code(graph), Parts(module, _called(nodes), in_mode=True)), others

"""The forward of a module with excitations in its middle, written out there or fused children with neighbours.

Its graph is cut at each of them; the rest stays as it is and calls the same children.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from senet_fast.fusion.graph.nodes import asks_for_size, attribute
from senet_fast.fusion.graph.parts import check_plain
from senet_fast.fusion.graph.refusal import Refused
from senet_fast.fusion.graph.tracing import Opened, View
from senet_fast.fusion.recognise.excitation import Path
from senet_fast.fusion.recognise.site import Site, add_neighbours, check_reads_only
from senet_fast.fusion.run.convolution import ModuleConvolution
from senet_fast.fusion.run.forwards import BlockForward, Variant
from senet_fast.fusion.run.guards import Op, Parts
from senet_fast.fusion.run.steps import Code, ModuleStep, Piece

Forwards = Mapping[str, BlockForward]  # of the children that are fused blocks, by their path


def sites_of(view: View, found: list[Site], forwards: Forwards, training: bool) -> tuple[list[Site], list[Refused]]:
    """Where the forward can be cut, of what was ``found`` in it and its fused children, and why elsewhere not."""
    module, sites, reasons = view.module, [], []
    for match in found:
        try:
            for path in match.children:
                check_plain(attribute(module, path), path)
            check_reads_only(module, match)
            for node in match.block[:-1]:
                if not asks_for_size(node) and any(user not in match.block for user in node.users):
                    raise Refused("cut", f"{node.name} is used beside it", node=node)
            sites.append(match)
        except Refused as reason:
            reasons.append(reason)
    for node in view.graph.nodes:
        forward = forwards.get(str(node.target)) if node.op == "call_module" else None
        if forward is not None and len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node):
            owner = Path.of(str(node.target))
            sites.append(Site(node.args[0], node, [node], forward.op.excitation, owner=owner))
    for site in sites:
        add_neighbours(module, site, training, inference=not training, free=lambda nodes: True)
    return [site for site in sites if site.pays], reasons


def cut(view: View, sites: list[Site], forwards: Forwards) -> Variant:
    """The forward in the mode that it was traced in, each of its ``sites`` a step. Raises Refused."""
    closed = _closed(view, {node for site in sites for node in site.nodes})
    makers = [path for site in sites for path in site.maker or ()]
    # Whatever holds a maker is asked as well: where it got a hook, that must not see its result overwritten.
    seen = [call.path for call in view.opened if call.nodes[0] not in closed]
    seen += [call.path for call in view.opened if any(path.startswith(f"{call.path}.") for path in makers)]
    for path in seen:
        check_plain(attribute(view.module, path), path)
    return _variant(view, sites, forwards, closed, Parts(view.module, sorted({*seen}), in_mode=True))


def _closed(view: View, kept: set[fx.Node]) -> dict[fx.Node, Opened]:
    """The calls that can be made as they were, by their nodes, of which none is ``kept``."""
    closed: dict[fx.Node, Opened] = {}
    for call in reversed(view.opened):  # those around others first
        nodes = {*call.nodes}
        hidden = call.arguments is not None and all(nodes.issuperset(node.users) for node in nodes - {call.result})
        if call.nodes[0] not in closed and hidden and not nodes & kept:
            closed |= dict.fromkeys(call.nodes, call)
    return closed


def _variant(
    view: View, sites: list[Site], forwards: Forwards, closed: dict[fx.Node, Opened], opened: Parts
) -> Variant:
    absorbed: dict[fx.Node, Site] = {}
    for site in sites:
        for node in site.nodes:
            if node in absorbed:
                raise Refused("cut", "has excitations that share what is between them")
            absorbed[node] = site
    lasts = {site.last: site for site in sites}
    for node in reversed(view.graph.nodes):
        if node in absorbed and node not in lasts and any(user not in absorbed for user in node.users):
            del absorbed[node]  # a size that others use too

    made = fx.Graph()
    values: dict[fx.Node, Any] = {}
    self_, steps = made.placeholder("module_"), made.placeholder("steps_")
    built: list[ModuleStep] = []
    for node in view.graph.nodes:
        if node in closed:
            call = closed[node]
            if node is call.nodes[-1]:
                of_call: Any = fx.map_arg(call.arguments, values.__getitem__)
                values[call.result] = made.create_node("call_module", call.path, *of_call)
        elif node in lasts:
            step, others = _step(view.module, lasts[node], forwards)
            given = [lasts[node].source, lasts[node].residual, *others]
            at = made.call_function(operator.getitem, (steps, len(built)))
            built.append(step)
            values[node] = made.call_method("run", (at, self_, *(other and values[other] for other in given)))
        elif node not in absorbed:
            values[node] = made.node_copy(node, lambda source: values[source])
            values[node].type = None
    for node in reversed(made.nodes):
        if node.op == "get_attr" and not node.users:  # of a closed call
            made.erase_node(node)
    made.lint()
    return Variant(Code(made), tuple(built), opened)


def _step(module: nn.Module, site: Site, forwards: Forwards) -> tuple[ModuleStep, list[fx.Node]]:
    """The step, and the nodes that its block uses beside x."""

    def piece(start: fx.Node, residual: fx.Node | None, nodes: tuple[fx.Node, ...], result: fx.Node) -> Piece:
        made, used = _cut(module, [start] if residual is None else [start, residual], list(nodes), result)
        assert not used
        return made

    own, others = _cut(module, [site.x], site.block, site.y)
    before, after, conv = site.prologue, site.epilogue, site.conv
    forward = forwards[str(site.owner)] if site.owner is not None else None
    op = forward.op if forward is not None else Op(module, site.excitation, site.children)
    owner = site.owner or Path()
    norm = before.norm if before is not None else None
    front_of = piece(before.source, None, before.nodes, site.x) if before is not None else None
    convolution = None
    if conv is not None:
        code = piece(conv.source, conv.residual, conv.nodes, conv.last)
        front, made, behind = before, front_of, conv.norm
        if conv.side == "output":
            front, behind = site.front, norm
            made = piece(front.source, None, front.nodes, conv.source) if front is not None else None
        convolution = ModuleConvolution(
            # An op of its own: Dynamo would compare it with the step's, in Python, at each call.
            *(conv.side, conv.layer, behind, copy.copy(op), owner, conv.activation, code, conv.residual is not None),
            front=made,
            pre_norm=front.norm if front is not None else None,
            pre_activation=front.activation if front is not None else "identity",
        )
    step = ModuleStep(
        block=op,
        owner=owner,
        fused=forward,
        before=front_of,
        norm=norm,
        pre_activation=before.activation if before is not None else "identity",
        own=own,
        after=piece(site.y, after.residual, after.nodes, after.last) if after is not None else None,
        residual=after is not None and after.residual is not None,
        post_activation=after.activation if after is not None else "identity",
        fresh=None if site.maker is None else Parts(module, site.maker),
        conv=convolution,
    )
    return step, others


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
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    return Piece(Code(graph), Parts(module, called, in_mode=True)), others

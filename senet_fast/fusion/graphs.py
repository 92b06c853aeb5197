"""Excitations inside of an fx.GraphModule: its graph is rewritten in place, so that code, copies and pickles follow."""

import functools
import operator
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from senet_fast.fusion.enclosing import Site
from senet_fast.fusion.graph_steps import absorbed, arguments, excite
from senet_fast.fusion.match import Match
from senet_fast.fusion.stages import Rejected
from senet_fast.fusion.trace import writes

_squeeze_excite = torch.ops.senet_fast.squeeze_excite.default
_originals: WeakKeyDictionary[fx.GraphModule, fx.Graph] = WeakKeyDictionary()


def check_rewritable(module: nn.Module, match: Match) -> None:
    """Rejected where a call of the op alone cannot take the place of the match."""
    excitation = match.excitation
    if excitation.inference_only or any(layer.transposed for layer in excitation.layers):
        raise Rejected("its norm or transposed weight cannot be folded in a graph")
    if len({dim for _, dim in excitation.dims}) > 1:
        raise Rejected("its gated axis depends on the number of axes")
    if any(writes(node) for node in (match.product, match.y)):
        raise Rejected("it changes its input in place")
    for node in match.x.users:
        if node not in (match.product, match.y) and writes(node, module, match.x):
            raise Rejected("x is changed in place beside it")


def drop_unused_sizes(graph: fx.Graph) -> None:
    """``b, c, _, _ = x.size()`` leaves reads of x that nobody wants."""
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)


def install(module: fx.GraphModule, graph: fx.Graph, sites: list[Site]) -> None:
    """Give ``module`` its ``graph`` with every site replaced by a call of the op."""
    regions = [absorbed(site) for site in sites]
    replaced: dict[fx.Node, fx.Node] = {}
    for site, region in zip(sites, regions, strict=True):
        with graph.inserting_before(site.last):
            v, *given = arguments(module, site, lambda node: replaced.get(node, node), graph.get_attr)
            if "val" not in site.x.meta:  # an exported graph has guards of its own
                ranks = [rank for rank, _ in site.excitation.dims]
                axes = graph.call_method("dim", (v,))
                known = [graph.call_function(operator.eq, (axes, rank)) for rank in ranks]
                any_of = functools.reduce(lambda a, b: graph.call_function(operator.or_, (a, b)), known)
                message = f"x has another number of axes than {ranks}: unfuse the graph"
                graph.call_function(torch._assert, (any_of, message))
            if site.has_neighbours:
                fused = graph.call_function(excite, (v, *given))
            else:
                weights, options, *_ = given
                fused = graph.call_function(_squeeze_excite, (v, *weights), options)
        fused.meta = dict(site.last.meta)
        if site.has_neighbours:
            fused.meta["is_wrapped"] = True  # for those that trace the graph again, as pickle does
        site.last.replace_all_uses_with(fused)
        replaced[site.last] = fused
        for node in reversed(region):
            if not node.users:
                graph.erase_node(node)
    graph.lint()
    _originals.setdefault(module, module.graph)
    module.graph = graph


def restore(module: fx.GraphModule) -> bool:
    """Give ``module`` the graph back that it had; whether there was one. Copies do not know theirs."""
    original = _originals.pop(module, None)
    if original is not None:
        module.graph = original
    return original is not None

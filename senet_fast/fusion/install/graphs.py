"""Excitations inside of an fx.GraphModule: its graph is rewritten in place, so that code, copies and pickles follow."""

import functools
import operator
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet_fast.fusion.graph.nodes import attribute, writes
from senet_fast.fusion.graph.refusal import Rejected
from senet_fast.fusion.graph.sizes import Number, hint, value_of
from senet_fast.fusion.install.graph_sites import absorbed, arguments
from senet_fast.fusion.recognise.match import Match
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.run.graph_call import excite
from senet_fast.fusion.verify.matches import holds_in_training, verified

_squeeze_excite = torch.ops.senet_fast.squeeze_excite.default
_originals: WeakKeyDictionary[fx.GraphModule, fx.Graph] = WeakKeyDictionary()


def check_rewritable(module: nn.Module, match: Match, numbers: Sequence[Number], folds: bool = True) -> None:
    """Rejected where a call of the op cannot take the place of the match.

    ``numbers``: for the graph's symbols, beside those that the match was found with. ``folds``: calls that fold a norm
    of fixed statistics or transpose a weight may stand in front of it.
    """
    excitation = match.excitation
    if not folds and not excitation.is_plain:
        raise Rejected("its norm or transposed weight cannot be folded in this graph")
    if any(isinstance(attribute(module, path), _BatchNorm) for path in match.modules):
        raise Rejected("its norm cannot be folded in a graph that may train it")
    every = (hint, *numbers)
    fixed = excitation.norms and all(holds_in_training(module, match.x, match.y, excitation, n) for n in every)
    if excitation.inference_only and not fixed:
        raise Rejected("it differs in training mode")
    if len({dim for _, dim in excitation.dims}) > 1:
        raise Rejected("its gated axis depends on the number of axes")
    if any(writes(node) for node in (match.product, match.y)):
        raise Rejected("it changes its input in place")
    for node in match.x.users:
        if node not in (match.product, match.y) and writes(node, module, match.x):
            raise Rejected("x is changed in place beside it")
    for number in numbers:
        if verified(module, match.x, match.y, excitation, number) != excitation:
            raise Rejected("it is one only for the sizes that it was exported with")


def drop_unused_sizes(graph: fx.Graph) -> None:
    """``b, c, _, _ = x.size()`` leaves reads of x that nobody wants."""
    for node in reversed(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)


def install(module: fx.GraphModule, graph: fx.Graph, sites: list[Site]) -> None:
    """Give ``module`` its ``graph`` with every site replaced by a call of the op."""
    tracer = fx.proxy.GraphAppendingTracer(graph)  # makes calls in the graph of what folds a norm

    def get(path: str) -> fx.Proxy:
        return fx.Proxy(graph.get_attr(path), tracer)

    regions = [absorbed(site) for site in sites]
    replaced: dict[fx.Node, fx.Node] = {}
    for site, region in zip(sites, regions, strict=True):
        with graph.inserting_before(site.last):
            made = arguments(module, site, lambda node: replaced.get(node, node), get)
            v, *given = fx.node.map_aggregate(made, lambda a: a.node if isinstance(a, fx.Proxy) else a)
            if value_of(site.x) is None:  # an exported graph has guards of its own
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

"""Excitations inside of an fx.GraphModule: its graph is rewritten in place, so that code, copies and pickles follow."""

import functools
import operator
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from senet_fast.fusion.graph.nodes import attribute
from senet_fast.fusion.graph.sizes import value_of
from senet_fast.fusion.install.graph_sites import arguments
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.run.graph_call import excite
from senet_fast.se.kept import forget

_squeeze_excite = torch.ops.senet_fast.squeeze_excite.default
_originals: WeakKeyDictionary[fx.GraphModule, fx.Graph] = WeakKeyDictionary()


def install(module: fx.GraphModule, graph: fx.Graph, sites: list[Site]) -> None:
    """Give ``module`` its ``graph`` with every site replaced by a call of the op."""
    regions = [site.nodes for site in sites]
    replaced: dict[fx.Node, fx.Node] = {}
    for site, region in zip(sites, regions, strict=True):
        with graph.inserting_before(site.last):
            get = _Attributes(module, graph, whole=not site.has_neighbours)
            made = arguments(module, site, lambda node: replaced.get(node, node), get)
            v, *given = fx.node.map_aggregate(made, lambda a: a.node if isinstance(a, fx.Proxy) else a)
            if value_of(site.x) is None:  # an exported graph has guards of its own
                _assert_axes(graph, v, [rank for rank, _ in site.excitation.dims])
            if site.has_neighbours:
                fused = graph.call_function(excite, (v, *given))
            else:
                _, weights, options, *_ = given
                fused = graph.call_function(_squeeze_excite, (v, *weights), options)
        fused.meta = dict(site.last.meta)
        if site.has_neighbours:
            fused.meta["is_wrapped"] = True  # for those that trace the graph again, as pickle does
        site.last.replace_all_uses_with(fused)
        replaced[site.last] = fused
        read = [node for user in region for node in user.all_input_nodes if node.op == "get_attr"]
        for node in dict.fromkeys([*reversed(region), *read]):
            if not node.users:
                graph.erase_node(node)
    graph.lint()
    original = module.graph
    module.graph = graph
    if module not in _originals:
        original.owning_module = None  # or the value would keep its key for ever
        _originals[module] = original


class _Attributes:
    """Children, parameters and buffers by their path, as nodes of a graph at its point of insertion.

    A call gets two dozen of them, and a module takes a third of a microsecond to find a name. So the tensors of a child
    are fetched from that, and each child once, by its whole path, for torch.fx takes children that are not named so in
    a graph for unused. ``whole``: tensors by their whole path as well, as tools expect what an operator of torch gets.
    """

    def __init__(self, module: fx.GraphModule, graph: fx.Graph, whole: bool) -> None:
        self.module, self.graph, self.whole = module, graph, whole
        self.tracer = fx.proxy.GraphAppendingTracer(graph)  # makes calls in the graph of what folds a norm
        self.found: dict[str, fx.Node] = {}

    def __call__(self, path: str) -> fx.Proxy:
        return fx.Proxy(self._node(path), self.tracer)

    def _node(self, path: str) -> fx.Node:
        if path not in self.found:
            child, _, name = path.rpartition(".")
            if self.whole or not child or isinstance(attribute(self.module, path), nn.Module):
                self.found[path] = self.graph.get_attr(path)
            else:
                self.found[path] = self.graph.call_function(getattr, (self._node(child), name))
        return self.found[path]


def _assert_axes(graph: fx.Graph, v: fx.Node, ranks: list[int]) -> None:
    """The call can not fall back on what it replaced."""
    axes = graph.call_method("dim", (v,))
    known = [graph.call_function(operator.eq, (axes, rank)) for rank in ranks]
    any_of = functools.reduce(lambda a, b: graph.call_function(operator.or_, (a, b)), known)
    message = f"x has another number of axes than {ranks}: unfuse the graph"
    graph.call_function(torch._assert, (any_of, message))


def restore(module: fx.GraphModule) -> bool:
    """Give ``module`` the graph back that it had; whether there was one. Copies do not know theirs."""
    original = _originals.pop(module, None)
    if original is not None:
        module.graph = original
        for part in module.modules():
            forget(part)
    return original is not None

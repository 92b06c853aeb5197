"""Excitations inside of an fx.GraphModule: its graph is rewritten in place, so that code, copies and pickles follow."""

import functools
import operator
from weakref import WeakKeyDictionary

import torch
from torch import fx, nn

from senet_fast.fusion.match import Match
from senet_fast.fusion.stages import Rejected
from senet_fast.fusion.trace import ancestors, descendants, writes

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


def install(module: fx.GraphModule, graph: fx.Graph, matches: list[Match]) -> None:
    """Give ``module`` its ``graph`` with every match replaced by a call of the op."""
    regions = [ancestors(match.y) & descendants(match.x) for match in matches]
    replaced: dict[fx.Node, fx.Node] = {}
    for match, region in zip(matches, regions, strict=True):
        excitation = match.excitation
        with graph.inserting_before(match.y):
            paths = [path for layer in excitation.layers for path in (layer.weight, layer.bias)]
            weights = [None if path is None else graph.get_attr(str(path)) for path in paths]
            options = excitation.options(excitation.dims[0][1])
            x = replaced.get(match.x, match.x)
            if "val" not in match.x.meta:  # an exported graph has guards of its own
                axes = graph.call_method("dim", (x,))
                known = [graph.call_function(operator.eq, (axes, rank)) for rank, _ in excitation.dims]
                any_of = functools.reduce(lambda a, b: graph.call_function(operator.or_, (a, b)), known)
                message = f"x has another number of axes than {[rank for rank, _ in excitation.dims]}: unfuse the graph"
                graph.call_function(torch._assert, (any_of, message))
            fused = graph.call_function(_squeeze_excite, (x, *weights), options)
        fused.meta = dict(match.y.meta)
        match.y.replace_all_uses_with(fused)
        replaced[match.y] = fused
        for node in reversed([node for node in graph.nodes if node in region]):
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

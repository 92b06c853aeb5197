"""The 1x1 convolution beside a block in a graph of torch.compile, as one op: at inference, of weights that are
constants.

Norm and activation in front stay there: Inductor computes them within the convolution that they follow.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import Sandbox
from senet_fast.fusion.graph.sizes import Number, value_of
from senet_fast.fusion.install.graph_sites import check_between
from senet_fast.fusion.recognise.excitation import Norm, Path
from senet_fast.fusion.recognise.site import Site, add_neighbours
from senet_fast.fusion.run.convolution import convolve_frozen
from senet_fast.fusion.verify.comparison import difference, inferred
from senet_fast.se.beside import LAYOUTS, pays_frozen
from senet_fast.se.inductor import lower_in_place

Twins = dict[fx.Node, fx.Node]  # the node of Dynamo's graph for each of its shadow, where weights are attributes


def freezes() -> bool:
    """Whether Inductor makes constants of the weights that are attributes of the graph, and knows the op.

    torch.compile's option by itself makes none: Dynamo asks Inductor's config, and else gives weights as inputs.
    """
    from torch._inductor import config

    return bool(config.freezing) and not torch.is_grad_enabled() and lower_in_place()


def with_convolution(module: fx.GraphModule, site: Site, twin: Twins, taken: set[fx.Node], number: Number) -> Site:
    """``site`` with the convolution beside it where the op computes both, none of it of ``taken``, which gets it.

    ``module``: the shadow, small or not. ``number``: of the symbols in Dynamo's graph.
    """
    if not site.excitation.is_plain:
        return site
    found = replace(site)
    add_neighbours(module, found, training=False, inference=True, free=taken.isdisjoint)
    conv = found.conv
    if conv is None:
        return site
    found.front = found.maker = None
    if conv.side == "input":
        found.prologue = None
    try:
        _check_constants(found, twin)
        check_between(module, found)
        _check_layout(found, twin, number)
        _check_values(module, found, number)
    except Refused as reason:
        reason.node = reason.node or site.y.name
        note(reason)
        return site
    except Exception as error:  # whatever the op or the graph does with these tensors
        note(Refused("neighbours", "the op does not take what is beside it", node=site.y), error)
        return site
    taken.update(found.nodes)
    return found


def replace_with_convolution(graph: fx.Graph, site: Site, twin: Twins) -> fx.Node:
    """The call in ``graph`` that computes what ``site.last`` does."""
    named = {node.name: node for node in twin.values()}
    args, options = _arguments(site, twin.__getitem__, lambda path: named[str(path)])
    return graph.call_function(convolve_frozen, args, options)


def _arguments(
    site: Site, value: Callable[[fx.Node], Any], get: Callable[[Path], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Of :func:`convolve_frozen`: ``value`` of nodes, ``get`` for weights."""
    conv, excitation = site.conv, site.excitation
    assert conv is not None

    def tensors(paths: tuple[Path | None, ...]) -> tuple[Any, ...]:
        return tuple(None if path is None else get(path) for path in paths)

    norm = _norm(site)
    options = excitation.options(excitation.dims[0][1])
    del options["dim"]
    behind = conv if conv.side == "input" else site.epilogue
    args = (
        value(site.source),
        tensors((conv.layer.weight, conv.layer.bias)),
        None if norm is None else (tensors(norm.tensors), norm.eps),
        tensors(tuple(path for layer in excitation.layers for path in (layer.weight, layer.bias))),
        None if site.residual is None else value(site.residual),
    )
    return args, {"side": conv.side, **options, "post_activation": behind.activation if behind else "identity"}


def _norm(site: Site) -> Norm | None:
    """Behind the convolution."""
    assert site.conv is not None
    if site.conv.side == "input":
        return site.conv.norm
    return site.prologue.norm if site.prologue is not None else None


def _check_constants(site: Site, twin: Twins) -> None:
    """Refused unless all weights are attributes of the graph and all tensors of one type, on the CPU, that the op has a
    kernel for. With autocast the convolution's result would be of another.
    """
    named = {node.name: node for node in twin.values()}
    weights: list[fx.Node] = []
    (x, *tensors), _ = _arguments(site, twin.__getitem__, lambda path: named[str(path)])
    fx.map_arg(tensors[:-1], weights.append)
    if any(weight.op != "get_attr" for weight in weights):
        raise Refused("neighbours", "the weights are inputs of the graph")
    assert site.conv is not None
    beside = [
        x,
        tensors[0][0],
        tensors[-1],
        *(twin[node] for node in (site.x, site.y, *site.nodes) if node not in site.block[:-1]),
    ]
    values = [value for node in beside if node is not None and isinstance(value := value_of(node), Tensor)]
    dtype = values[0].dtype
    if any(value.dtype != dtype or value.device.type != "cpu" for value in values):
        raise Refused("neighbours", "the convolution is not of one type on the CPU")
    if not pays_frozen(site.conv.side, dtype):
        raise Refused("neighbours", f"the op has no kernel for {dtype}")


def _check_layout(site: Site, twin: Twins, number: Number) -> None:
    """Refused unless y has the strides that it had: the graph may view it. Raises what the op does of other shapes."""

    def empty(node: fx.Node) -> Tensor:
        value = value_of(node)
        sizes, strides = (list(map(number, of)) for of in (value.shape, value.stride()))
        return torch.empty_strided(sizes, strides, dtype=value.dtype, device="meta")

    named = {node.name: node for node in twin.values()}
    args, options = _arguments(site, lambda node: empty(twin[node]), lambda path: empty(named[str(path)]))
    wanted = empty(twin[site.last])
    made = convolve_frozen(*args, **options)
    if made.shape != wanted.shape or _steps(made) != _steps(wanted):
        raise Refused("neighbours", "what is behind it has another layout than x")


def _steps(tensor: Tensor) -> list[int]:
    """Strides along the axes where there is a next element."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def _check_values(module: fx.GraphModule, site: Site, number: Number) -> None:
    """Refused unless the op computes what the graph does."""
    sandbox = Sandbox(module, torch.float32, number=number)
    inputs = list(dict.fromkeys([site.source, *([site.residual] if site.residual is not None else [])]))
    values = {node: sandbox.random(sandbox.shape_of(node) or ()) for node in inputs}
    own = inferred(
        lambda *given: sandbox.run(site.last, dict(zip(inputs, given, strict=True))), map(Tensor.clone, values.values())
    )
    laid_out = {n: v.contiguous(memory_format=LAYOUTS.get(v.dim(), torch.contiguous_format)) for n, v in values.items()}
    args, options = _arguments(site, laid_out.__getitem__, lambda path: sandbox.get(str(path)))
    if differs := difference(own, inferred(lambda: convolve_frozen(*args, **options), ())):
        raise Refused("neighbours", f"with the convolution the op's {differs} differ from its own")

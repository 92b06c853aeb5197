"""The layers and norms that a graph's nodes are, with the paths of their weights."""

import math
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from senet_fast.fusion.graph.functions import kind_of, transposed
from senet_fast.fusion.graph.nodes import attribute, is_made_by_trace
from senet_fast.fusion.graph.parts import is_quantized, layer_sizes
from senet_fast.fusion.graph.refusal import Refused
from senet_fast.fusion.recognise.arithmetic import added_constant, is_inexact, reading, weights_of
from senet_fast.fusion.recognise.excitation import Layer, Norm, Path


class Stage(NamedTuple):
    """A node with weights between x and the scale."""

    node: fx.Node
    input: fx.Node
    part: "Layer | Norm | Path"
    kind: str  # "fc", "channel_conv", "norm" or, with the path of what is added, "bias"
    sizes: tuple[int, int]  # in, out
    refused: str = ""  # why the op can not take it


def stage_of(module: nn.Module, node: fx.Node) -> Stage | None:
    """What ``node`` does with which weights; None if it has none. Refused for a layer of another kind."""
    added = added_constant(module, node)
    if added is not None:
        size = math.prod(attribute(module, str(added[1])).shape)
        return Stage(node, added[0], added[1], "bias", (size, size))
    if node.op == "call_module":
        part = attribute(module, str(node.target))
        if is_quantized(part) and (sizes := layer_sizes(part)) is not None and len(node.all_input_nodes) == 1:
            layer = Layer(Path.of(f"{node.target}.weight"), None)
            return Stage(node, node.all_input_nodes[0], layer, "fc", sizes, f"{node.target} is quantized")
        if any(map(is_inexact, (*part.parameters(), *part.buffers()))):
            return _module_stage(part, str(node.target), node)
    if transposed(node) or not weights_of(module, node):
        return None
    kind, given = reading(module, node)
    if kind not in READERS:
        raise Refused("layers", f"{node.name} uses a parameter, buffer or constant of its own")
    return READERS[kind](module, node, given)


def _module_stage(part: nn.Module, path: str, node: fx.Node) -> Stage:
    source = node.args[0] if node.args else None
    if len(node.args) != 1 or node.kwargs or not isinstance(source, fx.Node):
        raise Refused("layers", f"{path} is called with more than one argument")
    for name, inner in part.named_modules():
        if torch.nn.utils.parametrize.is_parametrized(inner):
            raise Refused("layers", f"{'.'.join(filter(None, (path, name)))} is parametrized", near=True)
    at = Path.of(path)
    bias = Path((*at, "bias")) if getattr(part, "bias", None) is not None else None
    layer = Layer(Path((*at, "weight")), bias)
    if type(part) is nn.Linear:
        return Stage(node, source, layer, "fc", (part.in_features, part.out_features))
    if type(part) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        assert isinstance(part, _ConvNd)
        kind = _convolution_kind(part.weight.shape, part.stride, part.padding, part.dilation, part.groups)
        if kind == "channel_conv" and part.padding_mode != "zeros":
            kind = None
        if kind is not None:
            return Stage(node, source, layer, kind, (part.in_channels, part.out_channels))
    if isinstance(part, _BatchNorm) and type(part).__module__.startswith("torch.nn.modules."):
        if part.running_mean is None or part.running_var is None:
            raise Refused("layers", f"{path} keeps no running statistics", near=True)
        mean, var = Path((*at, "running_mean")), Path((*at, "running_var"))
        weight = layer.weight if part.weight is not None else None
        norm = Norm(at, mean, var, weight, layer.bias, part.eps)
        return Stage(node, source, norm, "norm", (part.num_features, part.num_features))
    raise Refused(
        "layers", f"{path} is a {type(part).__name__}", near=isinstance(part, nn.PReLU | nn.LayerNorm | nn.GroupNorm)
    )


def _convolution_kind(shape: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int) -> str | None:
    """The kind of a convolution with this weight: a layer ("fc"), one over channels ("channel_conv"), or neither."""
    taps = math.prod(shape[2:])

    def all_are(value: Any, wanted: int) -> bool:
        return all(v == wanted for v in (value if isinstance(value, tuple | list) else (value,)))

    if groups != 1 or not all_are(stride, 1):
        return None
    if taps == 1:
        return "fc" if padding in ("same", "valid") or all_are(padding, 0) else None
    centred = padding == "same" or (padding != "valid" and all_are(padding, taps // 2))
    if len(shape) == 3 and shape[:2] == (1, 1) and taps % 2 and all_are(dilation, 1) and centred:
        return "channel_conv"
    return None


def _path(module: nn.Module, node: fx.Node, value: Any) -> Path | None:
    """Of the attribute that an argument of ``node`` is."""
    if value is None:
        return None
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        raise Refused("layers", f"{node.name} computes its weights")
    path = Path.of(str(value.target))
    if is_made_by_trace(module, path[-1]):
        raise Refused("layers", f"{node.name} computes its weights from a constant", near=True)
    return path


def _source(node: fx.Node, given: dict[str, Any]) -> fx.Node:
    source = given.get("input")
    if not isinstance(source, fx.Node):
        raise Refused("layers", f"{node.name} is no layer of an excitation")
    return source


def _layer(module: nn.Module, node: fx.Node, given: dict[str, Any]) -> Stage:
    """A functional linear layer or convolution."""
    weight, bias = _path(module, node, given.get("weight")), _path(module, node, given.get("bias"))
    if weight is None or given.get("transposed"):
        raise Refused("layers", f"{node.name} has no plain weight")
    shape = attribute(module, str(weight)).shape
    kind: str | None = "fc"
    if kind_of(node) == "convolution":
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        kind = _convolution_kind(shape, *(given.get(name, default) for name, default in options.items()))
    if kind is None:
        raise Refused("layers", f"{node.name} is no layer of an excitation")
    return Stage(node, _source(node, given), Layer(weight, bias), kind, (shape[1], shape[0]))


def _product(module: nn.Module, node: fx.Node, given: dict[str, Any]) -> Stage:
    """A matrix product with a weight, which may be transposed in front of it."""
    original = transposed(given.get("weight"))
    weight = _path(module, node, original or given.get("weight"))
    if weight is None or len(shape := attribute(module, str(weight)).shape) != 2:
        raise Refused("layers", f"{node.name} is no layer of an excitation")
    layer = Layer(weight, _path(module, node, given.get("bias")), transposed=original is None)
    sizes = (shape[0], shape[1]) if layer.transposed else (shape[1], shape[0])
    return Stage(node, _source(node, given), layer, "fc", sizes)


def _batch_norm(module: nn.Module, node: fx.Node, given: dict[str, Any]) -> Stage:
    if given.get("training"):
        raise Refused("layers", f"{node.name} normalises by the batch", near=True)
    mean, var = _path(module, node, given.get("running_mean")), _path(module, node, given.get("running_var"))
    if mean is None or var is None:
        raise Refused("layers", f"{node.name} keeps no running statistics", near=True)
    weight, bias = _path(module, node, given.get("weight")), _path(module, node, given.get("bias"))
    norm = Norm(mean.parent, mean, var, weight, bias, given.get("eps", 1e-5))
    size = attribute(module, str(mean)).shape[0]
    return Stage(node, _source(node, given), norm, "norm", (size, size))


READERS = {"linear": _layer, "convolution": _layer, "product": _product, "norm": _batch_norm}  # of functions by kind

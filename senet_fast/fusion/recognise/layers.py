"""The layers and norms that a graph's nodes are, with the paths of their weights."""

import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from senet_fast.fusion.graph.nodes import attribute
from senet_fast.fusion.graph.parts import is_quantized, layer_sizes
from senet_fast.fusion.graph.refusal import Refused
from senet_fast.fusion.recognise.excitation import Layer, Norm, Path

ATEN = torch.ops.aten
CONVOLUTIONS = (
    *(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
    *(ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default, ATEN.convolution.default),
    *(ATEN.conv1d.padding, ATEN.conv2d.padding, ATEN.conv3d.padding),
)
LINEARS = (F.linear, ATEN.linear.default)
TRANSPOSES = (torch.t, ATEN.t.default)


class Stage(NamedTuple):
    """A node with weights between x and the scale."""

    node: fx.Node
    input: fx.Node
    part: "Layer | Norm"
    kind: str  # "fc", "channel_conv" or "norm"
    sizes: tuple[int, int]  # in, out
    refused: str = ""  # why the op can not take it


def stage_of(module: nn.Module, node: fx.Node) -> Stage | None:
    """What ``node`` does with which weights; None if it has none. Refused for a layer of another kind."""
    if node.op == "call_module":
        part = attribute(module, str(node.target))
        if is_quantized(part) and (sizes := layer_sizes(part)) is not None and len(node.all_input_nodes) == 1:
            layer = Layer(Path.of(f"{node.target}.weight"), None)
            return Stage(node, node.all_input_nodes[0], layer, "fc", sizes, f"{node.target} is quantized")
        if not any(True for _ in part.parameters()) and not any(True for _ in part.buffers()):
            return None
        return _module_stage(part, str(node.target), node)
    weights = [n for n in node.all_input_nodes if n.op == "get_attr"]
    if not weights and not any(_transposed(n) for n in node.all_input_nodes):
        return None
    if node.target in TRANSPOSES or node.target in ("t",) or _transposed(node):
        return None
    return _function_stage(module, node)


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


def _transposed(node: fx.Node) -> fx.Node | None:
    """The weight that ``node`` is the transpose of."""
    if node.op == "call_method":
        flips = node.target == "t" or (
            node.target == "transpose" and node.args[1:] in ((0, 1), (1, 0), (-1, -2), (-2, -1))
        )
    else:
        flips = node.op == "call_function" and node.target in TRANSPOSES
    source = node.args[0] if flips else None
    return source if isinstance(source, fx.Node) and source.op == "get_attr" else None


def _function_stage(module: nn.Module, node: fx.Node) -> Stage:
    """A functional layer or norm whose weights are attributes of the module."""

    def arguments(*names: str) -> dict[str, Any]:
        return dict(zip(names, node.args, strict=False)) | node.kwargs

    def path(value: Any) -> Path | None:
        if value is None:
            return None
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            raise Refused("layers", f"{node.name} computes its weights")
        return Path.of(str(value.target))

    if node.target in LINEARS or node.target in CONVOLUTIONS:
        names = ["input", "weight", "bias", "stride", "padding", "dilation"]
        aten_convolution = node.target is ATEN.convolution.default
        names += ["transposed", "output_padding", "groups"] if aten_convolution else ["groups"]
        given = arguments(*names)
        weight, bias = path(given["weight"]), path(given.get("bias"))
        if weight is None or given.get("transposed"):
            raise Refused("layers", f"{node.name} has no plain weight")
        shape = attribute(module, str(weight)).shape
        kind: str | None = "fc"
        if node.target in CONVOLUTIONS:
            options = (
                given.get("stride", 1),
                given.get("padding", 0),
                given.get("dilation", 1),
                given.get("groups", 1),
            )
            kind = _convolution_kind(shape, *options)
        if kind is None or not isinstance(given["input"], fx.Node):
            raise Refused("layers", f"{node.name} is no layer of an excitation")
        return Stage(node, given["input"], Layer(weight, bias), kind, (shape[1], shape[0]))
    products = (operator.matmul, torch.matmul, torch.mm, ATEN.mm.default, ATEN.matmul.default, "matmul", "mm")
    if node.target in products or node.target in (torch.addmm, ATEN.addmm.default):
        operands: list[Any] = [None, *node.args][-3:]
        bias_node, source, weight_node = operands
        original = _transposed(weight_node) if isinstance(weight_node, fx.Node) else None
        weight = path(original or weight_node)
        assert weight is not None
        shape = attribute(module, str(weight)).shape
        if not isinstance(source, fx.Node) or len(shape) != 2:
            raise Refused("layers", f"{node.name} is no layer of an excitation")
        sizes = (shape[1], shape[0]) if original is not None else (shape[0], shape[1])
        return Stage(node, source, Layer(weight, path(bias_node), transposed=original is None), "fc", sizes)
    if node.target in (F.batch_norm, torch.batch_norm, ATEN.batch_norm.default):
        order = ("mean", "var", "weight", "bias") if node.target is F.batch_norm else ("weight", "bias", "mean", "var")
        given = arguments("input", *order, "training", "momentum", "eps")
        given |= {
            ours: given.pop(theirs)
            for ours, theirs in (("mean", "running_mean"), ("var", "running_var"))
            if theirs in given
        }
        if given.get("training"):
            raise Refused("layers", f"{node.name} normalises by the batch", near=True)
        mean, var = path(given.get("mean")), path(given.get("var"))
        if mean is None or var is None or not isinstance(given["input"], fx.Node):
            raise Refused("layers", f"{node.name} keeps no running statistics", near=True)
        eps = given.get("eps", 1e-5)
        norm = Norm(mean.parent, mean, var, path(given.get("weight")), path(given.get("bias")), eps)
        size = attribute(module, str(mean)).shape[0]
        return Stage(node, given["input"], norm, "norm", (size, size))
    raise Refused("layers", f"{node.name} uses a parameter of its own")

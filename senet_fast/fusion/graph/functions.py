"""The functions that fusion knows, in one table: what each does, and its arguments in their order.

Whatever is not in here is still found if it lies between the layers: it is run to see what it computes.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

ATEN = torch.ops.aten
CONVOLUTION = "input weight bias stride padding dilation groups"
NORM = "training momentum eps"


def _rows(kind: str, arguments: str, *targets: Any) -> dict[Any, tuple[str, list[str]]]:
    return dict.fromkeys(targets, (kind, arguments.split()))


FUNCTIONS = (
    _rows("multiply", "input other", operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply")
    | _rows(
        "multiply", "input other", *(ATEN.mul.Tensor, ATEN.mul_.Tensor, ATEN.multiply.Tensor, ATEN.multiply_.Tensor)
    )
    | _rows("quantized", "input other scale zero_point", torch.ops.quantized.mul)
    | _rows("add", "input other", operator.add, operator.iadd, torch.add, ATEN.add.Tensor, ATEN.add_.Tensor)
    | _rows("add", "input other", "add", "add_")
    | _rows("convolution", CONVOLUTION, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
    | _rows("convolution", CONVOLUTION, ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default)
    | _rows("convolution", CONVOLUTION, ATEN.conv1d.padding, ATEN.conv2d.padding, ATEN.conv3d.padding)
    | _rows(
        "convolution",
        "input weight bias stride padding dilation transposed output_padding groups",
        ATEN.convolution.default,
    )
    | _rows("linear", "input weight bias", F.linear, ATEN.linear.default)
    | _rows("product", "input weight", operator.matmul, torch.matmul, torch.mm, ATEN.mm.default, ATEN.matmul.default)
    | _rows("product", "input weight", "matmul", "mm")
    | _rows("product", "bias input weight", torch.addmm, ATEN.addmm.default)
    | _rows("norm", f"input running_mean running_var weight bias {NORM}", F.batch_norm)
    | _rows("norm", f"input weight bias running_mean running_var {NORM}", torch.batch_norm, ATEN.batch_norm.default)
    | _rows("transpose", "input", torch.t, ATEN.t.default, "t")
    | _rows("transpose", "input dim0 dim1", "transpose", torch.transpose, ATEN.transpose.int)
    | _rows("relu", "input", F.relu, torch.relu, torch.relu_, ATEN.relu.default, ATEN.relu_.default, "relu", "relu_")
    | _rows("new", "input", torch.cat, torch.sigmoid, torch.tanh, F.relu6, F.leaky_relu, F.silu, F.gelu, F.mish)
    | _rows("new", "input", F.hardswish, F.hardsigmoid, ATEN.cat.default, ATEN.silu.default, ATEN.gelu.default)
    | _rows("new", "input", ATEN.mish.default, ATEN.hardswish.default, ATEN.leaky_relu.default, ATEN.sigmoid.default)
    | _rows("new", "input", ATEN.tanh.default, ATEN.hardsigmoid.default)
)
# Their results share no memory with anything, unless they are told to write in place.
NEW = ("multiply", "add", "convolution", "linear", "product", "norm", "relu", "new")
KEEPS_INPUT = ("convolution", "linear", "norm")  # for its backward


def kind_of(node: fx.Node) -> str:
    """What ``node`` does with tensors, as a word of the table; "" if it is not in there."""
    known = node.op in ("call_function", "call_method") and node.target in FUNCTIONS
    return FUNCTIONS[node.target][0] if known else ""


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments by their names in the table, of a node that is in there."""
    return dict(zip(FUNCTIONS[node.target][1], node.args, strict=False)) | node.kwargs


def operands_of_function(node: fx.Node, kind: str) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that ``node`` combines, if it does that and nothing else ("quantized": but for a scale)."""
    if kind_of(node) != kind or len(node.args) < 2 or (kind != "quantized" and (node.args[2:] or node.kwargs)):
        return None
    a, b = node.args[:2]
    return (a, b) if isinstance(a, fx.Node) and isinstance(b, fx.Node) else None


def transposed(node: Any) -> fx.Node | None:
    """The weight that ``node`` is the transpose of."""
    if not isinstance(node, fx.Node) or kind_of(node) != "transpose":
        return None
    given = arguments_of(node)
    dims = (given.get("dim0", 0), given.get("dim1", 1))
    source = given["input"] if dims in ((0, 1), (1, 0), (-1, -2), (-2, -1)) else None
    return source if isinstance(source, fx.Node) and source.op == "get_attr" else None

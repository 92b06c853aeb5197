"""Additions, multiplications and matrix products, by torch's functions or by modules that compute nothing else.

Converters and quantizable networks have modules for what others write with an operator. As with activations, such a
module is believed for what it makes of numbers, whatever it is called.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.graph.functions import arguments_of, kind_of, operands_of_function, transposed
from senet_fast.fusion.graph.nodes import ancestors, attribute
from senet_fast.fusion.graph.parts import has_tensors
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import Sandbox, light_copy
from senet_fast.fusion.recognise.excitation import Path

BINARY: dict[str, Any] = {"multiply": torch.mul, "add": torch.add, "product": torch.matmul}
SHAPES = (((2, 3, 4, 5), (2, 3, 1, 1)), ((2, 3), (3, 4)))  # of what is broadcast, of a matrix product


def reading(module: nn.Module, node: fx.Node) -> tuple[str, dict[str, Any]]:
    """What ``node`` does, a word of the table of functions or "", and its arguments by their names there."""
    if node.op != "call_module":
        kind = kind_of(node)
        return kind, arguments_of(node) if kind else {}
    given = [*node.args, *node.kwargs.values()]
    if len(given) != 2 or not all(isinstance(value, fx.Node) for value in given):
        return "", {}
    kind = _computes(attribute(module, str(node.target)), node)
    return kind, dict(zip(("input", "weight" if kind == "product" else "other"), given, strict=True)) if kind else {}


def operands(module: nn.Module, node: fx.Node, kind: str) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that ``node`` combines, if it does that and nothing else."""
    if node.op != "call_module":
        return operands_of_function(node, kind)
    found, given = reading(module, node)
    return (given["input"], given["other"]) if found == kind else None


def _computes(part: nn.Module, node: fx.Node) -> str:
    """The key of BINARY for what ``part`` makes of two tensors; "" for anything else."""
    if type(part).__module__.startswith("torch.nn.") or has_tensors(part):
        return ""
    generator = torch.Generator().manual_seed(0)
    copied = light_copy(part)
    failed: Exception | None = None
    for shapes in SHAPES:
        a, b = (torch.randn(shape, generator=generator) for shape in shapes)
        given = (a.clone(), b.clone())
        try:
            with torch.no_grad():
                made = copied(*given)
        except Exception as error:  # whatever somebody's code does with two tensors
            failed = error
            continue
        if not isinstance(made, Tensor) or not (torch.equal(a, given[0]) and torch.equal(b, given[1])):
            return ""
        kinds = ("multiply", "add") if shapes is SHAPES[0] else ("product",)
        found = next((kind for kind in kinds if torch.equal(made, BINARY[kind](a, b))), "")
        if found:
            return found
    if failed is not None:
        note(Refused("arithmetic", f"{node.target} takes no two tensors of any kind that is known", node=node), failed)
    return ""


def weights_of(module: nn.Module, node: fx.Node) -> list[fx.Node]:
    """The parameters, buffers and constants, no sizes, that ``node`` reads, as they are or transposed."""
    found = [transposed(source) or source for source in node.all_input_nodes]
    return [source for source in found if source.op == "get_attr" and _is_weight(module, source)]


def is_inexact(tensor: Tensor) -> bool:
    """Whether it may be a weight: sizes and indices are none."""
    return tensor.is_floating_point() or tensor.is_complex()


def _is_weight(module: nn.Module, node: fx.Node) -> bool:
    value = attribute(module, str(node.target))
    return isinstance(value, Tensor) and is_inexact(value)


def added_constant(module: nn.Module, node: fx.Node) -> tuple[fx.Node, Path] | None:
    """For an addition of one parameter, buffer or constant, reshaped or not: the other operand, and the path to it."""
    pair = operands(module, node, "add")
    for source, added in (pair, pair[::-1]) if pair is not None else ():
        made_of = ancestors(added)
        tensors = [n for n in made_of if n.op == "get_attr" and _is_weight(module, n)]
        fixed = not any(n.op == "placeholder" for n in made_of)
        if fixed and len(tensors) == 1 and any(n.op == "placeholder" for n in ancestors(source)):
            return (source, Path.of(str(tensors[0].target))) if _only_reshapes(module, tensors[0], added) else None
    return None


def _only_reshapes(module: nn.Module, tensor: fx.Node, made: fx.Node) -> bool:
    """Whether ``made`` has the elements of ``tensor`` in their order, and no others."""
    numbers = torch.arange(1.0, attribute(module, str(tensor.target)).numel() + 1)
    original = numbers.reshape(attribute(module, str(tensor.target)).shape)
    try:
        value = Sandbox(module, torch.float32).run(made, {tensor: original})
    except Exception as error:  # whatever somebody's code does with it
        note(Refused("bias", f"{tensor.target} can not be followed", node=made), error)
        return False
    return isinstance(value, Tensor) and torch.equal(value.flatten(), numbers)

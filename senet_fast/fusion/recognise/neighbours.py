"""What stands in front of an excitation and behind it, as far as the op can take it over."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from senet_fast.fusion.graph.functions import KEEPS_INPUT, NEW, kind_of
from senet_fast.fusion.graph.nodes import attribute, rank_checks, readers, writes
from senet_fast.fusion.graph.parts import has_tensors
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import Sandbox
from senet_fast.fusion.recognise.arithmetic import operands
from senet_fast.fusion.recognise.excitation import Layer, Norm
from senet_fast.fusion.recognise.layers import Stage, stage_of
from senet_fast.fusion.recognise.probing import probe

# Activations in front that were measured to pay as a prologue, on the CPU. (A GPU computes them twice: not measured.)
IN_FRONT = ("identity", "relu", "relu6", "leaky_relu", "hardsigmoid", "hardswish", "silu", "affine_clamp")


@dataclass(frozen=True)
class Prologue:
    """x is ``activation(norm(source))``."""

    source: fx.Node
    nodes: tuple[fx.Node, ...]
    norm: Norm | None
    activation: str

    def __str__(self) -> str:
        names = ["batch_norm"] if self.norm is not None else []
        return ", ".join(names + _named(self.activation))


@dataclass(frozen=True)
class Epilogue:
    """``last`` is ``activation(y + residual)``."""

    last: fx.Node
    nodes: tuple[fx.Node, ...]
    residual: fx.Node | None
    activation: str

    def __str__(self) -> str:
        names = ["residual"] if self.residual is not None else []
        return ", ".join(names + _named(self.activation))


@dataclass(frozen=True)
class Pointwise:
    """The 1x1 convolution whose input or output (``side``) is gated, for inference.

    "output": v, what the prologue or the excitation starts with, is conv(source). "input": ``last`` is activation(norm(
    conv(y)) + residual).
    """

    side: str
    source: fx.Node
    last: fx.Node
    nodes: tuple[fx.Node, ...]
    layer: Layer
    norm: Norm | None = None
    residual: fx.Node | None = None
    activation: str = "identity"

    def __str__(self) -> str:
        names = ["conv"] + ["batch_norm"] * (self.norm is not None) + ["residual"] * (self.residual is not None)
        return ", ".join(names + _named(self.activation))


def _named(activation: str) -> list[str]:
    """For the report."""
    gain = re.fullmatch(r"affine_clamp\((.+), 0\.0, -3e\+38, 3e\+38\)", activation)
    if gain is not None:
        return [f"times {gain[1]}"]
    return [activation] if activation != "identity" else []


def prologue_of(module: nn.Module, x: fx.Node, rank: int) -> Prologue | None:
    """What makes x at inference, if it is used for nothing else than x, whose own uses are the caller's concern."""
    sandbox = Sandbox(module, torch.float64)
    nodes: list[fx.Node] = []
    norm: Norm | None = None
    activation = "identity"
    found: Prologue | None = None
    node = x
    while norm is None:
        source = _only_tensor(node)
        if source is None or (node is not x and len(node.users) != 1) or len(readers(source)) != 1:
            break
        norm = _norm(module, node)
        spec = _activation(sandbox, source, node, rank) if norm is None else "identity"
        if spec is None or (spec != "identity" and activation != "identity"):
            break
        activation = spec if spec != "identity" else activation
        nodes.insert(0, node)
        node = source
        if norm is not None or activation != "identity":
            found = Prologue(source, tuple(nodes), norm, activation)
    return found if found is not None and found.activation.partition("(")[0] in IN_FRONT else None


def epilogue_of(module: nn.Module, y: fx.Node, rank: int, training: bool) -> Epilogue | None:
    """What is made of y alone, in this mode, and of what is added to it."""
    sandbox = Sandbox(module, torch.float64, training)
    nodes: list[fx.Node] = []
    residual: fx.Node | None = None
    activation: str | None = "identity"
    found: Epilogue | None = None
    node = y
    while len(node.users) == 1 and activation == "identity":
        (user,) = node.users
        pair = operands(module, user, "add")
        if pair is not None:
            other = pair[1] if pair[0] is node else pair[0]
            if residual is not None or other is node or (writes(user) and pair[0] is not node):
                break
            residual = other
        else:
            activation = _activation(sandbox, node, user, rank) if _only_tensor(user) is node else None
            if activation is None:
                break
        nodes.append(user)
        node = user
        if residual is not None or activation != "identity":
            more = Epilogue(user, tuple(nodes), residual, activation)
            found = more if _keeps(module, more) else found
    return found


def _keeps(module: nn.Module, found: Epilogue) -> bool:
    """Whether the op may keep for its backward what it does of an addition with an activation: y behind relu, else the
    residual.

    Nothing in this graph may write to that; and if it comes from or goes to the caller, who could, then eager must keep
    it as well. Until the op has read it nothing may write to the residual in any case.
    """
    residual, last, activation = found.residual, found.last, found.activation
    if residual is None:
        return True
    writers = [user for user in residual.users if writes(user, module, residual)]
    if activation in ("identity", "relu"):
        if any(user < last for user in writers):
            return False
        # relu by its values may be clamp(z, min=0), of which eager keeps z and leaves y to be written to
        written = any(user.op == "output" or writes(user, module, last) for user in last.users)
        return activation == "identity" or not written or _is_relu(module, last)
    shared = residual.op == "placeholder" or any(user.op == "output" for user in residual.users)
    return not writers and (not shared or any(_saves_input(module, user) for user in residual.users))


def _is_relu(module: nn.Module, node: fx.Node) -> bool:
    """Whether it is torch's own relu, which keeps its result."""
    if node.op == "call_module":
        return type(attribute(module, str(node.target))) is nn.ReLU
    return kind_of(node) == "relu"


def _saves_input(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return next(attribute(module, str(node.target)).parameters(), None) is not None
    return kind_of(node) in KEEPS_INPUT


def pointwise_behind(module: nn.Module, y: fx.Node, rank: int) -> Pointwise | None:
    """The convolution that alone reads y, and what is made of its result alone."""
    only = next(iter(y.users)) if len(y.users) == 1 else None
    found = _pointwise(module, only) if only is not None else None
    if only is None or found is None or found[1] is not y:
        return None
    layer, nodes, norm = found[0], [only], None
    checks = rank_checks(only)  # true for every tensor that the convolution may return
    others = [user for user in only.users if user not in checks]
    if len(others) == 1 and (norm := _norm(module, others[0])) is not None:
        nodes += [*checks, *others]
    more = epilogue_of(module, nodes[-1], rank, training=False)
    residual, activation = (more.residual, more.activation) if more is not None else (None, "identity")
    nodes += more.nodes if more is not None else ()
    return Pointwise("input", y, nodes[-1], tuple(nodes), layer, norm, residual, activation)


def pointwise_before(module: nn.Module, v: fx.Node) -> Pointwise | None:
    """The convolution that v is the result of."""
    found = _pointwise(module, v)
    return None if found is None else Pointwise("output", found[1], v, (v, *rank_checks(v)), found[0])


def _pointwise(module: nn.Module, node: fx.Node) -> tuple[Layer, fx.Node] | None:
    """(layer, input) of a 1x1 convolution."""
    if node.op == "call_module":
        convolves = isinstance(attribute(module, str(node.target)), _ConvNd)
    else:
        convolves = kind_of(node) == "convolution"
    stage = _stage(module, node) if convolves else None
    return (
        (stage.part, stage.input)
        if stage is not None and isinstance(stage.part, Layer) and stage.kind == "fc"
        else None
    )


def maker_of(module: nn.Module, node: fx.Node) -> list[str] | None:
    """Path of the module, if it is one, that made ``node``, a tensor that has its memory to itself; None if it may
    share it.
    """
    if node.op == "call_function" and kind_of(node) in NEW and not writes(node):
        return []
    if node.op != "call_module":
        return None
    part = attribute(module, str(node.target))
    kind = type(part)
    layer = isinstance(part, _ConvNd | _BatchNorm | nn.Linear) and kind.__module__.startswith("torch.nn.modules.")
    activation = kind.__module__ == "torch.nn.modules.activation" and not getattr(part, "inplace", False)
    return [str(node.target)] if layer or (activation and _only_tensor(node) is not None) else None


def _only_tensor(node: fx.Node) -> fx.Node | None:
    """The one node that ``node`` is computed from, parameters and buffers not counted."""
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    inputs = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return inputs[0] if len(inputs) == 1 else None


def _stage(module: nn.Module, node: fx.Node) -> Stage | None:
    try:
        return stage_of(module, node)
    except (Refused, AttributeError):
        return None


def _norm(module: nn.Module, node: fx.Node) -> Norm | None:
    stage = _stage(module, node)
    return stage.part if stage is not None and isinstance(stage.part, Norm) else None


def _activation(sandbox: Sandbox, source: fx.Node, node: fx.Node, rank: int) -> str | None:
    """The activation that ``node`` is of ``source``, "identity" for modules alone; None for anything else."""
    if node.op == "call_module":
        if has_tensors(attribute(sandbox.module, str(node.target))):
            return None
    elif len(node.all_input_nodes) != 1:
        return None
    shape = [2, 4, 3, 5, 2][:rank]

    def piece(z: Tensor) -> Tensor:
        made: Any = sandbox.run(node, {source: z.reshape(shape)})
        if not isinstance(made, Tensor) or list(made.shape) != shape:
            raise Refused("neighbours", "not elementwise")
        return made.reshape(-1)

    try:
        with torch.no_grad():
            found = probe(piece, torch.Size(shape).numel())
    except Exception as error:  # whatever somebody's code does with these values
        note(Refused("neighbours", "it is no function of single elements", node=node), error)
        return None
    if found is None or found.add_one or (found.spec == "identity" and node.op != "call_module"):
        return None
    return found.spec

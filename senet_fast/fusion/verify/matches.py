"""What was recognised and does hold: excitations of which the op computes the values and gradients."""

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.graph.functions import quantized_operands
from senet_fast.fusion.graph.refusal import Refused, first_line, note
from senet_fast.fusion.graph.sandbox import Sandbox
from senet_fast.fusion.graph.sizes import Number, hint
from senet_fast.fusion.recognise.arithmetic import operands
from senet_fast.fusion.recognise.excitation import Excitation, Path
from senet_fast.fusion.recognise.match import Match, candidate, unknown_product
from senet_fast.fusion.verify.comparison import difference, differentiated, shape_to_try


def find(module: nn.Module, graph: fx.Graph) -> tuple[list[Match], list[Refused]]:
    """Excitations in a graph of ``module``, and the near misses; what is none is noted."""
    matches, refused = [], []
    for node in graph.nodes:
        pair = operands(module, node, "multiply") or quantized_operands(node)  # the latter to say that it is left
        if pair is None and (unknown := unknown_product(module, node)) is not None:
            note(unknown)
        for x, scale in (pair, pair[::-1]) if pair is not None else ():
            try:
                match = candidate(module, node, x, scale)
                if match is not None:
                    excitation = verified(module, match.x, match.y, match.excitation)
                    matches.append(replace(match, excitation=excitation))
                    break
            except Refused as reason:
                note(reason)
                if reason.near:
                    refused.append(reason)
    return matches, refused


def verified(module: nn.Module, x: fx.Node, y: fx.Node, excitation: Excitation, number: Number = hint) -> Excitation:
    """``excitation``, for inference only if it differs in training or has norms, which may; Refused if the op's
    results are not those of the graph.
    """
    try:
        differs = _difference(module, x, y, excitation, False, number)
    except Exception as error:  # whatever somebody's code does on a copy
        raise Refused("check", f"its check failed: {type(error).__name__}: {first_line(error)}", near=True) from error
    if differs:
        raise Refused("check", f"the op's {differs} differ from its own", near=True)
    trains = not excitation.norms and holds_in_training(module, x, y, excitation, number)
    return excitation if trains else excitation.for_inference()


def holds_in_training(module: nn.Module, x: fx.Node, y: fx.Node, excitation: Excitation, number: Number = hint) -> bool:
    """Whether the op's results are those of the graph where its modules are in training mode."""
    try:
        return not _difference(module, x, y, excitation, True, number)
    except Exception as error:  # whatever somebody's code does in training mode
        note(Refused("check", "it can not be checked in training mode", node=y), error)
        return False


def _difference(
    module: nn.Module, x: fx.Node, y: fx.Node, excitation: Excitation, training: bool, number: Number
) -> str:
    """What differs for any number of axes; "" for nothing."""
    for rank, dim in excitation.dims:
        sandbox = Sandbox(module, torch.float32, training, seed=rank, number=number)
        if differs := _difference_in(sandbox, x, y, excitation, shape_to_try(rank, dim, excitation.channels)):
            return differs
    return ""


def _difference_in(sandbox: Sandbox, x: fx.Node, y: fx.Node, excitation: Excitation, shape: list[int]) -> str:
    def get(path: Path) -> Tensor:
        return sandbox.get(str(path))  # type: ignore[no-any-return]

    inputs = [sandbox.random(sandbox.shape_of(x) or shape)]
    tensors = [get(p) for layer in excitation.layers for p in (layer.weight, layer.bias) if p is not None]
    own = differentiated(lambda v: sandbox.run(y, {x: v}), inputs, lambda: tensors)
    return difference(own, differentiated(lambda v: excitation(v, get), inputs, lambda: tensors))

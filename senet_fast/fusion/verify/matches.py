"""What was recognised and does hold: excitations of which the op computes the values and gradients."""

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.graph.functions import operands_of_function
from senet_fast.fusion.graph.refusal import Refused, first_line, note
from senet_fast.fusion.graph.sandbox import Sandbox
from senet_fast.fusion.graph.sizes import Number, hint
from senet_fast.fusion.graph.tracing import View
from senet_fast.fusion.recognise.arithmetic import operands
from senet_fast.fusion.recognise.excitation import Excitation, Path
from senet_fast.fusion.recognise.match import candidate, unknown_product
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.verify.comparison import difference, differentiated, shape_to_try


def find(view: View) -> tuple[list[Site], list[Refused]]:
    """The excitations in it, and the near misses; what is none is noted."""
    module, found, refused = view.module, [], []
    for node in view.graph.nodes:
        pair = operands(module, node, "multiply") or operands_of_function(node, "quantized")  # to say that it is left
        if pair is None and (unknown := unknown_product(module, node)) is not None:
            note(unknown)
        for x, scale in (pair, pair[::-1]) if pair is not None else ():
            try:
                site = candidate(module, node, x, scale)
                if site is not None:
                    site.excitation = verified(module, site)
                    found.append(site)
                    break
            except Refused as reason:
                note(reason)
                if reason.near:
                    refused.append(reason)
    return found, refused


def verified(module: nn.Module, site: Site, number: Number = hint) -> Excitation:
    """Its excitation, for inference only if it differs in training or has norms, which may; Refused if the op's
    results are not those of the graph.
    """
    try:
        differs = _difference(module, site, False, number)
    except Exception as error:  # whatever somebody's code does on a copy
        raise Refused("check", f"its check failed: {type(error).__name__}: {first_line(error)}", near=True) from error
    if differs:
        raise Refused("check", f"the op's {differs} differ from its own", near=True)
    trains = not site.excitation.norms and holds_in_training(module, site, number)
    return site.excitation if trains else replace(site.excitation, inference_only=True)


def holds_in_training(module: nn.Module, site: Site, number: Number = hint) -> bool:
    """Whether the op's results are those of the graph where its modules are in training mode."""
    try:
        return not _difference(module, site, True, number)
    except Exception as error:  # whatever somebody's code does in training mode
        note(Refused("check", "it can not be checked in training mode", node=site.y), error)
        return False


def _difference(module: nn.Module, site: Site, training: bool, number: Number) -> str:
    """What differs for any number of axes; "" for nothing."""
    excitation = site.excitation
    for rank, dim in excitation.dims:
        sandbox = Sandbox(module, torch.float32, training, seed=rank, number=number)
        shape = shape_to_try(rank, dim, excitation.channels)
        if differs := _difference_in(sandbox, site.x, site.y, excitation, shape):
            return differs
    return ""


def _difference_in(sandbox: Sandbox, x: fx.Node, y: fx.Node, excitation: Excitation, shape: list[int]) -> str:
    def get(path: Path) -> Tensor:
        return sandbox.get(str(path))  # type: ignore[no-any-return]

    inputs = [sandbox.random(sandbox.shape_of(x) or shape)]
    tensors = [get(p) for layer in excitation.layers for p in (layer.weight, layer.bias) if p is not None]
    own = differentiated(lambda v: sandbox.run(y, {x: v}), inputs, lambda: tensors)
    return difference(own, differentiated(lambda v: excitation(v, get), inputs, lambda: tensors))

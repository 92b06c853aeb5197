"""A 1x1 convolution beside an SE block, and its norm, in one op with the block at inference.

docs/design/gated-convolution.md says why the numbers are the same. Hooks, exchanged layers, gradients, exporters and
whatever else needs the modules' own calls turn it off.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from senet_fast.models.layers import ECA, NormSE, fold, is_affine
from senet_fast.se import FusedSE
from senet_fast.se.beside import convolve, pays
from senet_fast.se.guards import costs_nothing_in_front, freezes, is_plain, is_untouched, only_inference, plain_weights
from senet_fast.se.kept import Tensors
from senet_fast.se.module import weights_for_op
from senet_fast.se.ops import folded


class Beside(NamedTuple):
    """What the op reads at this call, in the place of three modules.

    norm: a BatchNorm's running mean and variance, weight and bias, with its ``eps``; or a scale alone, without.
    excitation: the block's weights, with its ``options`` of the op.
    """

    weight: Tensor
    bias: Tensor | None
    norm: tuple[Tensor | None, ...]
    eps: float | None
    excitation: tuple[Any, ...]
    options: dict[str, Any]


def beside(x: Tensor, conv: nn.Module, norm: nn.Module | Tensor, se: nn.Module, post_activation: str) -> Beside | None:
    """Of a 1x1 convolution, what scales its result (a BatchNorm, or a scale [C_out]) and the SE block on either side.

    None where they must be called, or where a graph is compiled in which weights are no constants.

    Args:
        x: given to the first of them, or to what stands in front of them.
        post_activation: that the SE block is expected to apply.
    """
    if not isinstance(se, (FusedSE, ECA)) or not is_plain(x) or x.device.type != "cpu" or not only_inference():
        return None
    # Asked before the modules are: what is read of them, Dynamo looks at in each call of what it has compiled.
    if torch.compiler.is_dynamo_compiling() and not freezes():
        return None
    compiling = is_compiling()
    pair = plain_weights(conv, nn.Conv2d, compiling)
    if pair is None or pair[0].shape[2:] != (1, 1):
        return None
    if conv.stride != (1, 1) or conv.padding != (0, 0) or conv.groups != 1:
        return None
    kind = FusedSE if isinstance(se, FusedSE) else ECA
    if not is_untouched(se, kind, compiling) or se.post_activation != post_activation:
        return None
    tensors: tuple[Any, ...]
    if isinstance(norm, Tensor):
        tensors, eps = (norm,), None
    elif is_affine(norm, compiling):
        tensors, eps = (norm.running_mean, norm.running_var, norm.weight, norm.bias), norm.eps
    else:
        return None
    options: dict[str, Any]
    if isinstance(se, ECA):
        excitation, options = se.for_op(x), {"excitation": "channel_conv"}
    else:
        excitation = weights_for_op(se, x, se.fc1, se.fc2) if se.dim == 1 else None
        options = {"activation": se.activation, "gate": se.gate, "add_one": se.add_one}
    return None if excitation is None else Beside(*pair, tensors, eps, excitation, options)


def leads(front: nn.Module, x: Tensor) -> bool:
    """Whether ``front`` is a BatchNorm, with or without ReLU, that the op behind it takes along. ``x`` as above."""
    compiling = is_compiling()
    if not isinstance(front, NormSE) or costs_nothing_in_front(x):
        return False
    plain = is_untouched(front, NormSE, compiling) and is_untouched(front.se, nn.Identity, compiling)
    return plain and is_affine(front.norm, compiling)


def convolved(
    owner: nn.Module,
    name: str,
    found: Beside,
    v: Tensor,
    residual: Tensor | None = None,
    *,
    side: str = "output",
    post_activation: str,
    front: NormSE | None = None,
) -> Tensor | None:
    """With u = front(v), which :func:`leads` has to allow, or v::

        side "output":  y = post_activation(se(norm(conv(u))) + residual)
        side "input":   y = post_activation(norm(conv(se(u))) + residual)

    None where calls of the modules are faster, or would do something else. ``name``: of the convolution's weight in
    ``owner``, for what is prepared of it.
    """
    weight, bias, norm, eps, excitation, of_block = found

    def sources() -> list[Tensor]:
        return [tensor for tensor in (weight, bias, *norm, *excitation) if tensor is not None]

    def collect() -> Tensors:
        # Folded in float32, or it would be rounded once more than in the module.
        scale, shift = (norm[0], None) if eps is None else folded(norm, eps, torch.float32)
        return weight, bias, scale, shift, excitation

    hidden = excitation[0].shape[0] if len(excitation) == 4 else None
    if v.dim() != 4 or not pays(side, v, weight, residual, hidden, sources):
        return None
    options = of_block | {"side": side, "post_activation": post_activation}
    if front is not None:
        options["pre_scale"], options["pre_shift"] = fold(front.norm)
        options["pre_activation"] = "relu" if front.relu_first or front.relu_last else "identity"
    return convolve(owner, name, v, sources, collect, residual, **options)

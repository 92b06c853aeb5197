"""What was prepared of a convolution's weights beside a gate, kept until one of them changes."""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from senet_fast.se.conv import Prepared, prepare

LOG = logging.getLogger("senet_fast.fuse")
MAX_CHANGES = 4  # behind each other, with no call in between that finds the weights as they were

# weight, bias, scale and shift of the norm behind, and the weights of the excitation
Tensors = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Sequence[Any]]


@dataclass
class _Kept:
    """What was made of weights whose fingerprint was ``state``; ``changes``: calls in a row that found another."""

    state: Any = None
    made: Any = None
    changes: int = 0


# Of each module, by the name of the convolution's weight. Copies and pickles of the module have none.
_kept: WeakKeyDictionary[nn.Module, dict[Hashable, _Kept]] = WeakKeyDictionary()


def prepare_all(tensors: Tensors, side: str, excitation: str, dtype: torch.dtype, channels_last: bool) -> Prepared:
    """:func:`senet_fast.se.conv.prepare` of these."""
    weight, bias, scale, shift, (fc1_weight, fc1_bias, *_) = tensors
    return prepare(
        *(weight, bias, fc1_weight, fc1_bias),
        side=side,
        norm_scale=scale,
        norm_shift=shift,
        excitation=excitation,
        dtype=dtype,
        channels_last=channels_last,
    )


def kept(
    owner: nn.Module,
    name: Hashable,
    sources: list[Tensor],
    collect: Callable[[], Tensors],
    *how: Any,
) -> tuple[Tensors, Prepared | None]:
    """What ``collect`` makes of ``sources``, and what was prepared of it; both made anew when one of the sources is
    another tensor or has been written to. Inference tensors, which count no writes, must not be among them.

    Kept for ``name`` as long as ``owner`` lives. ``how``: the last four arguments of :func:`prepare_all`. Weights that
    change at every call (an ensemble that takes turns in one module) are not worth preparing: then None.
    """
    state = (torch.ops.senet_fast.fingerprint(sources), how)
    entry = _kept.setdefault(owner, {}).setdefault(name, _Kept())
    if entry.state == state and entry.made is not None:
        entry.changes = 0
        return entry.made  # type: ignore[no-any-return]
    entry.changes = 1 if entry.state == state else entry.changes + 1
    entry.state, entry.made = state, None
    with torch.no_grad():
        weight, bias, scale, shift, excitation = collect()
        # No parameters, whose hooks may lead back to the module and keep it for ever.
        plain = [None if t is None else t.detach() for t in (bias, *excitation)]
        tensors = (weight.detach(), plain[0], scale, shift, plain[1:])
        if entry.changes <= MAX_CHANGES:
            entry.made = (tensors, prepare_all(tensors, *how))
            return entry.made  # type: ignore[no-any-return]
    if entry.changes == MAX_CHANGES + 1:
        LOG.warning("%s changes at every call: the convolution beside the gate is not prepared", name)
    return tensors, None


def forget(owner: nn.Module) -> None:
    """Release what is kept of a module that does without from now on."""
    _kept.pop(owner, None)

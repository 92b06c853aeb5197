"""What a row measures: a whole network in a pass (Mode), or one of its SE layers alone (Case)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PASSES = (("forward", 1), ("forward", 16), ("step", 8))
FORWARDS = PASSES[:2]
ECAPA = "ecapa"  # the one network here that takes sound: [batch, frames, mels]
FRAMES, MELS = 300, 80
PIXELS = {"inception_resnet_v2": 299}  # others: 224


class Mode(NamedTuple):
    """One row of a table of networks: ``kind`` is "forward" (inference) or "step" (of training)."""

    network: str
    kind: str = "forward"
    batch: int = 1
    layout: str = "nchw"  # a key of LAYOUTS
    dtype: str = "fp32"  # a key of DTYPES

    @property
    def id(self) -> str:
        return " ".join(map(str, self))

    def input(self, batch: int | None = None) -> Tensor:
        """Random [batch, 3, pixels, pixels], or [batch, frames, mels]; of the mode's own batch size by default."""
        pixels = PIXELS.get(self.network, 224)
        sizes = (FRAMES, MELS) if self.network == ECAPA else (3, pixels, pixels)
        x = torch.randn(batch or self.batch, *sizes, dtype=DTYPES[self.dtype])
        return x.contiguous(memory_format=LAYOUTS[self.layout])


def modes(
    networks: Sequence[str],
    passes: Sequence[tuple[str, int]] = PASSES,
    layouts: Sequence[str] = tuple(LAYOUTS),
    dtypes: Sequence[str] = ("fp32",),
) -> list[Mode]:
    """A row for each combination."""
    return [
        Mode(network, kind, batch, layout, dtype)
        for network in networks
        for dtype in dtypes
        for layout in (("nchw",) if network == ECAPA else layouts)
        for kind, batch in passes
    ]


class Layer(NamedTuple):
    """One SE shape of a network: x is [batch, channels, *spatial]; `blocks` of the network have it."""

    network: str
    blocks: int
    channels: int
    spatial: tuple[int, ...]
    hidden: int
    activation: str
    gate: str


class Case(NamedTuple):
    """A layer at a batch size, layout and dtype (keys of LAYOUTS and DTYPES), and a pass where a table has several."""

    layer: Layer
    batch: int = 8
    layout: str = "nchw"
    dtype: str = "fp32"
    kind: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.layer.channels, *self.layer.spatial

    @property
    def id(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.layer.network} {shape} r{self.layer.hidden} {self.layout} {self.dtype} {self.kind}".strip()

    @property
    def bytes(self) -> int:
        """Of x."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def input(self, device: str = "cpu") -> Tensor:
        """Random x."""
        x = torch.randn(self.shape, device=device).to(DTYPES[self.dtype])
        return x.contiguous(memory_format=LAYOUTS[self.layout])

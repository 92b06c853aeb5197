"""Whole SE-ResNet-50: with SEBlock, with FusedSE, with FusedSE that takes the residual tail, and without SE."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.gpu.clock import Body, Clock, noted, take_turns
from senet_fast.models import se_resnet50, se_resnet_digits
from senet_fast.se import FusedSE, SEBlock

BATCHES = {"forward": 128, "step": 64}  # step: forward and backward

# The argument se of the network.
VERSIONS: dict[str, Any] = {
    "no SE": False,
    "SEBlock": SEBlock,
    "FusedSE": FusedSE,
    "FusedSE, tails": True,  # SE, addition and ReLU at the end of every residual block in one op
}


def prepare(network: nn.Module, images: Tensor, kind: str) -> list[Body]:
    network.train(kind == "step")
    if kind == "forward":
        return [torch.no_grad()(partial(network, images))]
    labels = torch.arange(len(images), device=images.device) % 10
    parameters = list(network.parameters())
    return [lambda: torch.autograd.grad(cross_entropy(network(images).float(), labels), parameters)]


def measure(clock: Clock, tiny: bool) -> list[dict[str, Any]]:
    """Rows of seconds for a batch, bfloat16 and channels_last, each version in a CUDA graph."""
    make, channels, pixels = (se_resnet_digits, 1, 8) if tiny else (se_resnet50, 3, 224)
    rows = []
    for kind, batch in BATCHES.items():
        images = torch.randn(2 if tiny else batch, channels, pixels, pixels, device=clock.device).bfloat16()
        images = images.contiguous(memory_format=torch.channels_last)
        problems: dict[str, str] = {}
        calls = {}
        for name, se in VERSIONS.items():
            with noted(problems, name):
                torch.manual_seed(0)
                network = make(se=se).to(clock.device, torch.bfloat16, memory_format=torch.channels_last)
                calls[name] = clock.record(partial(prepare, network, images, kind))
        seconds = take_turns(clock, calls)
        rows.append({"kind": kind, "batch": len(images), "seconds": seconds, "problems": problems})
        calls.clear()
        if clock.device == "cuda":
            torch.cuda.empty_cache()
    return rows

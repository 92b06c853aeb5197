"""Swap the SE blocks of an SE-ResNet-50 for FusedSE, compare the outputs, and time network and blocks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from senet_fast.demo.measure import interleave
from senet_fast.models import se_resnet50
from senet_fast.se import FusedSE, SEBlock


@dataclass
class Sizes:
    """How much to run: images per pass, pixels, seconds of timing for the network and for each stage."""

    batch: int = 8
    pixels: int = 224
    network_seconds: float = 12.0
    stage_seconds: float = 1.5
    compile: bool = True


@dataclass
class Stage:
    """One SE shape [batch, channels, pixels, pixels] and the median seconds of each contender, None where it failed."""

    shape: tuple[int, int, int, int]
    seconds: dict[str, float | None]
    difference: float  # of FusedSE from SEBlock, relative to the largest output
    believable: bool  # False: other programs took the cores during nearly every call


@dataclass
class Network:
    """SE-ResNet-50 before and after the swap."""

    swapped: int
    difference: float
    seconds: dict[str, float]
    believable: bool
    batch: int
    stages: list[Stage]
    compile_error: str | None


def photographs(count: int, pixels: int) -> Tensor:
    """[count, 3, pixels, pixels]: crops of the two photographs that scikit-learn ships, mean 0 and deviation 1."""
    from sklearn.datasets import load_sample_images  # here: benchmarks use the rest of this file without scikit-learn

    crops = []
    for index in range(count):
        photograph = torch.tensor(load_sample_images().images[index % 2], dtype=torch.float32)  # [427, 640, 3]
        top, left = (index * 37) % (427 - pixels), (index * 61) % (640 - pixels)
        crops.append(photograph[top : top + pixels, left : left + pixels].permute(2, 0, 1))
    images = torch.stack(crops)
    return (images - images.mean()) / images.std()


def calibrate(network: nn.Module, images: Tensor) -> None:
    """Fill the BatchNorm statistics from one pass, so that a network with random weights has activations of size 1."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average over passes
    network.train()
    network(images)
    for norm in norms:
        norm.momentum = 0.1
    network.eval()


def swap(network: nn.Module) -> int:
    """Replace every SEBlock by a FusedSE that shares its parameters; returns how many."""
    swapped = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SEBlock):
                setattr(parent, name, FusedSE.from_block(child))
                swapped += 1
    return swapped


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def stage_inputs(network: nn.Module, images: Tensor) -> list[tuple[SEBlock, Tensor]]:
    """The last SE block of each stage with the x it sees, from one pass over the images."""
    seen: dict[SEBlock, Tensor] = {}
    blocks = [module for module in network.modules() if isinstance(module, SEBlock)]
    hooks = [block.register_forward_hook(lambda block, x, y: seen.update({block: x[0]})) for block in blocks]
    network(images)
    for hook in hooks:
        hook.remove()
    return list({seen[block].shape: (block, seen[block]) for block in blocks}.values())


def compiled(block: SEBlock, x: Tensor) -> tuple[Callable[[Tensor], Any] | None, str | None]:
    """The block under torch.compile, already compiled for x; or None and why not (it needs a C++ compiler)."""
    torch._dynamo.reset()
    function = torch.compile(block, dynamic=False)
    try:
        function(x)
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return function, None


@torch.no_grad()
def run(sizes: Sizes) -> Network:
    torch.manual_seed(0)
    images = photographs(sizes.batch, sizes.pixels)
    with tqdm(total=10 if sizes.compile else 6, desc="SE-ResNet-50, calibrating", unit="part") as progress:
        plain = se_resnet50()
        calibrate(plain, photographs(2 * sizes.batch, sizes.pixels))
        fused = copy.deepcopy(plain)
        swapped = swap(fused)
        progress.update()

        progress.set_description("SE-ResNet-50, timing the network")
        difference = relative_difference(plain(images), fused(images))
        contenders = {"SEBlock": lambda: plain(images), "FusedSE": lambda: fused(images)}
        seconds = interleave(contenders, sizes.network_seconds, calls=1)
        inputs = stage_inputs(plain, images)
        progress.update()

        functions, error = [], None
        if sizes.compile:
            progress.set_description("SE-ResNet-50, torch.compile of the four SE shapes")
            for block, x in inputs:
                function, problem = compiled(block, x)
                functions.append(function)
                error = error or problem
                progress.update()

        progress.set_description("SE-ResNet-50, timing the SE shapes")
        stages = []
        for place, (block, x) in enumerate(inputs):
            stages.append(time_stage(block, x, functions[place] if functions else None, sizes.stage_seconds))
            progress.update()
    return Network(swapped, difference, dict(seconds), seconds.believable, sizes.batch, stages, error)


def time_stage(block: SEBlock, x: Tensor, function: Callable[[Tensor], Any] | None, seconds: float) -> Stage:
    fused, y = FusedSE.from_block(block), torch.empty_like(x)
    contenders: dict[str, Callable[[], object]] = {"eager": lambda: block(x)}
    if function is not None:
        contenders["torch.compile"] = lambda: function(x)
    contenders |= {"fused": lambda: fused(x), "copy": lambda: y.copy_(x)}
    times: dict[str, float | None] = {"eager": None, "torch.compile": None, "fused": None, "copy": None}
    taken = interleave(contenders, seconds)
    times |= taken
    batch, channels, height, width = x.shape
    difference = relative_difference(block(x), fused(x))
    return Stage((batch, channels, height, width), times, difference, taken.believable)

"""fuse() an SE-ResNet-50 as people run it, compare the outputs, and time network and blocks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from senet_fast.fusion import fuse
from senet_fast.measure import Speed, calibrate, interleave, moved, relative_difference
from senet_fast.models import se_resnet50
from senet_fast.se import FusedSE, SEBlock

DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Sizes:
    """How much to run: images per pass, pixels, seconds of timing for the network and each stage."""

    batch: int = 4
    pixels: int = 224
    network_seconds: float = 8.0  # each setting
    stage_seconds: float = 1.0
    compile: bool = True


@dataclass
class Stage:
    """One SE shape [batch, channels, pixels, pixels] and the median seconds of each contender, None where it failed."""

    shape: tuple[int, int, int, int]
    seconds: dict[str, float | None]
    difference: float  # of FusedSE from SEBlock, relative to the largest output
    believable: bool  # False: other programs took the cores during nearly every call


@dataclass
class Setting:
    """SE-ResNet-50 in one type, eager and channels_last, before and after fuse()."""

    dtype: str
    seconds: dict[str, float]
    speed: Speed
    errors: dict[str, float]  # of the outputs, from float32 before, relative to the largest
    believable: bool


@dataclass
class Network:
    """The whole network in each setting, and its SE shapes alone."""

    fused: int
    batch: int
    settings: list[Setting]
    stages: list[Stage]
    compile_error: str | None


def photographs(count: int, pixels: int) -> Tensor:
    """[count, 3, pixels, pixels]: crops of the two photographs that scikit-learn ships, mean 0 and deviation 1."""
    from sklearn.datasets import load_sample_images

    crops = []
    for index in range(count):
        photograph = torch.tensor(load_sample_images().images[index % 2], dtype=torch.float32)  # [427, 640, 3]
        top, left = (index * 37) % (427 - pixels), (index * 61) % (640 - pixels)
        crops.append(photograph[top : top + pixels, left : left + pixels].permute(2, 0, 1))
    images = torch.stack(crops)
    return (images - images.mean()) / images.std()


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


@torch.inference_mode()
def time_setting(plain: nn.Module, fused: nn.Module, images: Tensor, dtype: torch.dtype, seconds: float) -> Setting:
    exact = plain(images)
    before, after = (copy.deepcopy(network).to(dtype) for network in (plain, fused))
    for network in (before, after):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.to(dtype, memory_format=torch.channels_last)
    errors = {
        name: relative_difference(exact, network(images).float())
        for name, network in (("before", before), ("after", after))
    }
    contenders = {"before": lambda: before(images), "after": lambda: after(images)}
    times = interleave(contenders, seconds, rounds=6, calls=1, timed=moved)
    name = str(dtype).removeprefix("torch.")
    return Setting(name, dict(times), times.speed("before", "after"), errors, times.believable)


@torch.no_grad()
def run(sizes: Sizes) -> Network:
    torch.manual_seed(0)
    images = photographs(sizes.batch, sizes.pixels)
    parts = 1 + len(DTYPES) + (8 if sizes.compile else 4)
    with tqdm(total=parts, desc="SE-ResNet-50, calibrating", unit="part") as progress:
        plain = se_resnet50()
        calibrate(plain, photographs(2 * sizes.batch, sizes.pixels))
        fused = copy.deepcopy(plain)
        report = fuse(fused)
        progress.update()

        settings = []
        for dtype in DTYPES:
            progress.set_description(f"SE-ResNet-50, timing the network, {dtype}")
            settings.append(time_setting(plain, fused, images, dtype, sizes.network_seconds))
            progress.update()

        inputs = stage_inputs(plain, images)
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
    return Network(len(report.fused), sizes.batch, settings, stages, error)


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

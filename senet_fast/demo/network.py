"""fuse() two networks as people run them, compare the outputs, and time networks and blocks."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from senet_fast.fusion import fuse
from senet_fast.measure import Forward, Speed, calibrate, frozen, interleave, moved, relative_difference
from senet_fast.models import create
from senet_fast.se import FusedSE, SEBlock

NETWORKS = {"resnet50": "SE-ResNet-50", "mobilenet_v1": "SE-MobileNet"}
EAGER, FROZEN = "eager", "frozen torch.compile"


@dataclass
class Sizes:
    """How much to run: images in the SE shapes, pixels, seconds of timing for each setting and stage."""

    batch: int = 4
    pixels: int = 224
    network_seconds: float = 2.0  # each setting
    stage_seconds: float = 0.5
    compile: bool = True

    @staticmethod
    def of(quick: bool) -> "Sizes":
        return Sizes(2, 64, 0.0, 0.05, False) if quick else Sizes()


@dataclass
class Stage:
    """One SE shape [batch, channels, pixels, pixels] and the median seconds of each contender, None where it failed."""

    shape: tuple[int, int, int, int]
    seconds: dict[str, float | None]
    difference: float  # of FusedSE from SEBlock, relative to the largest output
    believable: bool  # False: other programs took the cores during nearly every call


@dataclass
class Setting:
    """A network in one type and mode, channels_last, before and after fuse()."""

    network: str
    images: int
    mode: str
    dtype: str
    seconds: dict[str, float]
    speed: Speed
    errors: dict[str, float]  # of the outputs, from float32 before, relative to the largest
    believable: bool


@dataclass
class Network:
    """Whole networks in each setting, and the SE shapes of SE-ResNet-50 alone.

    ``fused``: blocks of each network. ``notes``: what was left out, and why.
    """

    fused: dict[str, int]
    settings: list[Setting]
    stages: list[Stage]
    notes: list[str]


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


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def compiled(block: SEBlock, x: Tensor) -> tuple[Callable[[Tensor], Any] | None, str | None]:
    """The block under torch.compile, already compiled for x; or None and why not (it needs a C++ compiler)."""
    torch._dynamo.reset()
    function = torch.compile(block, dynamic=False)
    try:
        with without_trials():
            function(x)
    except Exception as error:
        return None, first_line(error)
    return function, None


@contextmanager
def without_trials() -> Iterator[None]:
    """Inductor would try for 12 s whether the compiler knows this processor's vectors; if not, it says so anyway."""
    from torch._inductor import config as inductor_config

    with inductor_config.patch("cpp.vec_isa_ok", True):
        yield


@torch.no_grad()
def compile_stages(batch: int, pixels: int) -> None:
    """Compile the SE shapes in another process than :func:`run`, which then finds them in Inductor's cache."""
    for stage in range(4):
        channels, side = 256 << stage, pixels // 4 >> stage
        compiled(SEBlock(channels), torch.zeros(batch, channels, side, side))


@dataclass
class Pair:
    """A network before and after fuse(), and photographs."""

    name: str
    before: nn.Module
    after: nn.Module
    images: Tensor
    fused: int

    @staticmethod
    def made(key: str, images: Tensor) -> "Pair":
        torch.manual_seed(0)
        before = create(key, se=SEBlock)
        calibrate(before, photographs(4, images.shape[-1]))
        after = copy.deepcopy(before)
        return Pair(NETWORKS[key], before, after, images, len(fuse(after).fused))


@torch.inference_mode()
def prepared(pair: Pair, mode: str, dtype: torch.dtype) -> Callable[[float], Setting]:
    """Both networks in this type and mode, compiled if that is the mode; what is returned times them."""
    exact = pair.before(pair.images)
    images = pair.images.to(dtype, memory_format=torch.channels_last)
    calls: dict[str, Forward] = {}
    for name, network in (("before", pair.before), ("after", pair.after)):
        network = copy.deepcopy(network).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        calls[name] = frozen(network, images) if mode == FROZEN else network
    errors = {name: relative_difference(exact, call(images).float()) for name, call in calls.items()}
    contenders = {name: partial(call, images) for name, call in calls.items()}

    @torch.inference_mode()
    def time_both(seconds: float) -> Setting:
        times = interleave(contenders, seconds, rounds=6, calls=1, timed=moved)
        speed = times.speed("before", "after")
        kind = str(dtype).removeprefix("torch.")
        return Setting(pair.name, len(images), mode, kind, dict(times), speed, errors, times.believable)

    return time_both


@torch.no_grad()
def run(sizes: Sizes, ready: Callable[[], object]) -> Network:
    """``ready``: called when all that is compiled is compiled; nothing is timed before it returns."""
    images = photographs(sizes.batch, sizes.pixels)
    compiles = sizes.compile
    settings: list[Callable[[float], Setting]] = []
    notes: list[str] = []
    with tqdm(total=10 + (5 if compiles else 0), desc="networks, calibrating", unit="part") as progress:

        def step(what: str) -> None:
            progress.update()
            progress.set_description(what)

        large, small = (Pair.made(key, images[:1]) for key in NETWORKS)
        settings.append(prepared(large, EAGER, torch.float32))
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            settings.append(prepared(large, EAGER, torch.bfloat16))
        else:
            notes.append("bfloat16 is left out: torch's convolutions have no instructions for it on this processor.")
        settings.append(prepared(small, EAGER, torch.float32))
        if compiles:
            step("compiling SE-MobileNet, a minute at most")
            try:
                with without_trials():
                    settings.append(prepared(small, FROZEN, torch.float32))
            except Exception as error:  # without a C++ compiler, say; the report tells
                notes.append(f"torch.compile of SE-MobileNet failed: {first_line(error)}")

        step("waiting for the training in another process")
        ready()
        timed = []
        for setting in settings:
            step("timing SE-ResNet-50 and SE-MobileNet")
            timed.append(setting(sizes.network_seconds))
        stages = []
        for block, x in stage_inputs(large.before, images):
            function = None
            if compiles:
                step("torch.compile of an SE shape")
                function, problem = compiled(block, x)
                if problem:
                    notes.append(f"torch.compile of an SE block failed: {problem}")
            step("timing the SE shapes")
            stages.append(time_stage(block, x, function, sizes.stage_seconds))
        progress.update(progress.total - progress.n)
    return Network({pair.name: pair.fused for pair in (large, small)}, timed, stages, notes)


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

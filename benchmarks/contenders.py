"""Whole networks, their versions, and the pass that is timed: what tables of networks have in common."""

import copy
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.libraries import define_torchvision_operators
from benchmarks.modes import DTYPES, ECAPA, LAYOUTS, MELS, Mode
from senet_fast import fuse, models
from senet_fast.measure import Forward, calibrate, interleave, moved, relative_difference, wake
from senet_fast.models.layers import SE
from senet_fast.se import SEBlock

OWN = "SE-ResNet-50"  # of senet_fast.models: with SEBlock, and with se=True, which takes over BatchNorm and addition
CALIBRATION_IMAGES = 8
TOLERANCE = 1e-4  # float32, against the largest output
SOURCES = {  # others: timm
    **dict.fromkeys(("mobilenet_v3_large", "mobilenet_v3_small", "regnet_y_400mf"), "torchvision"),
    ECAPA: "speechbrain",
}
# Blocks that `without_se` knows, by full name, so that neither package has to be installed.
BLOCKS = {
    "timm.layers.squeeze_excite.SEModule",
    "timm.models._efficientnet_blocks.SqueezeExcite",
    "torchvision.ops.misc.SqueezeExcitation",
}
# torch.compile as it is; with the op after `fused`.
compiled: Callable[[nn.Module], Forward] = partial(torch.compile, dynamic=False)


def create(mode: Mode) -> nn.Module:
    """The network of another package with random weights, calibrated, in the mode's type, layout and train or eval."""
    torch.manual_seed(0)
    source = SOURCES.get(mode.network, "timm")
    if source == "speechbrain":
        sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # speechbrain imports it; not for the network
        network: nn.Module = importlib.import_module("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN(MELS)
    else:
        define_torchvision_operators()
        package: Any = importlib.import_module(source)
        network = (
            package.models.get_model(mode.network) if source == "torchvision" else package.create_model(mode.network)
        )
    wake(network)
    calibrate(network, mode._replace(dtype="fp32").input(CALIBRATION_IMAGES))
    return prepared(network, mode)


def own(mode: Mode, name: str, **places: SE) -> dict[str, nn.Module]:
    """A network of senet_fast.models for each `se`; those with SE have the same weights and statistics."""
    torch.manual_seed(0)
    made = {key: models.create(name, se=se) for key, se in places.items()}
    images = mode.input(CALIBRATION_IMAGES)
    first: nn.Module | None = None
    for key, network in made.items():
        if places[key] and first is not None:
            network.load_state_dict(first.state_dict())
            continue
        calibrate(network, images)
        first = network if places[key] else first
    return {key: prepared(network, mode) for key, network in made.items()}


def prepared(network: nn.Module, mode: Mode) -> nn.Module:
    network = network.to(DTYPES[mode.dtype]).to(memory_format=LAYOUTS[mode.layout])  # type: ignore[call-overload]
    return network.train(mode.kind == "step")


def fused(network: nn.Module) -> tuple[nn.Module, int]:
    """A fused copy, and how many blocks of it are."""
    network = copy.deepcopy(network)
    count = len(fuse(network).fused)
    if count == 0:
        raise AssertionError(f"no block of {type(network).__name__} was fused")
    return network, count


def pair(mode: Mode) -> tuple[dict[str, nn.Module], int]:
    """A network "eager" and "fused", with the same weights, and the number of blocks."""
    if mode.network == OWN:
        made = own(mode, "resnet50", eager=SEBlock, fused=True)
        return made, sum(isinstance(module, SEBlock) for module in made["eager"].modules())
    eager = create(mode)
    other, blocks = fused(eager)
    return {"eager": eager, "fused": other}, blocks


def without_se(network: nn.Module) -> nn.Module:
    """A copy whose SE blocks do nothing."""
    network = copy.deepcopy(network)
    found = [
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if f"{type(child).__module__}.{type(child).__qualname__}" in BLOCKS
    ]
    for parent, name in found:
        setattr(parent, name, nn.Identity())
    if not found:
        raise AssertionError(f"{type(network).__name__} has no SE block that is known here")
    return network


def passing(network: Forward, kind: str, x: Tensor) -> Callable[[], Any]:
    """One pass: "forward" in inference mode, or "step": forward, loss, backward and SGD with momentum."""
    if kind == "forward":
        return torch.inference_mode()(lambda: network(x))
    assert isinstance(network, nn.Module)
    labels = torch.arange(len(x))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(x).flatten(1), labels).backward()
        optimizer.step()

    return step


def agree(what: str, expected: Tensor, actual: Tensor, tolerance: float = TOLERANCE) -> float:
    """How far these are apart, relative to the largest of `expected`; no time counts where that is too far."""
    difference = relative_difference(expected.float(), actual.float())
    if not difference <= tolerance:
        raise AssertionError(f"{what}: the outputs differ by {difference:.1e} of the largest")
    return difference


@torch.inference_mode()
def check(mode: Mode, expected: nn.Module, actual: nn.Module, x: Tensor, tolerance: float = TOLERANCE) -> float:
    """`agree` for two networks at inference, in whose half types rounding alone may be larger than any tolerance."""
    training = expected.training
    outputs = [network.eval()(x) for network in (expected, actual)]
    for network in (expected, actual):
        network.train(training)
    return agree(mode.id, *outputs, tolerance if mode.dtype == "fp32" else float("inf"))


def in_turns(calls: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """The times of a row of whole networks."""
    times = interleave(calls, seconds, rounds=5, timed=moved)
    return {"seconds": times, "believable": times.believable}

"""Replaces the SE blocks of timm's and torchvision's networks that are measured here.

By hand, a row for each class: in place and with fused tails, which `senet_fast.fuse` does not do yet.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from senet_fast.se import FusedSE


class Names(NamedTuple):
    """What a block calls its layers."""

    fc1: str
    activation: str
    fc2: str
    gate: str


# By full name, so that neither package has to be installed.
BLOCKS = {
    "timm.layers.squeeze_excite.SEModule": Names("fc1", "act", "fc2", "gate"),
    "timm.models._efficientnet_blocks.SqueezeExcite": Names("conv_reduce", "act1", "conv_expand", "gate"),
    "torchvision.ops.misc.SqueezeExcitation": Names("fc1", "activation", "fc2", "scale_activation"),
}


def fused(block: nn.Module, **options: Any) -> FusedSE:
    """A FusedSE with these options that shares the parameters of a block of BLOCKS.

    Options that FusedSE lacks (timm's add_maxpool, norm_layer) are not looked for: compare the outputs.
    """
    fc1, activation, fc2, gate = (getattr(block, name) for name in BLOCKS[full_name(block)])
    module = FusedSE(
        fc1.in_channels, hidden_channels=fc1.out_channels, activation=spec(activation), gate=spec(gate), **options
    ).train(block.training)
    module.fc1, module.fc2 = fc1, fc2
    return module


def replace(network: nn.Module, make: Callable[[nn.Module], nn.Module]) -> int:
    """Put `make(block)` in the place of every block; returns how many."""
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if full_name(child) in BLOCKS
    ]
    for parent, name, block in found:
        setattr(parent, name, make(block))
    return len(found)


def fuse_tails(network: nn.Module) -> None:
    """Make SE, addition and ReLU at the end of timm's bottlenecks one op; in place at inference."""
    replace(network, partial(fused, post_activation="relu", inplace=True))
    for block in network.modules():
        if full_name(block) == "timm.models.resnet.Bottleneck":
            block.forward = partial(_bottleneck, block)


def _bottleneck(block: Any, x: Tensor) -> Any:
    shortcut = x if block.downsample is None else block.downsample(x)
    x = block.act1(block.bn1(block.conv1(x)))
    x = block.act2(block.bn2(block.conv2(x)))
    return block.se(block.bn3(block.conv3(x)), shortcut)


def full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def spec(activation: nn.Module) -> str:
    """timm has classes of its own beside those of torch.nn, with the same names."""
    return type(activation).__name__.lower()

"""What the papers print, and how the networks' own counts are taken."""

from typing import Any, NamedTuple

import torch
from torch import nn

from senet_fast.models import create, inception_resnet
from senet_fast.models.layers import NormSE
from senet_fast.se import FusedSE


class Published(NamedTuple):
    """``multiply_adds`` as arXiv 1709.01507 prints them, in 1e9 (tables 2, 13, 15) or 1e6 (table 3), and ours.

    Ours are those of convolutions and classifiers, the squeeze, the excitation and the residual additions. Where the
    two differ in the last digit, the paper's also have some other of the element-wise operations, which it does not
    specify; all of them together would be more than the difference.
    """

    name: str
    options: dict[str, Any]
    printed: str
    ours: str
    unit: float = 1e9
    pixels: int = 224


V1 = {
    "stride_in_first": True
}  # as in He et al.; with the stride in the 3x3, as ResNeXt has it, 4.09e9 instead of 3.86e9
SE = {"se": True}
MULTIPLY_ADDS = [
    Published("resnet50", V1, "3.86", "3.86"),
    Published("resnet50", V1 | SE, "3.87", "3.87"),
    Published("resnet101", V1, "7.58", "7.58"),
    Published("resnet101", V1 | SE, "7.60", "7.59"),
    Published("resnet152", V1, "11.30", "11.30"),
    Published("resnet152", V1 | SE, "11.32", "11.32"),
    Published("resnext50_32x4d", {}, "4.24", "4.24"),
    Published("resnext50_32x4d", SE, "4.25", "4.24"),
    Published("resnext101_32x4d", {}, "7.99", "7.98"),
    Published("resnext101_32x4d", SE, "8.00", "7.99"),
    Published("vgg16_bn", {}, "15.47", "15.47"),
    Published("vgg16_bn", SE, "15.48", "15.48"),
    Published("bn_inception", {}, "2.03", "2.03"),
    Published("bn_inception", SE, "2.04", "2.03"),
    Published("resnet50", V1 | SE | {"integration": "3x3"}, "3.86", "3.87"),  # table 15; 3.865e9
    Published("mobilenet_v1", {}, "569", "569", 1e6),
    Published("mobilenet_v1", SE, "572", "572", 1e6),
    Published("shufflenet_v1", {}, "140", "139", 1e6),
    Published("shufflenet_v1", SE, "142", "141", 1e6),
]
# Table 2 has 11.75 and 11.76 for a re-implementation of Inception-ResNet-v2 that was never published. The network its
# own authors published has 13.16; figure 15 of arXiv 1602.07261 has half the blocks: 9.26.
INCEPTION_RESNET = [
    Published("inception_resnet_v2", {}, "11.75", "13.17", 1e9, 299),
    Published("inception_resnet_v2", SE, "11.76", "13.19", 1e9, 299),
]


def on_meta(name: str, **options: Any) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return create(name, **options).eval()


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, pixels: int) -> int:
    """As :class:`Published` says, for one image."""
    total = 0

    def layer(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        maps = output[0, 0].numel() if output.dim() == 4 else 1
        total += maps * module.weight.numel()

    def excitation(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        total += inputs[0].numel() + module.fc1.weight.numel() + module.fc2.weight.numel()

    def tail(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if len(inputs) == 2 or isinstance(module, inception_resnet.Residual) else 0

    inside = {layer for module in network.modules() if isinstance(module, FusedSE) for layer in module.children()}
    for module in network.modules():
        if isinstance(module, FusedSE):
            module.register_forward_hook(excitation)
        elif module in inside:
            continue
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(layer)
        elif isinstance(module, NormSE | inception_resnet.Residual):
            module.register_forward_hook(tail)
    network(torch.empty(1, 3, pixels, pixels, device="meta"))
    return total

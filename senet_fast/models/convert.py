"""Weights of timm's and torchvision's ResNets for ours: ``load("timm/seresnet50", state_dict)``."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from senet_fast.models import create

# theirs -> the arguments of `create`. The legacy networks are Caffe's: their pooling rounds up, and legacy_seresnet has
# the stride in the first 1x1.
_CAFFE: dict[str, Any] = {"se": True, "padded_pool": False}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "torchvision/resnet50": ("resnet50", {}),
    "torchvision/resnet101": ("resnet101", {}),
    "torchvision/resnet152": ("resnet152", {}),
    "torchvision/resnext50_32x4d": ("resnext50_32x4d", {}),
    "timm/seresnet50": ("resnet50", {"se": True}),
    "timm/seresnet101": ("resnet101", {"se": True}),
    "timm/seresnet152": ("resnet152", {"se": True}),
    "timm/seresnext50_32x4d": ("resnext50_32x4d", {"se": True}),
    "timm/seresnext101_32x4d": ("resnext101_32x4d", {"se": True}),
    "timm/legacy_seresnet50": ("resnet50", {**_CAFFE, "stride_in_first": True}),
    "timm/legacy_seresnet101": ("resnet101", {**_CAFFE, "stride_in_first": True}),
    "timm/legacy_seresnet152": ("resnet152", {**_CAFFE, "stride_in_first": True}),
    "timm/legacy_seresnext50_32x4d": ("resnext50_32x4d", _CAFFE),
    "timm/legacy_seresnext101_32x4d": ("resnext101_32x4d", _CAFFE),
    "timm/legacy_senet154": ("senet154", {}),
}
_LAYERS = {
    **{"conv1": "branch.0", "bn1": "branch.1", "conv2": "branch.3", "bn2": "branch.4.norm", "conv3": "branch.5"},
    **{"bn3": "tail.norm", "se": "tail.se", "se_module": "tail.se"},
    **{"downsample.0": "shortcut.0", "downsample.1": "shortcut.1"},
}
_STEM = re.compile(r"(?:layer0\.)?(conv|bn)(\d)\.(.+)")
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(downsample\.\d|\w+)\.(.+)")
_CLASSIFIER = re.compile(r"(?:fc|last_linear)\.(.+)")


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names, from a ResNet with bottlenecks of timm or torchvision.

    Raises:
        ValueError: a name that such a network does not have.
    """
    return {_name(name): tensor for name, tensor in state_dict.items()}


def _name(name: str) -> str:
    if match := _BLOCK.fullmatch(name):
        stage, block, layer, rest = match.groups()
        if layer in _LAYERS and stage != "0":
            return f"stages.{int(stage) - 1}.{block}.{_LAYERS[layer]}.{rest}"
    elif match := _STEM.fullmatch(name):
        kind, place, rest = match.groups()
        return f"stem.{3 * (int(place) - 1) + (kind == 'bn')}.{rest}"
    elif match := _CLASSIFIER.fullmatch(name):
        return f"head.classifier.{match[1]}"
    raise ValueError(f"state_dict has {name!r}; expected the names of a ResNet with bottlenecks of timm or torchvision")


def load(source: str, state_dict: Mapping[str, Tensor], **options: Any) -> nn.Module:
    """Our network with the very tensors of ``state_dict``, in eval mode; equal outputs within rounding.

    Args:
        source: a key of ``SOURCES``: the package and the name of its network.
        state_dict: of that network, with any number of classes.
        options: as for :func:`senet_fast.models.create`, such as ``se=SEBlock``.

    Raises:
        ValueError: an unknown source or name. RuntimeError: tensors of another network.
    """
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; expected one of {', '.join(SOURCES)}")
    converted = convert(state_dict)
    name, defaults = SOURCES[source]
    with torch.device("meta"):
        network = create(name, len(converted["head.classifier.weight"]), **(defaults | options))
    network.load_state_dict(converted, assign=True)
    return network.eval()

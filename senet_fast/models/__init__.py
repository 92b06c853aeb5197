"""The networks of the SE paper and its kin, plain and with SE: ``create("resnet50", se=True)``.

docs/networks.md lists them with their parameters and multiply-adds.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from senet_fast.models import inception, inception_resnet, mobilenet, resnet, shufflenet, vgg
from senet_fast.models.layers import ECA
from senet_fast.models.resnet import ResNet, se_resnet50, se_resnet_digits

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **resnet.NETWORKS,
    **vgg.NETWORKS,
    **inception.NETWORKS,
    **inception_resnet.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet.NETWORKS,
}


def create(name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
    """A network with random weights: images [B, 3, H, W] -> logits [B, num_classes].

    Args:
        name: a key of ``NETWORKS``.
        num_classes: 1000 by default, 10 for "resnet_digits".
        options: ``se=True`` for SE blocks fused with their neighbours, or a factory ``se(channels, reduction)``;
            ``reduction`` of the SE blocks (16); for ResNets also ``integration`` and the fields of ``ResNetConfig``.

    Raises:
        ValueError: an unknown name. TypeError: an option that this network does not have.
    """
    if name not in NETWORKS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(NETWORKS)}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    return NETWORKS[name](**options)


__all__ = ["ECA", "NETWORKS", "ResNet", "create", "se_resnet50", "se_resnet_digits"]

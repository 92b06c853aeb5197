"""Networks for the demo and the benchmarks, with the SE block as an argument."""

from senet_fast.models.resnet import ResNet, se_resnet50, se_resnet_digits

__all__ = ["ResNet", "se_resnet50", "se_resnet_digits"]

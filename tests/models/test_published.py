"""Parameters and multiply-adds are those that the papers print; nothing is allocated (meta device)."""

import math

import pytest
from published import INCEPTION_RESNET, MULTIPLY_ADDS, Published, multiply_adds, on_meta, parameters

from senet_fast.se import FusedSE


@pytest.mark.parametrize("row", MULTIPLY_ADDS + INCEPTION_RESNET, ids=lambda row: f"{row.name} {row.options}")
def test_multiply_adds(row: Published) -> None:
    count = multiply_adds(on_meta(row.name, **row.options), row.pixels) / row.unit
    digits = len(row.printed.partition(".")[2])
    assert f"{count:.{digits}f}" == row.ours
    if row not in INCEPTION_RESNET:
        assert abs(float(row.printed) - float(row.ours)) < 1.5 * 10**-digits


@pytest.mark.parametrize(
    ("reduction", "millions"), [(2, 45.7), (4, 35.7), (8, 30.7), (16, 28.1), (32, 26.9), (None, 25.6)]
)
def test_parameters_by_reduction(reduction: int | None, millions: float) -> None:
    """arXiv 1709.01507, table 10: SE-ResNet-50. The table rounds up: every row agrees so, and no other way."""
    options = {"se": True, "reduction": reduction} if reduction else {}
    assert math.ceil(parameters(on_meta("resnet50", **options)) / 1e5) / 10 == millions


@pytest.mark.parametrize(
    ("name", "se", "millions"),
    [
        ("mobilenet_v1", False, 4.2),
        ("mobilenet_v1", True, 4.7),
        ("shufflenet_v1", False, 1.8),
        ("shufflenet_v1", True, 2.4),
    ],
)
def test_parameters_of_mobile_networks(name: str, se: bool, millions: float) -> None:
    """arXiv 1709.01507, table 3, which cuts the digits behind the first (ShuffleNet has 1.87 and 2.48 million)."""
    assert math.floor(parameters(on_meta(name, se=se)) / 1e5) / 10 == millions


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet50", {}, 25_557_032),  # torchvision resnet50
        ("resnet101", {}, 44_549_160),  # torchvision resnet101
        ("resnet152", {}, 60_192_808),  # torchvision resnet152
        ("resnext50_32x4d", {}, 25_028_904),  # torchvision resnext50_32x4d
        ("vgg16_bn", {}, 138_365_992 - 4_224),  # torchvision vgg16_bn, without the biases in front of BatchNorm
        ("mobilenet_v1", {}, 4_231_976),  # the network of arXiv 1704.04861 with BatchNorm; 4.2 million there
        ("inception_resnet_v2", {}, 55_843_464),  # timm inception_resnet_v2
        ("bn_inception", {}, 11_295_240 - 10_016),  # the Caffe model, without the biases in front of BatchNorm
        ("resnet50", {"se": True}, 28_088_024),  # timm seresnet50
        ("resnet101", {"se": True}, 49_326_872),  # timm seresnet101
        ("resnet152", {"se": True}, 66_821_848),  # timm seresnet152
        ("resnext50_32x4d", {"se": True}, 27_559_896),  # timm seresnext50_32x4d
        ("resnext101_32x4d", {"se": True}, 48_955_416),  # timm seresnext101_32x4d
        ("senet154", {}, 115_088_984),  # timm legacy_senet154
        ("eca_resnet50", {}, 25_557_032 + 86),  # widths 5, 5, 5, 7 in 3, 4, 6, 3 blocks; as timm ecaresnet50d adds
    ],
)
def test_parameters(name: str, options: dict[str, object], count: int) -> None:
    assert parameters(on_meta(name, **options)) == count


def test_se_3x3_parameters() -> None:
    """arXiv 1709.01507, table 15, rounded up like table 10."""
    assert math.ceil(parameters(on_meta("resnet50", se=True, integration="3x3")) / 1e5) / 10 == 25.8


def test_channels_of_table_1() -> None:
    """arXiv 1709.01507, table 1: `fc, [16, 256]` and so on."""
    for name in ("resnet50", "resnext50_32x4d"):
        blocks = [module for module in on_meta(name, se=True).modules() if isinstance(module, FusedSE)]
        sizes = [(block.fc1.out_channels, block.fc1.in_channels) for block in blocks]
        assert sizes == [(16, 256)] * 3 + [(32, 512)] * 4 + [(64, 1024)] * 6 + [(128, 2048)] * 3

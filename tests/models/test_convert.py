"""Networks of timm and torchvision and ours on their weights give equal outputs, where those packages are installed."""

from typing import Any

import needs
import pytest
import torch
from torch import nn

from senet_fast.models.convert import SOURCES, convert, load
from senet_fast.se import SEBlock

# One of each kind: the others differ in the number of blocks, which their names are compared for.
RUN = (
    "torchvision/resnet50",
    "torchvision/resnext50_32x4d",
    "timm/seresnet50",
    "timm/seresnext50_32x4d",
    "timm/legacy_seresnet50",
    "timm/legacy_seresnext50_32x4d",
    "timm/legacy_senet154",
)


def theirs(source: str, **options: Any) -> nn.Module:
    package, name = source.split("/")
    if package == "timm":
        network: nn.Module = needs.library("timm").create_model(name, num_classes=7)
    else:
        network = needs.library("torchvision").models.get_model(name, num_classes=7)
    return network.eval()


@pytest.mark.parametrize("source", RUN)
def test_outputs_are_equal(source: str) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        network = theirs(source)
    network.to_empty(device="cpu")
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if not tensor.is_floating_point():
            tensor.zero_()
        elif tensor.dim() > 1:
            tensor.data.uniform_(-1, 1).mul_((3 / tensor[0].numel()) ** 0.5)
        else:
            low, high = (0.5, 1.0) if name.endswith(("weight", "var")) else (-0.2, 0.2)
            tensor.data.uniform_(low, high)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        y = load(source, network.state_dict())(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("source", SOURCES)
def test_every_name_and_shape(source: str) -> None:
    with torch.device("meta"):
        network = theirs(source)
    ours = load(source, network.state_dict())
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert {name: tensor.shape for name, tensor in convert(network.state_dict()).items()} == shapes


def test_options_and_errors() -> None:
    with pytest.raises(ValueError, match="source is 'timm/resnet9000'; expected one of torchvision/resnet50, "):
        load("timm/resnet9000", {})
    with pytest.raises(ValueError, match=r"state_dict has 'layer1\.0\.bn4\.weight'; expected the names of a ResNet"):
        convert({"layer1.0.bn4.weight": torch.zeros(1)})
    with torch.device("meta"):
        network = theirs("timm/seresnet50")
    ours = load("timm/seresnet50", network.state_dict(), se=SEBlock)
    assert sum(type(module) is SEBlock for module in ours.modules()) == 16
    with pytest.raises(RuntimeError, match="size mismatch"):
        load("timm/seresnext50_32x4d", network.state_dict())

"""State dicts of the real SE blocks of torchvision and timm, as docs/loading.md says.

`make test` installs neither of the two, since pip might replace torch for them: these tests are skipped where they are
missing.
"""

from collections.abc import Callable

import needs
import pytest
import torch
from torch import nn

from senet_fast.se import FusedSE

CHANNELS, HIDDEN = 24, 6


def torchvision_block(activation: type[nn.Module], gate: type[nn.Module]) -> nn.Module:
    return needs.library("torchvision").ops.SqueezeExcitation(CHANNELS, HIDDEN, activation, gate)


def timm_module(activation: type[nn.Module], gate: type[nn.Module]) -> nn.Module:
    module = needs.library("timm.layers").SEModule
    return module(CHANNELS, rd_channels=HIDDEN, act_layer=activation, gate_layer=gate)


def timm_efficientnet_block(activation: type[nn.Module], gate: type[nn.Module]) -> nn.Module:
    module = needs.library("timm.models._efficientnet_blocks").SqueezeExcite
    return module(CHANNELS, rd_channels=HIDDEN, act_layer=activation, gate_layer=gate)


@pytest.mark.parametrize("make", [torchvision_block, timm_module, timm_efficientnet_block])
@pytest.mark.parametrize(("activation", "gate"), [(nn.ReLU, nn.Sigmoid), (nn.SiLU, nn.Hardsigmoid)])
def test_state_dict_loads(make: Callable[..., nn.Module], activation: type[nn.Module], gate: type[nn.Module]) -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), make(activation, gate))
    fused = FusedSE(CHANNELS, hidden_channels=HIDDEN, activation=activation, gate=gate)
    ours = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), fused)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_state_dict_without_bias_loads() -> None:
    block = needs.library("timm.layers").SEModule(CHANNELS, rd_channels=HIDDEN, bias=False)
    fused = FusedSE(CHANNELS, hidden_channels=HIDDEN, bias=False)
    fused.load_state_dict(block.state_dict())
    x = torch.randn(2, CHANNELS, 7, 5)
    torch.testing.assert_close(fused(x), block(x))

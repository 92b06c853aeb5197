"""fuse() on fx.GraphModules: traced and exported models."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import counts_calls, randomize, relative
from lookalikes import CBAMChannel, GateInPlace, OfAnother
from torch import Tensor, fx, nn
from zoo import ECA, C, Effective, Helper, LinearExpand, R

from senet_fast import fuse, unfuse


class MBConv(nn.Module):
    """The block written out in the middle of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.project = nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.Conv2d(C, 3, 1)
        self._se_reduce, self._se_expand = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.conv(x)))
        squeezed = self._se_expand(F.silu(self._se_reduce(F.adaptive_avg_pool2d(y, 1))))
        return self.project(torch.sigmoid(squeezed) * y) + x[:, :, 1:-1, 1:-1]


def network() -> nn.Module:
    return nn.Sequential(MBConv(), nn.Conv2d(3, C, 1), LinearExpand(), ECA(), Effective(), Helper(), OfAnother())


def converted(model: nn.Module, how: str, x: Tensor) -> fx.GraphModule:
    if how == "traced":
        return fx.symbolic_trace(model)
    return torch.export.export(model, (x,)).module()  # type: ignore[return-value]


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_every_block_of_a_graph(how: str) -> None:
    x = torch.randn(2, 3, 9, 11)
    plain = randomize(network()).eval()
    model = converted(plain, how, x)
    state = model.state_dict()
    code = model.code
    with torch.no_grad():
        expected = plain(x)
        report = fuse(model)
        assert [(e.channels, e.hidden, e.activation) for e in report.fused] == [
            *((C, R, "silu"), (C, R, "relu"), (None, None, "identity"), (C, None, "identity"), (C, R, "silu"))
        ]
        assert not report.skipped
        for fused in (model, copy.deepcopy(model)):
            assert counts_calls(lambda fused=fused: fused(x)) == 5
            assert relative(expected, fused(x)) < 1e-5
        if how == "traced":
            assert relative(expected, pickle.loads(pickle.dumps(model))(x)) < 1e-5
        assert model.state_dict().keys() == state.keys()
        assert not fuse(model).fused
        assert unfuse(model) == 1
        assert model.code == code
        assert counts_calls(lambda: model(x)) == 0


def test_gradients_through_a_graph() -> None:
    x = torch.randn(2, 3, 9, 11)
    plain = randomize(network())
    model = fx.symbolic_trace(copy.deepcopy(plain))
    fuse(model)
    for each in (plain, model):
        each.eval()(x).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert relative(parameter.grad, gradients[name]) < 1e-4, name


@pytest.mark.parametrize("kind", [OfAnother, CBAMChannel, GateInPlace])
def test_lookalikes_in_a_graph_are_left_alone(kind: type[nn.Module]) -> None:
    x = torch.randn(2, C, 5, 6)
    program = torch.export.export(randomize(kind()), (x,))
    assert not fuse(program.module()).fused

"""fuse() on fx.GraphModules: traced and exported models."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import counts_calls, randomize, relative, step
from lookalikes import CBAMChannel, GateInPlace, OfAnother
from torch import Tensor, fx, nn
from zoo import ECA, ZOO, C, Effective, Helper, LinearExpand, R

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


@pytest.mark.parametrize("name", [name for name, case in ZOO.items() if not case.training])
def test_norms_between_layers(name: str) -> None:
    """Folded where the graph has fixed statistics, with gradients; left where it may train them."""
    plain, x = randomize(ZOO[name].make()).eval(), torch.randn(2, C, 5, 7)
    (left,) = fuse(fx.symbolic_trace(plain)).skipped
    assert left.reason == "its norm cannot be folded in a graph that may train it"
    exported = converted(plain, "exported", x)
    fused = copy.deepcopy(exported)
    assert len(fuse(fused).fused) == 1
    (y, gradients), (fused_y, fused_gradients) = (step(model, x) for model in (exported, fused))
    assert relative(y, fused_y) < 1e-5
    assert gradients.keys() == fused_gradients.keys()
    for key, gradient in gradients.items():
        assert relative(gradient, fused_gradients[key]) < 1e-4, key


class DropoutBesideNorm(nn.Module):
    """The norm never trains, the dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(C, R), nn.Linear(R, C), nn.Dropout(0.9)
        self.register_buffer("mean", torch.rand(R))
        self.register_buffer("var", torch.rand(R) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        z = F.batch_norm(self.fc1(x.mean((2, 3))), self.mean, self.var, None, None, False)
        return x * torch.sigmoid(self.fc2(self.drop(F.relu(z))))[:, :, None, None]


def test_what_trains_beside_a_norm_of_fixed_statistics() -> None:
    plain = DropoutBesideNorm()
    model = fx.symbolic_trace(plain)
    (left,) = fuse(model).skipped
    assert left.reason == "it differs in training mode"
    x = torch.randn(2, C, 5, 7)
    results = []
    for each in (plain.train(), model.train()):
        torch.manual_seed(0)
        results.append(each(x))
    assert torch.equal(*results)
    plain.drop = nn.Identity()  # type: ignore[assignment]
    assert len(fuse(fx.symbolic_trace(plain)).fused) == 1


def test_a_graph_that_cannot_be_copied() -> None:
    class Sealed(nn.Linear):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("sealed")

    model = fx.symbolic_trace(nn.Sequential(LinearExpand(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 2)))
    model.add_submodule("3", Sealed(C, 2))
    (left,) = fuse(model).skipped
    assert left.reason == "it can not be copied: TypeError: sealed"

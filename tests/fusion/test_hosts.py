"""fuse() on excitations in the middle of a forward: written out there, or with neighbours that the op takes over."""

import copy

import pytest
import torch
from fusion_testing import assert_same, assert_same_at_inference, counts_calls, randomize, relative
from hosts import HOSTS, LEFT, MBConv
from torch import Tensor, nn
from zoo import C, LinearExpand

from senet_fast import fuse, unfuse


@pytest.mark.parametrize("name", HOSTS)
def test_hosts(name: str) -> None:
    case = HOSTS[name]
    plain = randomize(case.make())
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert not report.skipped
    (entry,) = report.fused
    assert (entry.path, entry.gate) == (case.path, case.gate)
    assert (entry.prologue, entry.epilogue) == (case.prologue, case.epilogue)
    x = torch.randn(case.shape)
    if name != "stochastic_depth":
        assert_same(plain, fused, x)
    assert_same_at_inference(plain.eval(), fused.eval(), x)
    with torch.no_grad():
        assert counts_calls(lambda: fused(x)) == 1
    assert counts_calls(lambda: fused(x)) == 1
    assert counts_calls(lambda: fused.train()(x)) == case.training
    assert unfuse(fused) == 1
    assert counts_calls(lambda: fused.eval()(x)) == 0
    assert type(fused) is type(plain)


@pytest.mark.parametrize("kind", LEFT)
def test_what_a_graph_would_not_show_is_left(kind: type[nn.Module]) -> None:
    plain = randomize(kind())
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    blocks = [(entry.path, entry.prologue, entry.epilogue) for entry in report.fused]
    assert blocks == ([("se", "", "")] if isinstance(plain.se, nn.Module) and kind.__name__ != "ReturnsTheGate" else [])
    assert type(fused) is kind
    x = torch.randn(2, C, 7, 9)
    for training in (False, True):
        torch.testing.assert_close(fused.train(training)(x), plain.train(training)(x), rtol=1e-5, atol=1e-5)


def ops_of(module: nn.Module, *args: Tensor) -> list[str]:
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(function.__name__.partition(".")[0])
            return function(*args, **(kwargs or {}))

    with Record():
        module(*args)
    return names


def test_what_the_op_takes_over_is_not_run() -> None:
    model = randomize(HOSTS["bottleneck"].make()).eval()
    x = torch.randn(2, C, 7, 9)
    with torch.no_grad():
        before = ops_of(model, x)
        fuse(model)
        names = ops_of(model, x)
    assert before.count("native_batch_norm") + before.count("_native_batch_norm_legit_no_training") == 3
    norms = [name for name in names if "batch_norm" in name]
    assert len(norms) == 2
    assert names.count("add_") == 0
    assert names.count("relu_") == 1
    assert names.count("squeeze_excite_into") == 1
    with_gradients = ops_of(model, x)
    assert len([name for name in with_gradients if "batch_norm" in name]) == 3
    assert with_gradients.count("add_") == 0
    assert with_gradients.count("relu_") == 1


class Network(nn.Module):
    """Gives its blocks a rate, the last one another."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([MBConv(), MBConv(), MBConv()])

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, drop_connect_rate=0.5 * index)
        return x


def test_arguments_that_are_no_tensors() -> None:
    plain = randomize(Network())
    fused = copy.deepcopy(plain)
    assert [entry.path for entry in fuse(fused).fused] == ["blocks.0", "blocks.1", "blocks.2"]
    x = torch.randn(2, C, 7, 9)
    assert counts_calls(lambda: fused.eval()(x)) == 3
    assert relative(plain.eval()(x), fused(x)) < 1e-5
    results = []
    for model in (plain, fused):
        torch.manual_seed(3)
        results.append(model.train()(x))
    assert relative(*results) < 1e-5
    assert counts_calls(lambda: fused(x)) == 3
    block = fused.blocks[1]
    assert counts_calls(lambda: block(x)) == counts_calls(lambda: block(inputs=x, drop_connect_rate=None)) == 1
    own = copy.deepcopy(block.eval())
    assert unfuse(own) == 1
    assert counts_calls(lambda: block(x, 0.25)) == 0  # a value that nobody gave before
    assert torch.equal(block(x, 0.25), own(x, 0.25))
    with pytest.raises(TypeError):
        block()
    with pytest.raises(TypeError):
        block(x, 0.25, 1)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class AliasInFront(nn.Module):
    """What the norm reads is x itself where x is channels_last. Inside of ``act``, which is looked into, y is new."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.act, self.se = nn.BatchNorm2d(C), Swish(), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.act(self.bn(x.contiguous(memory_format=torch.channels_last)))).sum((2, 3))


def test_the_memory_of_what_is_in_front_may_be_the_callers() -> None:
    plain = randomize(AliasInFront()).eval()
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.prologue, entry.epilogue) == ("batch_norm, silu", "")
    x = torch.randn(2, C, 6, 7).to(memory_format=torch.channels_last)
    given = x.clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        assert relative(plain(x), fused(given)) < 1e-5
    assert torch.equal(given, x)


class NormGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.act = nn.BatchNorm2d(C), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


class BehindNormGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.se, self.conv = NormGelu(), LinearExpand(), nn.Conv2d(C, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.se(self.front(x)))


def test_a_child_that_only_tells_whose_memory_x_is_stays_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = randomize(BehindNormGelu()).eval()
    (entry,) = fuse(fused).fused
    assert (entry.prologue, entry.epilogue) == ("", "in place")
    called, own = [], NormGelu.forward
    monkeypatch.setattr(NormGelu, "forward", lambda self, x: called.append(1) or own(self, x))  # type: ignore[func-returns-value]
    with torch.no_grad():
        assert counts_calls(lambda: fused(torch.randn(2, C, 5, 7))) == 1
    assert called

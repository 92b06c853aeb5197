"""fuse() where modules add and multiply, and where a bias stands apart from its layer."""

import copy
import importlib
import operator
import pickle
from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from arithmetic import (
    CONV,
    NEAR,
    STYLES,
    Apart,
    CheckedMul,
    HardSigmoid,
    Modules,
    Mul,
    Operation,
    Pool,
    X,
    graph_of,
)
from fusion_testing import Passed, assert_same, assert_same_at_inference, counts_calls, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import quantizable_network
from torch import Tensor, fx, nn
from zoo import C, R

from senet_fast.fusion import fuse, unfuse


def inputs() -> Tensor:
    return torch.randn(X) + torch.randn(X).mean(-1, keepdim=True)


# Not in graph modules, where norms may train and what a child adds of its own does not show.
IN_MODULES_ALONE = ("channels", "norm_behind", "bias_module", "bias_modules")


@pytest.mark.parametrize("name", STYLES)
def test_every_style_is_found(name: str) -> None:
    plain = randomize(STYLES[name]())
    fused = copy.deepcopy(plain)
    report = fuse(nn.Sequential(fused))
    assert not report.skipped
    assert [entry.path for entry in report.fused] == ["0"]
    with torch.no_grad():
        assert counts_calls(lambda: fused.eval()(inputs())) == 1
    assert_same(plain, fused, inputs())
    assert unfuse(fused) == 1


@pytest.mark.parametrize("name", [name for name in STYLES if name not in IN_MODULES_ALONE])
def test_every_style_in_a_graph_module(name: str) -> None:
    plain = graph_of(randomize(STYLES[name]()))
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert not report.skipped
    assert len(report.fused) == 1
    assert_same(plain, fused, inputs())
    assert_same_at_inference(plain.eval(), fused.eval(), inputs())
    assert counts_calls(lambda: fused(inputs())) == 1
    assert unfuse(fused) == 1


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_are_left_and_reported(name: str) -> None:
    make, reasons = NEAR[name]
    plain = randomize(make())
    left = copy.deepcopy(plain)
    report = fuse(nn.Sequential(left))
    assert not report.fused
    told = [entry.reason for entry in (*report.skipped, *report.missed)]
    assert told == reasons
    x = inputs()
    assert torch.equal(plain(x.clone()), left(x.clone()))


class Drawn(nn.Module):
    """Every step by a module or a function, layers of any kind, biases in them, behind them, or none."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        super().__init__()
        self.flat = draw(st.booleans())
        self.squeeze = draw(st.sampled_from([Pool(), nn.AdaptiveAvgPool2d(1), lambda x: x.mean((2, 3), keepdim=True)]))
        self.layers = nn.ModuleList([self._layer(draw, C, R), self._layer(draw, R, C)])
        self.shifts = nn.ParameterList()
        self.places = []
        for layer in self.layers:
            apart = layer.bias is None and draw(st.booleans())
            n = layer.weight.shape[0]
            shape = draw(st.sampled_from([(n,), (1, n)] if self.flat else [(n, 1, 1), (1, n, 1, 1)]))
            self.places.append(draw(st.sampled_from(["behind", "in front"])) if apart else "")
            self.shifts.append(nn.Parameter(torch.randn(shape)))
        self.add = draw(st.sampled_from([torch.add, operator.add, Operation(torch.add)]))
        self.mul = draw(st.sampled_from([torch.mul, operator.mul, Operation(torch.mul), Mul(), CheckedMul()]))
        self.gate = draw(st.sampled_from([torch.sigmoid, nn.Hardsigmoid(), HardSigmoid(0.2, 0.5)]))
        self.gate_first = draw(st.booleans()) and not isinstance(self.mul, CheckedMul)

    def _layer(self, draw: Callable[[st.SearchStrategy[Any]], Any], a: int, b: int) -> nn.Module:
        bias = draw(st.booleans())
        return nn.Linear(a, b, bias=bias) if self.flat else nn.Conv2d(a, b, 1, bias=bias)

    def shifted(self, z: Tensor, at: int) -> Tensor:
        z = self.layers[at](z)
        if not self.places[at]:
            return z
        return self.add(z, self.shifts[at]) if self.places[at] == "behind" else self.add(self.shifts[at], z)

    def forward(self, x: Tensor) -> Tensor:
        s = self.squeeze(x)
        z = self.gate(self.shifted(torch.relu(self.shifted(s.flatten(1) if self.flat else s, 0)), 1))
        z = z[..., None, None] if self.flat else z
        return self.mul(z, x) if self.gate_first else self.mul(x, z)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.data(), st.booleans())
def test_random_styles(data: st.DataObject, graph: bool) -> None:
    plain: nn.Module = randomize(Drawn(data.draw))
    plain = graph_of(plain) if graph else plain
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert (len(report.fused), report.skipped) == (1, [])
    assert_same(plain, fused, inputs())
    assert counts_calls(lambda: fused(inputs())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apart", "operation", "products"])
def test_in_exports_and_compiled(name: str) -> None:
    """Other people's tools see the op in the place of what is found, and the pass of the compiler what it may take."""
    plain = randomize(STYLES[name]()).eval()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    x = inputs()
    with torch.no_grad():
        expected = plain(x)
        exported = torch.export.export(fused, (x,)).module()
        torch.compiler.reset()
        compiled = torch.compile(fused, backend="eager")
        passed = torch.compile(plain, backend=Passed())
        for module in (exported, compiled, passed, pickle.loads(pickle.dumps(fused))):
            assert torch.allclose(module(x), expected, rtol=1e-4, atol=1e-5)
        assert counts_calls(lambda: exported(x)) == 1


class Host(nn.Module):
    """All that stands round a block is modules as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C), nn.ReLU()
        self.se, self.add, self.last = Modules(mul=Operation(torch.mul)), Operation(torch.add), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.add(self.se(self.relu(self.norm(self.conv(x)))), x))


@pytest.mark.parametrize("graph", [False, True])
def test_neighbours_that_are_modules(graph: bool) -> None:
    plain: nn.Module = randomize(Host())
    plain = graph_of(plain) if graph else plain
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.prologue, entry.epilogue) == ("batch_norm, relu", "residual, relu, in place")
    assert_same(plain, fused, inputs())
    assert_same_at_inference(plain.eval(), fused.eval(), inputs())
    seen: list[Tensor] = []
    fused.get_submodule("add").register_forward_hook(lambda *given: seen.append(given[2]))
    assert torch.allclose(plain(inputs()[:1] * 0 + 1), fused(inputs()[:1] * 0 + 1), atol=1e-5)
    assert len(seen) == 1  # what got a hook is called


@pytest.mark.parametrize("graph", [False, True])
def test_a_multiplication_with_a_hook_is_called(graph: bool) -> None:
    plain: nn.Module = randomize(Modules(mul=Operation(torch.mul)))
    plain = graph_of(plain) if graph else plain
    plain.mul.register_forward_hook(lambda *given: 2 * given[2])
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert not report.fused
    assert [entry.reason for entry in report.skipped] == ["mul has hooks"]
    x = inputs()
    assert torch.equal(plain(x), fused(x))


def test_an_addition_that_gets_the_residual_first() -> None:
    class Swapped(Host):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.add(x, self.se(self.relu(self.norm(self.conv(x))))))

    plain = graph_of(randomize(Swapped()))
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert entry.epilogue == "residual, relu, in place"
    assert_same(plain, fused, inputs())
    assert_same_at_inference(plain.eval(), fused.eval(), inputs())


@pytest.mark.parametrize("kind", ["parameter", "buffer", "constant"])
def test_a_bias_apart_that_changes_is_seen(kind: str) -> None:
    plain = randomize(Apart((C - 7,) if kind == "constant" else CONV, kind, conv=kind != "constant"))
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    with torch.no_grad():
        for module in (plain, fused):
            module.b1.add_(1.0)
    assert_same(plain, fused, inputs())
    x = inputs().double()
    if kind == "constant":  # which double() leaves as it is: the module's own code promotes it
        assert torch.equal(plain.double()(x), fused.double()(x))
        assert counts_calls(lambda: fused(x)) == 0
    else:
        assert counts_calls(lambda: fused.double()(x)) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantizable_networks_in_float() -> None:
    """torchvision's, found block by block; once they are prepared for quantization they run their own code."""
    quantization = importlib.import_module("torch.ao.quantization")
    plain = randomize(quantizable_network()).eval()
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert (len(report.fused), report.skipped) == (3, [])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert counts_calls(lambda: fused(x)) == 3
        expected, actual = plain.double()(x.double()), fused.double()(x.double())
        assert float((expected - actual).abs().max() / expected.abs().max()) < 1e-6
    fused = fused.float().train()
    fused.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(fused, inplace=False)
    assert counts_calls(lambda: prepared.eval()(x)) == 0


def onnx_block() -> object:
    """y = relu(x + x * gate), the bias of the second convolution added behind it."""
    onnx = needs.library("onnx")
    helper, numpy_of = onnx.helper, onnx.numpy_helper.from_array
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, *shape: int) -> object:
        return numpy_of(torch.randn(shape, generator=generator).mul_(0.5).numpy(), name)

    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["s"]),
        helper.make_node("Conv", ["s", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c"]),
        helper.make_node("Add", ["c", "b2"], ["z"]),
        helper.make_node("HardSigmoid", ["z"], ["g"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["x", "g"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    weights = [tensor("w1", 5, C, 1, 1), tensor("b1", 5), tensor("w2", C, 5, 1, 1), tensor("b2", 1, C, 1, 1)]
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, C, None, None]) for name in "xy"]
    graph = helper.make_graph(nodes, "block", value[:1], value[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)])


def test_a_network_from_onnx() -> None:
    converter = needs.library("onnx2torch")
    plain = converter.convert(onnx_block())
    assert isinstance(plain, fx.GraphModule)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    (entry,) = report.fused
    assert (entry.gate, entry.epilogue, report.skipped) == ("1 + hardsigmoid", "relu", [])
    assert_same(plain, fused, inputs())
    assert counts_calls(lambda: fused(inputs())) == 1

"""The op in ONNX: every option of it in ONNX Runtime against eager, in standard operators only."""

import io
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from se_testing import BY_NAME, EXCITATIONS, Arguments, make_arguments
from torch import Tensor, nn

from senet_fast.se import FusedSE, decomposition, squeeze_excite
from senet_fast.se.activations import ACTIVATIONS

onnx = needs.library("onnx")
onnxruntime = needs.library("onnxruntime")
needs.library("onnxscript")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("no_gradients"),
]

SPECS = ["leaky_relu(0.2)" if name == "leaky_relu" else name for name in ACTIVATIONS if name != "affine_clamp"]
SPECS.append("affine_clamp(0.2, 0.5, -0.5, 0.75)")
OPS = [torch.ops.senet_fast.squeeze_excite.default, torch.ops.senet_fast.squeeze_excite_prologue.default]


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def exported(module: nn.Module, inputs: Sequence[Tensor], **options: Any) -> bytes:
    """The model's file, checked, with nothing but ONNX's own operators."""
    program = torch.onnx.export(module.eval(), tuple(inputs), dynamo=True, verbose=False, **options)
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    return model.SerializeToString()


def run(model: bytes, inputs: Sequence[Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    results = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    return [torch.from_numpy(y) for y in results]


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


class Cases(nn.Module):
    """The op of the same x and residual with the arguments of each case; an output for each."""

    def __init__(self, cases: Sequence[Arguments]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, x: Tensor, residual: Tensor) -> list[Tensor]:
        given = {"x": x, "residual": residual}
        return [squeeze_excite(**case | {name: given[name] for name in given if name in case}) for case in self.cases]


def options(at: int) -> Iterator[Arguments]:
    """The spec of this number in every place where one can be, beside others; with each neighbour and with none."""
    specs = [SPECS[(at + step) % len(SPECS)] for step in (0, 3, 5, 7)]
    for residual, prologue in itertools.product((False, True), repeat=2):
        chosen: Arguments = dict(zip(("activation", "gate", "post_activation"), specs, strict=False))
        chosen |= {"residual": residual, "add_one": bool((at + residual) % 2)}
        if prologue:
            given = {"pre_scale": torch.rand(19) + 0.5, "pre_shift": torch.randn(19)}
            keep = [{"pre_scale"}, {"pre_shift"}, {*given}, {*given}][at % 4]
            chosen |= {name: t for name, t in given.items() if name in keep} | {"pre_activation": specs[3]}
        yield chosen


@pytest.mark.parametrize("excitation", EXCITATIONS)
def test_every_option(excitation: str) -> None:
    chosen = [each for at in range(len(SPECS)) for each in options(at)]
    cases = [
        make_arguments(BY_NAME["nchw"], excitation=excitation, bias=bool(i % 5), **c) for i, c in enumerate(chosen)
    ]
    module = Cases(cases)
    inputs = [torch.randn_like(cases[0]["x"]) for _ in range(2)]
    results = run(exported(module, inputs), inputs)
    for case, y, expected in zip(chosen, results, module(*inputs), strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}")


@pytest.mark.parametrize("name", ["nchw", "nct", "btc", "ncdhw", "frequency", "matrix"])
def test_free_sizes(name: str) -> None:
    """One graph, as small as that of fixed sizes, for every batch and map."""
    layout = BY_NAME[name]
    shape = list(layout.shape(3, 19))
    module = FusedSE(19, hidden_channels=5, dim=layout.dim, post_activation="relu")
    x, residual = torch.randn(2, *shape)
    free = {d: torch.export.Dim.DYNAMIC for d in range(len(shape)) if d != layout.dim % len(shape)}
    model = exported(module, [x, residual], dynamic_shapes=(free, free))
    for sizes in (shape, [size + 4 if d in free else size for d, size in enumerate(shape)]):
        x, residual = torch.randn(2, *sizes)
        torch.testing.assert_close(run(model, [x, residual])[0], module(x, residual))
    assert operators(model) == operators(exported(module, [x, residual]))


def test_graph_of_a_block() -> None:
    """Nothing is left of options that the block does not use, and no cast."""
    x = torch.randn(2, 32, 5, 6)
    expected = ["ReduceMean", "Gemm", "Relu", "Gemm", "Sigmoid", "Reshape", "Mul"]
    assert operators(exported(FusedSE(32, 4), [x])) == expected
    assert operators(exported(FusedSE(32, 4, inplace=True), [x])) == expected
    with torch.enable_grad():
        assert operators(exported(FusedSE(32, 4), [x])) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("narrow", [False, True])
def test_other_types(dtype: torch.dtype, narrow: bool) -> None:
    """Half types are rounded once, behind the excitation in float32; their weights may be float32."""
    if narrow and dtype == torch.float64:
        pytest.skip("weights of float64 are not narrow")
    arguments = make_arguments(
        BY_NAME["nchw"],
        dtype,
        weight_dtype=torch.float32 if narrow else dtype,
        residual=True,
        post_activation="silu",
        pre_shift=torch.randn(19),
    )
    module, inputs = Cases([arguments]), [arguments["x"], arguments["residual"]]
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(run(exported(module, inputs), inputs), module(*inputs), **tolerance)


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_opsets(opset: int) -> None:
    """Also without the operators that later opsets brought: Gelu (20)."""
    module, x = FusedSE(8, 2, activation="gelu", gate="hardsigmoid", post_activation="mish"), torch.randn(2, 8, 5, 6)
    model = exported(module, [x], opset_version=opset)
    assert onnx.load_model_from_string(model).opset_import[0].version == opset
    torch.testing.assert_close(run(model, [x])[0], module(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_program(strict: bool) -> None:
    """A program of torch.export that was saved and loaded."""
    module, x = FusedSE(8, 2, post_activation="relu", inplace=True).eval(), torch.randn(2, 8, 5, 6)
    residual = torch.randn_like(x)
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x, residual), strict=strict), file)
    file.seek(0)
    program = torch.onnx.export(torch.export.load(file), dynamo=True, verbose=False)
    torch.testing.assert_close(
        run(program.model_proto.SerializeToString(), [x, residual])[0], module(x.clone(), residual)
    )


class Into(nn.Module):
    """A block that may write over what a convolution made, and the op that writes over an input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.se = nn.Conv2d(8, 8, 1), FusedSE(8, 2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.conv(x))
        fc1, fc2 = self.se.fc1, self.se.fc2
        squeeze_excite(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, pre_activation="relu", out=x)
        return y - x


@pytest.mark.parametrize("dynamo", [True, False])
def test_writing_over_inputs(dynamo: bool) -> None:
    module, x = Into().eval(), torch.randn(2, 8, 5, 6)
    model = exported(module, [x.clone()]) if dynamo else by_torchscript(module, [x.clone()])
    torch.testing.assert_close(run(model, [x])[0], module(x.clone()))


def by_torchscript(module: nn.Module, inputs: Sequence[Tensor], **options: Any) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(module.eval(), tuple(t.clone() for t in inputs), file, dynamo=False, opset_version=18, **options)
    assert {node.domain for node in onnx.load_model_from_string(file.getvalue()).graph.node} == {""}
    return file.getvalue()


@pytest.mark.parametrize("excitation", EXCITATIONS)
def test_torchscript(excitation: str) -> None:
    """The older exporter, which gets what the op stands for while it traces."""
    chosen = [case for at in (1, 5, 8) for case in options(at)]
    cases = [make_arguments(BY_NAME["nchw"], excitation=excitation, **case) for case in chosen]
    module, inputs = Cases(cases), [torch.randn_like(cases[0]["x"]) for _ in range(2)]
    model = by_torchscript(module, inputs, dynamic_axes={"x": {0: "batch"}, "r": {0: "batch"}}, input_names=["x", "r"])
    inputs = [torch.cat([t, t]) for t in inputs]
    for y, expected in zip(run(model, inputs), module(*inputs), strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_only_for_onnx(monkeypatch: pytest.MonkeyPatch, fresh_dynamo: None) -> None:
    """Nobody else gets the op in torch's operators: neither for the graph nor for shapes, sizes fixed or free."""
    monkeypatch.setenv("CI", "true")  # as on other people's CI, where Inductor takes no op that has a decomposition

    def refuse(*args: Any, **options: Any) -> Tensor:
        raise AssertionError("decomposed")

    for op in OPS:
        monkeypatch.setitem(decomposition._DECOMPOSITIONS, op, refuse)

    class Both(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            y = squeeze_excite(x, weight, excitation="one_fc")
            return squeeze_excite(y, weight, excitation="one_fc", pre_activation="relu")

    x, weight = torch.randn(2, 8, 3, 5), torch.randn(8, 8)
    for free in (None, {0: torch.export.Dim("batch"), 2: torch.export.Dim("height")}):
        program = torch.export.export(Both(), (x, weight), dynamic_shapes=None if free is None else (free, None))
        assert [node.target for node in program.run_decompositions().graph.nodes if node.target in OPS] == OPS
        run = torch.compile(Both(), fullgraph=True, dynamic=free is not None)
        torch.testing.assert_close(run(x, weight), Both()(x, weight))
        for op in OPS:
            torch.library.opcheck(op, (x, weight), {"excitation": "one_fc"})
    with pytest.raises(Exception, match="decomposed"):
        torch.onnx.export(Both(), (x, weight), dynamo=True, verbose=False)
    with pytest.raises(Exception, match="decomposed"):  # programs that were exported before, and for another purpose
        torch.onnx.export(program, dynamo=True, verbose=False)


def test_import_stays_light(root: Path) -> None:
    program = "import sys, senet_fast.se; print([m for m in sys.modules if m.partition('.')[0].startswith('onnx')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"

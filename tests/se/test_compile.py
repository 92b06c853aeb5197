"""The op as seen by compilers: torch.compile, export, jit. It stays one op in their graphs."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from se_testing import BY_NAME, Arguments, make_arguments, value_and_grads
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from senet_fast.se import FusedSE, reference, squeeze_excite

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
OP = torch.ops.senet_fast.squeeze_excite.default


def compiled(function: Callable[..., Any], *, backend: str = "aot_eager", **options: Any) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def assert_same(function: Callable[..., Tensor], arguments: Arguments, **tolerance: float) -> dict[str, Tensor]:
    """Value and gradients equal those of the plain op."""
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(squeeze_excite, arguments, grad_y)
    results = value_and_grads(function, arguments, grad_y)
    for name, value in results.items():
        torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)
        assert value.stride() == expected[name].stride(), name
    return results


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "btc", "nct_transposed", "sliced_channels"])
def test_compile(layout: str) -> None:
    """Forward and backward in one graph each, no matter how x lies."""
    arguments = make_arguments(BY_NAME[layout], residual=True, post_activation="relu")
    assert_same(compiled(squeeze_excite), arguments)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_inductor(layout: str) -> None:
    """Between generated kernels, with the layouts that Inductor assumes."""
    arguments = make_arguments(BY_NAME[layout])

    def surrounded(x: Tensor, **rest: Any) -> Tensor:
        return squeeze_excite(x * 2 + 1, **rest).relu() + x

    x = arguments["x"]
    run = compiled(surrounded, backend="inductor")
    grad_y = torch.randn_like(x)
    results = value_and_grads(run, arguments, grad_y)
    assert results["y"].stride() == x.stride()
    torch.testing.assert_close(results, value_and_grads(surrounded, arguments, grad_y))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("before", [False, True])
def test_inductor_keeps_the_layout_of_convolutions(layout: str, before: bool) -> None:
    """It runs them in channels_last, and the op between two of them as well: nothing is transposed."""
    first, se, last = nn.Conv2d(3, 32, 3), FusedSE(32), nn.Conv2d(32, 4, 3)
    scale = torch.rand(32) if before else None

    def network(x: Tensor) -> Tensor:
        y = first(x)
        weights = [se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias]
        return last(squeeze_excite(y, *weights, residual=y * 2, pre_scale=scale))

    x = torch.randn(2, 3, 18, 20).contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )
    with torch.no_grad():
        y, (code,) = torch._inductor.utils.run_and_get_code(compiled(network, backend="inductor"), x)
        torch.testing.assert_close(y, network(x))
    (op,) = [line for line in code.splitlines() if "ops.senet_fast" in line and "=" in line and "assert" not in line]
    assert "squeeze_excite_prologue" in op if before else "squeeze_excite.default" in op
    strides = re.search(r"assert_size_stride\(\w+, \(2, 32, 16, 18\), \(([^)]+)\), 'torch.ops.senet_fast", code)
    assert strides is not None
    assert strides[1] == "9216, 1, 576, 32"


@pytest.mark.slow
def test_inductor_training_step_of_a_module() -> None:
    """A compiled network with autocast: forward, backward and the optimizer's effect as without the compiler."""

    def losses(compile_it: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), FusedSE(16, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        x, target = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
        model(x)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = compiled(model, backend="inductor") if compile_it else model
        found = []
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(run(x).float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    plain, with_compiler = losses(False), losses(True)
    assert plain[-1] < plain[0]
    assert with_compiler == pytest.approx(plain, rel=2e-2)


def test_dynamic_shapes_compile_once() -> None:
    """Batch and map may change: one graph for all of them (at first, all sizes differ: equal ones share a symbol)."""
    graphs = 0

    def count(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    weights = make_arguments(BY_NAME["nchw"])
    run = torch.compile(lambda x: squeeze_excite(**weights | {"x": x}) * 2, fullgraph=True, dynamic=True, backend=count)
    for B, H, W in [(2, 6, 13), (3, 4, 7), (6, 8, 9)]:
        x = torch.randn(B, 19, H, W)
        torch.testing.assert_close(run(x), squeeze_excite(**weights | {"x": x}) * 2)
    assert graphs == 1


def test_dynamic_backward() -> None:
    run = compiled(squeeze_excite, dynamic=True)
    for B in (2, 3, 5):
        arguments = make_arguments(BY_NAME["nchw"], B=B, residual=True)
        assert_same(run, arguments)


def test_graph_holds_the_op_and_its_backward() -> None:
    """The compiler sees one fused op each way, not a decomposition."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    seen: dict[str, list[str]] = {}

    def record(name: str) -> Callable[..., Any]:
        def compiler(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
            seen[name] = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(fw_compiler=record("forward"), bw_compiler=record("backward"))
    assert_same(torch.compile(squeeze_excite, fullgraph=True, backend=backend), make_arguments(BY_NAME["nchw"]))
    assert seen["forward"].count("senet_fast.squeeze_excite_forward.default") == 1
    assert seen["backward"].count("senet_fast.squeeze_excite_backward.default") == 1
    assert not any("linear" in target or "mean" in target for targets in seen.values() for target in targets)


def test_compile_without_gradients() -> None:
    arguments = make_arguments(BY_NAME["channels_last"])
    with torch.no_grad():
        assert torch.equal(compiled(squeeze_excite)(**arguments), squeeze_excite(**arguments))
    with torch.inference_mode():
        assert torch.equal(compiled(squeeze_excite)(**arguments), squeeze_excite(**arguments))


@pytest.mark.parametrize("half_x", [False, True])
def test_compile_under_autocast(half_x: bool) -> None:
    arguments = make_arguments(BY_NAME["nchw"])
    if half_x:
        arguments["x"] = arguments["x"].bfloat16()

    def cast(**given: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return squeeze_excite(**given)

    assert_same(compiled(cast), arguments)


@pytest.mark.slow
def test_compile_functional_gradient() -> None:
    arguments = make_arguments(BY_NAME["nchw"])
    weight = arguments["fc2_weight"]

    def grad_of(function: Callable[..., Tensor], weight: Tensor) -> Tensor:
        return torch.func.grad(lambda w: function(**arguments | {"fc2_weight": w}).square().sum())(weight)

    result = compiled(lambda w: grad_of(squeeze_excite, w))(weight)
    torch.testing.assert_close(result, grad_of(reference.squeeze_excite, weight))


@pytest.mark.slow
def test_compiled_autograd() -> None:
    """The backward pass itself, captured by Dynamo."""
    module, x = FusedSE(8, 2), torch.randn(2, 8, 3, 5, requires_grad=True)
    expected = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        module(x).square().sum().backward()
    found = [x.grad, *(parameter.grad for parameter in module.parameters())]
    torch.testing.assert_close(found, list(expected))


def test_compile_with_checkpoint() -> None:
    def recomputed(x: Tensor, **rest: Any) -> Tensor:
        return checkpoint(lambda x: squeeze_excite(x, **rest).relu(), x, use_reentrant=False)

    arguments = make_arguments(BY_NAME["nchw"])
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(lambda **given: squeeze_excite(**given).relu(), arguments, grad_y)
    torch.testing.assert_close(value_and_grads(compiled(recomputed), arguments, grad_y), expected)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.se = FusedSE(8, 2, activation="leaky_relu(0.2)", gate="hardsigmoid")

    def forward(self, x: Tensor) -> Tensor:
        return self.se(x, x) + 1


def calls_of_the_op(program: torch.export.ExportedProgram) -> int:
    return sum(node.target is OP for node in program.graph.nodes)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(strict: bool, dynamic: bool) -> None:
    """One op in the program, for every batch and map size if asked, through save, load and decomposition."""
    model, x = Model().eval(), torch.randn(2, 8, 3, 5)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(model, (x,), dynamic_shapes=({**sizes},) if dynamic else None, strict=strict)
    assert calls_of_the_op(program) == 1
    decomposed = program.run_decompositions()
    assert calls_of_the_op(decomposed) == 1
    file = io.BytesIO()
    torch.export.save(decomposed, file)
    file.seek(0)
    loaded = torch.export.load(file)
    other = torch.randn(5, 8, 7, 4) if dynamic else x.cos()
    for each in (program, decomposed, loaded):
        torch.testing.assert_close(each.module()(other), model(other))


def test_export_decomposes_on_request() -> None:
    """A target without the op can have the reference in its place."""
    model, x = Model().eval(), torch.randn(2, 8, 3, 5)

    def plain(x: Tensor, *args: Tensor | None, **options: Any) -> Tensor:
        *weights, residual = args
        return reference.squeeze_excite(x, *weights, residual=residual, **options)

    program = torch.export.export(model, (x,)).run_decompositions({OP: plain})
    assert calls_of_the_op(program) == 0
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, -1])
def test_ahead_of_time_inductor(tmp_path: Path, dim: int) -> None:
    model, x = Model().eval(), torch.randn(2, 8, 3, 8)
    model.se.dim = dim
    package = tmp_path / "model.pt2"
    torch._inductor.aoti_compile_and_package(torch.export.export(model, (x,)), package_path=str(package))
    torch.testing.assert_close(torch._inductor.aoti_load_package(str(package))(x), model(x))


def test_jit_trace() -> None:
    model, x = Model().eval(), torch.randn(2, 8, 3, 5)
    traced = torch.jit.trace(model, x)
    assert "senet_fast::squeeze_excite" in str(traced.inlined_graph)
    other = torch.randn(3, 8, 4, 6)
    torch.testing.assert_close(traced(other), model(other))


def _scripted(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.senet_fast.squeeze_excite(x, weight, excitation="one_fc", gate="hardsigmoid")


def test_jit_script() -> None:
    x, weight = torch.randn(2, 8, 3, requires_grad=True), torch.randn(8, 8)
    script = torch.jit.script(_scripted)
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    (grad,) = torch.autograd.grad(torch.jit.load(file)(x, weight).square().sum(), x)
    (expected,) = torch.autograd.grad(_scripted(x, weight).square().sum(), x)
    torch.testing.assert_close(grad, expected)

"""compile_pass: torch.compile(model) calls the op, without fuse()."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import Passed, randomize, relative, step
from lookalikes import CBAMChannel, LayerNormed, MaxPooled, OfAnother, SquareOnly
from networks import TIMM, timm_network
from test_graphs import MBConv
from torch import Tensor, nn
from zoo import BTC, ECA, ZOO, C, Effective, Helper, LinearExpand

import senet_fast
from senet_fast import squeeze_excite

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def network() -> nn.Module:
    return nn.Sequential(MBConv(), nn.Conv2d(3, C, 1), LinearExpand(), ECA(), nn.ReLU(), Effective(), Helper())


@pytest.mark.slow
@pytest.mark.parametrize(("dynamic", "training"), [(False, False), (False, True), (True, True)])
def test_values_and_gradients(dynamic: bool, training: bool) -> None:
    plain = randomize(network()).train(training)
    compiled, passed = copy.deepcopy(plain), Passed(traced=True)
    run = torch.compile(compiled, fullgraph=True, dynamic=dynamic, backend=passed)
    for shape in [(2, 3, 9, 11), (3, 3, 14, 8)]:
        x = torch.randn(shape)
        expected, gradients = step(plain, x)
        given = x.clone().requires_grad_()
        y = run(given)
        assert relative(expected, y) < 1e-5
        weights = torch.linspace(-1, 2, y.numel()).view_as(y)
        for (name, gradient), actual in zip(
            gradients.items(), torch.autograd.grad((y * weights).sum(), [given, *compiled.parameters()]), strict=True
        ):
            if float(gradient.abs().max()) > 1e-6 * max(float(g.abs().max()) for g in gradients.values()):
                assert relative(gradient, actual) < 1e-4, name
        assert passed.calls == 5


@pytest.mark.parametrize("name", [name for name, case in ZOO.items() if case.training])
def test_every_style(name: str) -> None:
    """Each is found in Dynamo's graph, but for a transposed weight and an autograd.Function, a graph of its own."""
    case = ZOO[name]
    plain, passed = randomize(case.make()), Passed()
    x = torch.randn(case.shape) + torch.randn(case.shape).mean(-1, keepdim=True)
    y = torch.compile(plain, fullgraph=True, backend=passed)(x)
    assert relative(plain(x), y) < 1e-5
    assert passed.calls == (name not in ("sum_and_divide", "own_autograd_function"))


class ReadAfterChange(LinearExpand):
    """x is changed in place between its squeeze and its scale."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        s = torch.sigmoid(self.fc(x.mean((2, 3))))
        F.relu(x, inplace=True)
        return x * s[:, :, None, None]


class NoBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x))) * x


@pytest.mark.parametrize("kind", [CBAMChannel, LayerNormed, MaxPooled, OfAnother, SquareOnly, ReadAfterChange, NoBlock])
def test_other_graphs_stay_as_they_are(kind: type[nn.Module]) -> None:
    plain, passed = randomize(kind()).eval(), Passed()
    x = torch.randn(2, C, 5, 7) if kind is not SquareOnly else torch.randn(2, C, 6, 5)
    y = torch.compile(plain, fullgraph=True, backend=passed)(x)
    torch.testing.assert_close(y, plain(x), rtol=1e-5, atol=1e-5)
    assert not passed.changed


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_mean_of_square_maps_alone(dynamic: bool) -> None:
    """Replaced where the graph is guarded to be square; then traced anew for a map that is not."""
    plain, passed = randomize(SquareOnly()), Passed()
    run = torch.compile(plain, dynamic=dynamic, backend=passed)
    for shape, calls in [((2, C, 6, 6), 1), ((2, C, 6, 5), 0)]:
        x = torch.randn(shape)
        assert relative(plain(x), run(x)) < 1e-5
        assert passed.calls == calls


def test_types_that_the_op_does_not_take() -> None:
    plain, passed = randomize(LinearExpand()).bfloat16(), Passed()
    torch.compile(plain, backend=passed)(torch.randn(2, C, 5, 7, dtype=torch.bfloat16))
    assert passed.calls == 1
    torch._dynamo.reset()
    passed = Passed()
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.compile(randomize(LinearExpand()), backend=passed)(x := torch.randn(2, C, 5, 7))
        assert y.dtype == randomize(LinearExpand())(x).dtype
    assert passed.calls == 1


class Between(LinearExpand):
    """What makes x, and what else reads it, or has its memory."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        made = {
            "given": lambda: x,
            "view": lambda: (x * 2).flatten(2).unflatten(2, x.shape[2:]),
            "written": lambda: F.relu(x, inplace=True),
        }.get(self.case, lambda: F.relu(x * 2, inplace=True))()
        if self.case == "read_later":
            return super().forward(made) + made.exp()
        if self.case == "with_gradients":
            with torch.enable_grad():
                return super().forward(made)
        return super().forward(made)


@pytest.mark.parametrize(
    ("case", "into"),
    [("alone", 1), ("given", 0), ("view", 0), ("written", 0), ("read_later", 0), ("with_gradients", 0)],
)
def test_y_in_the_place_of_x(case: str, into: int) -> None:
    """At inference, where x has its memory to itself and nobody else reads it."""
    plain, passed = randomize(Between(case)), Passed()
    compiled = torch.compile(plain, fullgraph=True, backend=passed)
    x = torch.randn(2, C, 5, 7)
    with torch.no_grad():
        given, expected = x.clone(), x.clone()
        y = compiled(given)
        assert relative(plain(expected), y) < 1e-5
    assert torch.equal(given, expected)
    assert (passed.calls, passed.into) == (1, into)
    compiled(x + 0)
    assert (passed.calls, passed.into) == (1, 0)


def gate(block: LinearExpand, mean: Tensor) -> Tensor:
    return block.fc(mean)[:, :, None, None]  # type: ignore[no-any-return]


def view_is_returned(block: LinearExpand, x: Tensor) -> tuple[Tensor, Tensor]:
    u = x * 2
    places = u.flatten(2)
    return u * gate(block, places.mean(2)), places


def half_is_returned(block: LinearExpand, x: Tensor) -> tuple[Tensor, Tensor]:
    u = x * 2
    left, right = u.split((3, 4), 3)
    return u * gate(block, (left.sum((2, 3)) + right.sum((2, 3))) / 35), left


def two_gates_of_one_mean(block: LinearExpand, x: Tensor) -> Tensor:
    """The second is none of what it scales."""
    u = x * 2
    mean = u.mean((2, 3))
    return u * gate(block, mean) * gate(block, mean)


def in_the_memory_of_another(block: LinearExpand, x: Tensor) -> Tensor:
    magnitude = x.abs()
    return block(torch.mul(magnitude, 2, out=x))  # type: ignore[no-any-return]


@torch.library.custom_op("compile_pass_tests::double", mutates_args={"x"})
def double(x: Tensor) -> None:
    x.mul_(2)


def changed_within(block: LinearExpand, x: Tensor) -> Tensor:
    u = x * 2
    scale = gate(block, u.mean((2, 3)))
    torch.ops.compile_pass_tests.double(u)
    return u * scale


def weights(block: LinearExpand) -> list[Tensor]:
    return [block.fc[0].weight, block.fc[0].bias, block.fc[2].weight, block.fc[2].bias]


def op_within(block: LinearExpand, x: Tensor) -> Tensor:
    u = x * 2
    scale = gate(block, u.mean((2, 3)))
    squeeze_excite(u, *weights(block), out=u)
    return u * scale


def op_in_front(block: LinearExpand, x: Tensor) -> Tensor:
    u = x * 2
    return block(squeeze_excite(u, *weights(block), out=u))  # type: ignore[no-any-return]


def op_behind(block: LinearExpand, x: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(x.shape)
    u = x * 2
    return block(u), squeeze_excite(u, *weights(block), out=out)


def by_name(block: LinearExpand, x: Tensor) -> Tensor:
    return block(F.relu(input=x * 2, inplace=True))  # type: ignore[no-any-return]


def in_a_row(block: LinearExpand, x: Tensor) -> Tensor:
    return block(block(x * 2))  # type: ignore[no-any-return]


def batched(block: LinearExpand, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda one: block(one * 2))(x[None])  # type: ignore[no-any-return]


def with_tangents(block: LinearExpand, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.func.jvp(lambda x: block(x * 2), (x,), (x,))  # type: ignore[no-any-return]


def without_inference_mode(block: LinearExpand, x: Tensor) -> Tensor:
    """Which has gradients again."""
    with torch.inference_mode(False):
        return block(x * 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("run", "calls", "into"),
    [
        *((view_is_returned, 1, 0), (half_is_returned, 1, 0), (two_gates_of_one_mean, 1, 0)),
        *((in_the_memory_of_another, 1, 0), (by_name, 1, 1), (in_a_row, 2, 2)),
        *((changed_within, 0, 0), (op_within, 1, 1), (op_in_front, 2, 2), (op_behind, 2, 1)),  # theirs counted
        *((batched, 1, 0), (with_tangents, 1, 0), (without_inference_mode, 1, 0)),
    ],
)
def test_what_is_left_of_x(run: Callable[..., Any], calls: int, into: int) -> None:
    """Views of it, its mean, tensors it was written to: all have the values that they would have."""
    block, passed = randomize(LinearExpand()), Passed()
    x = torch.randn(2, C, 5, 7)
    with torch.no_grad():
        given, expected = x.clone(), x.clone()
        results = torch.compile(run, fullgraph=True, backend=passed)(block, given), run(block, expected)
    compiled, own = (result if isinstance(result, tuple) else (result,) for result in results)
    for a, b in zip(own, compiled, strict=True):
        assert relative(a, b) < 1e-5
    assert torch.equal(given, expected)
    assert (passed.calls, passed.into) == (calls, into)


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
def test_with_inductor() -> None:
    """The option of torch.compile: generated code calls the op, forward and backward."""
    from torch._inductor.utils import run_and_get_code

    plain = randomize(nn.Sequential(nn.Conv2d(3, C, 3), BTC(), LinearExpand(), nn.ReLU()))
    plain[1] = nn.Identity()
    options = {"pre_grad_custom_pass": senet_fast.compile_pass}
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True, options=options)
    x = torch.randn(2, 3, 7, 9)
    state = torch.get_rng_state()
    with torch.no_grad():
        y, code = run_and_get_code(compiled, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(text.count("torch.ops.senet_fast.squeeze_excite_into.default(") for text in code) == 1
    assert relative(plain(x), y) < 1e-5
    gradients = step(plain, x)[1]
    (_, actual), code = run_and_get_code(step, compiled, x)
    text = "\n".join(code)
    assert "torch.ops.senet_fast.squeeze_excite_forward.default(" in text
    assert "torch.ops.senet_fast.squeeze_excite_backward.default(" in text
    for name, gradient in gradients.items():
        assert relative(gradient, actual[name if name == "x" else f"_orig_mod.{name}"]) < 1e-4, name


@pytest.mark.slow
def test_identity_for_caches() -> None:
    """The same in every process for the same sources; Inductor's caches are not bypassed."""
    uuid = senet_fast.compile_pass.uuid()
    assert isinstance(uuid, bytes)
    code = "import senet_fast; print(senet_fast.compile_pass.uuid().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == uuid.hex()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "training"),
    [("mobilenetv3_small_050", True), ("lcnet_035", False)],
)
def test_networks(name: str, training: bool) -> None:
    """Of timm, where it is installed: every block of the network."""
    plain, passed = timm_network(name).double().train(training), Passed()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)  # deep norms of few pixels amplify what float32 rounds
    compiled = torch.compile(copy.deepcopy(plain), fullgraph=True, backend=passed)
    with torch.set_grad_enabled(training):
        assert relative(plain(x), compiled(x)) < 1e-10
    assert passed.calls == TIMM[name][0]


def test_sizes_that_only_the_data_tells() -> None:
    block, passed = randomize(LinearExpand()).eval(), Passed()
    x, mask = torch.randn(2, C, 5, 7), torch.tensor([0, 1, 1])

    def run(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return block(x) + 1, mask.nonzero()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        y, places = torch.compile(run, fullgraph=True, backend=passed)(x, mask)
    assert passed.calls == 1
    assert relative(block(x) + 1, y) < 1e-5
    assert torch.equal(places, mask.nonzero())

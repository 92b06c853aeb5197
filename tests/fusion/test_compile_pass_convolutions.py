"""compile_pass where weights are constants: the 1x1 convolution beside a gate goes into the op."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_testing import Passed, randomize, relative
from pointwise import CASES, SHAPE, Added, Bottleneck, Projected
from torch import Tensor, nn
from torch._inductor import config
from torch.nn import functional as F
from zoo import C, LinearExpand

from senet_fast import compile_pass

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "frozen")
LAST = torch.channels_last


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, *SHAPE[1:]).to(dtype).contiguous(memory_format=LAST)


def passed(plain: Callable[..., Any], *inputs: Tensor, **options: Any) -> tuple[Any, Passed]:
    """What the compiled code returns without gradients, and what the pass did."""
    backend = Passed()
    with torch.no_grad():
        return torch.compile(plain, fullgraph=True, backend=backend, **options)(*inputs), backend


@pytest.mark.parametrize("name", CASES)
def test_one_op(name: str) -> None:
    """With the norm, residual and activation behind; what is in front stays."""
    plain = randomize(CASES[name][0]()).eval()
    x = image()
    y, backend = passed(plain, x)
    assert (backend.calls, backend.convolutions) == (0, 1)
    assert relative(plain(x), y) < 1e-5
    assert y.stride() == plain(x).stride()


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["added", "bottleneck"])
def test_nothing_is_taken_over_where_gradients_are_wanted(name: str, traced: bool) -> None:
    plain = randomize(CASES[name][0]()).eval()
    x = image()
    for training in (False, True):
        backend = Passed(traced)
        y = torch.compile(copy.deepcopy(plain).train(training), fullgraph=True, backend=backend)(x)
        assert (backend.calls, backend.convolutions) == (1, 0)
        assert relative(copy.deepcopy(plain).train(training)(x), y) < 1e-5
        torch._dynamo.reset()


class Given:
    """A backend that has options, as Inductor's wrapper patches them into the config."""

    def __init__(self, backend: Passed, **options: bool) -> None:
        self.backend, self.options = backend, options

    def __call__(self, *given: Any) -> Any:
        with config.patch(**self.options):
            return self.backend(*given)


@pytest.mark.parametrize("options", [{}, {"freezing": True}, {"freezing": False}], ids=str)
@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("name", ["added", "bottleneck"])
def test_freezing(name: str, default: bool, options: dict[str, bool]) -> None:
    """Weights have to be constants: by torch.compile's option alone they stay inputs of the graph, in torch itself."""
    plain = randomize(CASES[name][0]()).eval()
    x, backend = image(), Passed()
    with torch.no_grad(), config.patch(freezing=default):
        y = torch.compile(plain, fullgraph=True, backend=Given(backend, **options))(x)
    frozen = default and options.get("freezing", True)
    assert (backend.convolutions, backend.calls, backend.into) == ((1, 0, 0) if frozen else (0, 1, 1))
    assert relative(plain(x), y) < 1e-5


class Ending(nn.Module):
    """A block, and a convolution of ``kind`` behind its y or in front of its x."""

    def __init__(self, end: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.end, self.dw, self.se = end, nn.Conv2d(C, C, 3, padding=1, groups=C), LinearExpand()
        self.conv, self.norm = nn.Conv2d(C, C, **{"kernel_size": 1, **options}), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Any:
        return self.end(self, self.dw(x), x)


def behind(m: Any, u: Tensor, x: Tensor) -> Tensor:
    return m.norm(m.conv(m.se(u)))  # type: ignore[no-any-return]


def before(m: Any, u: Tensor, x: Tensor) -> Tensor:
    return m.se(m.norm(m.conv(u)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("end", [behind, before])
@pytest.mark.parametrize(
    "options",
    [
        *({"groups": 2}, {"stride": 2}, {"kernel_size": 3}, {"kernel_size": (1, 3)}),
        *({"padding": 1}, {"kernel_size": 2, "padding": "same"}),
    ],
    ids=str,
)
def test_other_convolutions(end: Callable[..., Tensor], options: dict[str, Any]) -> None:
    plain = randomize(Ending(end, **options)).eval()
    x = image()
    y, backend = passed(plain, x)
    assert (backend.calls, backend.convolutions) == (1, 0)
    assert relative(plain(x), y) < 1e-5


@pytest.mark.parametrize("end", [behind, before])
def test_a_norm_that_trains(end: Callable[..., Tensor]) -> None:
    plain = randomize(Ending(end)).eval()
    plain.norm.train()
    x = image()
    y, backend = passed(copy.deepcopy(plain), x)
    assert backend.convolutions == (end is behind)  # the convolution alone
    assert relative(plain(x), y) < 1e-5


def conv_is_returned(m: Any, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    v = m.conv(u)
    return m.se(v), v


def conv_is_read_again(m: Any, u: Tensor, x: Tensor) -> Tensor:
    v = m.conv(u)
    return m.se(m.norm(v)) + v  # type: ignore[no-any-return]


def y_is_read_again(m: Any, u: Tensor, x: Tensor) -> Tensor:
    y = m.se(u)
    return m.conv(y) + y  # type: ignore[no-any-return]


def y_is_written(m: Any, u: Tensor, x: Tensor) -> Tensor:
    y = m.se(u)
    y.mul_(2)
    return m.conv(y)  # type: ignore[no-any-return]


def conv_is_written(m: Any, u: Tensor, x: Tensor) -> Tensor:
    v = m.conv(u)
    v.mul_(2)
    return m.se(v)  # type: ignore[no-any-return]


def source_is_written(m: Any, u: Tensor, x: Tensor) -> Tensor:
    """By a view of it, between the convolution and its block."""
    places = u.flatten(2)
    v = m.conv(u)
    places.mul_(2)
    return m.se(v)  # type: ignore[no-any-return]


def x_is_written(m: Any, u: Tensor, x: Tensor) -> Tensor:
    u = u * 1
    places = u.flatten(2)
    y = m.se(u)
    places.mul_(2)
    return m.conv(y)  # type: ignore[no-any-return]


def conv_of_another(m: Any, u: Tensor, x: Tensor) -> Tensor:
    return m.se(u) + m.conv(u)  # type: ignore[no-any-return]


def activation_between(m: Any, u: Tensor, x: Tensor) -> Tensor:
    """With which the mean does not commute."""
    return m.se(F.relu(m.conv(u)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("end", "convolutions"),
    [
        *((conv_is_returned, 0), (conv_is_read_again, 0), (y_is_read_again, 0), (y_is_written, 0)),
        *((conv_is_written, 0), (source_is_written, 0), (x_is_written, 0), (conv_of_another, 0)),
        *((activation_between, 0), (behind, 1), (before, 1)),
    ],
)
def test_what_is_between(end: Callable[..., Any], convolutions: int) -> None:
    plain = randomize(Ending(end)).eval()
    x = image()
    given = x.clone(memory_format=torch.preserve_format)
    results, backend = passed(plain, given)
    assert backend.convolutions == convolutions
    assert torch.equal(given, x)
    own = plain(x)
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (own, results)), strict=True):
        assert relative(a, b) < 1e-5


def given(m: Any, u: Tensor, x: Tensor) -> Tensor:
    return behind(m, u, x) + x


def written_later(m: Any, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r = x.exp()
    y = behind(m, u, x) + r
    r.mul_(2)
    return y, r


def written_before(m: Any, u: Tensor, x: Tensor) -> Tensor:
    r = x.exp()
    y = m.conv(m.se(u))
    r.mul_(2)
    return y + r  # type: ignore[no-any-return]


def returned(m: Any, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r = x.exp()
    return F.relu(behind(m, u, x) + r), r


def in_place(m: Any, u: Tensor, x: Tensor) -> Tensor:
    """The sum takes the residual's place."""
    r = x.exp()
    r += behind(m, u, x)
    return r


def broadcast(m: Any, u: Tensor, x: Tensor) -> Tensor:
    return behind(m, u, x) + x.mean((2, 3), keepdim=True)


def free(m: Any, u: Tensor, x: Tensor) -> Tensor:
    return F.relu(behind(m, u, x) + m.norm(x.exp()))


def output_side(m: Any, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r = x.exp()
    return F.relu(before(m, u, x) + r), r


def written_input(m: Any, u: Tensor, x: Tensor) -> Tensor:
    y = behind(m, u, x) + x
    x.mul_(2)
    return y


# (whether the op adds it, whether y takes its place; None: there is no convolution)
RESIDUALS = {
    given: (True, False),
    written_later: (True, False),
    written_before: (False, False),
    returned: (True, False),
    in_place: (False, False),
    broadcast: (None, False),
    free: (True, True),
    output_side: (True, False),
    written_input: (True, False),
}


def residual_of(backend: Passed) -> Any:
    assert backend.graph is not None
    (call,) = (node for node in backend.graph.nodes if getattr(node.target, "__name__", "") == "convolve_frozen")
    return call.args[-1]


@pytest.mark.parametrize("end", RESIDUALS)
def test_residuals(end: Callable[..., Any]) -> None:
    plain = randomize(Ending(end)).eval()
    added = RESIDUALS[end][0]
    mine, theirs = image(), None
    theirs = mine.clone(memory_format=torch.preserve_format)
    results, backend = passed(plain, theirs)
    assert backend.convolutions == (added is not None)
    if added is not None:
        assert (residual_of(backend) is not None) == added
    with torch.no_grad():
        own = plain(mine)
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (own, results)), strict=True):
        assert relative(a, b) < 1e-5
    assert torch.equal(mine, theirs)


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.parametrize("end", [given, written_later, returned, free])
def test_residuals_with_inductor(end: Callable[..., Any]) -> None:
    """y takes the place of one that is free, and of no other. (A write to an input is lost by Inductor itself where it
    freezes: torch 2.13.)
    """
    plain = randomize(Ending(end)).eval()
    mine = torch.randn(2, *SHAPE[1:])
    theirs = mine.clone()
    compiled = torch.compile(plain, fullgraph=True, options={"pre_grad_custom_pass": compile_pass})
    with torch.no_grad():
        compiled(mine.clone())
        with torch.autograd.profiler.profile() as profile:
            results = compiled(theirs)
        own = plain(mine)
    names = [event.name.removeprefix("senet_fast::") for event in profile.function_events if "senet_f" in event.name]
    assert names == ["squeeze_excite_conv_into" if RESIDUALS[end][1] else "squeeze_excite_conv"]
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (own, results)), strict=True):
        assert relative(a, b) < 1e-5
        assert a.stride() == b.stride()
    assert torch.equal(mine, theirs)


class Chain(nn.Module):
    """One convolution between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.dw, self.conv = nn.Conv2d(C, C, 3, groups=C), nn.Conv2d(C, C, 1)
        self.first, self.second = LinearExpand(), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.dw(x))))  # type: ignore[no-any-return]


CHAINS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "one between two": (Chain, 1, 1),
    "one behind each": (lambda: nn.Sequential(Projected(out=C), Projected()), 2, 0),
    "both sides": (lambda: nn.Sequential(Added(), Bottleneck(), Added(), Bottleneck(), LinearExpand()), 4, 1),
    "the sum of two": (lambda: Sum(Projected(), Projected()), 1, 1),
}


class Sum(nn.ModuleList):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) + self[1](x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    make, convolutions, calls = CHAINS[name]
    plain = randomize(make()).eval()
    x = image()
    y, backend = passed(plain, x)
    assert (backend.convolutions, backend.calls) == (convolutions, calls)
    assert relative(plain(x), y) < 1e-5


@pytest.mark.parametrize("name", ["added", "bottleneck"])
def test_any_batch(name: str) -> None:
    """A symbol for the batch; where all numbers are symbols, eps among them, the norm's is none of a constant's."""
    plain = randomize(CASES[name][0]()).eval()
    x, backend = image(), Passed()
    torch._dynamo.mark_dynamic(x, 0)
    run = torch.compile(plain, fullgraph=True, backend=backend)
    for batch in (2, 3, 5):
        more = torch.cat([x, x, x])[:batch].contiguous(memory_format=LAST)
        with torch.no_grad():
            assert relative(plain(more), run(more if batch != 2 else x)) < 1e-5
        assert backend.convolutions == 1
    assert backend.graphs == 1
    torch._dynamo.reset()
    y, backend = passed(plain, x, dynamic=True)
    assert (backend.convolutions, backend.calls) == (0, 1)
    assert relative(plain(x), y) < 1e-5


@pytest.mark.parametrize("name", ["added", "bottleneck"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-10)],
)
def test_types(name: str, dtype: torch.dtype, tolerance: float) -> None:
    plain = randomize(CASES[name][0]()).eval().to(dtype)
    x = image(dtype)
    exact = copy.deepcopy(plain).double()(x.double())
    y, backend = passed(plain, x)
    assert backend.convolutions == (dtype != torch.float64)
    assert y.dtype == dtype
    error, own = (relative(exact, result.double()) for result in (y, plain(x)))
    assert error < max(tolerance / 4, 1.5 * own)


@pytest.mark.parametrize("name", ["added", "bottleneck"])
def test_autocast(name: str) -> None:
    """The convolution's result is of another type than its weights."""
    plain = randomize(CASES[name][0]()).eval()
    x = image()
    with torch.autocast("cpu", torch.bfloat16):
        y, backend = passed(plain, x)
        expected = plain(x)
    assert backend.convolutions == 0
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=5e-2)

"""torch.compile of a fused model: what stands in front of the op is its prologue there too, at inference."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_testing import randomize, relative
from hosts import HOSTS, Bottleneck
from pointwise import Projected
from torch import Tensor, fx, nn
from torch._inductor import config
from zoo import C, LinearExpand

from senet_fast import fuse, unfuse
from senet_fast.fusion.run import steps
from senet_fast.se.guards import freezes

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
PROLOGUE = "a prologue"
NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")


def traced(model: nn.Module) -> tuple[Callable[[Tensor], Any], list[str]]:
    """The compiled model, and the names of what its graphs call, kernels excepted, and PROLOGUE for an op with one."""
    names: list[str] = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            names.append(getattr(node.target, "__name__", str(node.target)).split(".")[0])
            names.extend([PROLOGUE] if "pre_activation" in node.kwargs else [])
        return graph.forward

    return torch.compile(model, fullgraph=True, backend=backend), names


@pytest.mark.slow
@pytest.mark.parametrize("name", {host.prologue: name for name, host in HOSTS.items() if host.prologue}.values())
def test_prologue(name: str) -> None:
    plain = randomize(HOSTS[name].make()).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(HOSTS[name].shape)
    run, names = traced(fused)
    with torch.no_grad():
        assert relative(plain(x), run(x)) < 1e-5
    assert sum(name.startswith("squeeze_excite") for name in names) == names.count(PROLOGUE) == 1
    names.clear()
    assert relative(plain(x), run(x)) < 1e-5  # with gradients the norm has to be seen
    assert names.count(PROLOGUE) == 0
    assert names.count("squeeze_excite") == 1


@pytest.mark.parametrize("freezing", [False, True])
def test_what_a_frozen_convolution_has_for_free(freezing: bool) -> None:
    """Norm and activation, which stay in front of the op there; y takes the place of their result."""
    plain = randomize(Bottleneck()).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    run, names = traced(fused)
    x = torch.randn(2, C, 7, 9)
    with torch.no_grad(), config.patch(freezing=freezing):
        assert relative(plain(x), run(x)) < 1e-5
    assert names.count(PROLOGUE) == (0 if freezing else 1)
    assert names.count("squeeze_excite_into") == 1


class WithOptions(torch._TorchCompileInductorWrapper):  # type: ignore[name-defined, misc]
    """What torch.compile(options=...) makes of them, without the compilation."""

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        return graph.forward


@pytest.mark.parametrize(
    ("options", "default"),
    [({}, False), ({}, True), ({"freezing": False}, True), ({"freezing": True}, True), ({"freezing": True}, False)],
)
def test_freezing_by_an_option(options: dict[str, bool], default: bool) -> None:
    def answer(x: Tensor) -> Tensor:
        return x + freezes()

    with config.patch(freezing=default):
        run = torch._dynamo.optimize(WithOptions(None, options, None), nopython=True)(answer)
        assert run(torch.zeros(1)) == (default and options.get("freezing", True))


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.parametrize("default", [False, True])
def test_weights_are_constants_by_the_config(default: bool) -> None:
    """torch's option leaves them inputs, from which the convolution would be prepared in every call."""
    fused = randomize(Projected()).eval()
    fuse(fused)
    with config.patch(freezing=default), torch.no_grad():
        run = torch.compile(fused, fullgraph=True, options={"freezing": True})
        run(x := torch.randn(2, C, 7, 9))
        with torch.autograd.profiler.profile() as profile:
            run(x)
    names = [event.name for event in profile.function_events if event.name.startswith("senet_fast::")]
    assert names == ["senet_fast::squeeze_excite_conv" if default else "senet_fast::squeeze_excite_into"]


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
def test_inductor() -> None:
    plain = randomize(nn.Sequential(Bottleneck(), Bottleneck())).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    run = torch.compile(fused, fullgraph=True)
    x = torch.randn(2, C, 7, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert relative(plain(x), run(x)) < 1e-5


def test_transforms_inside_a_compiled_call() -> None:
    """The norm is run by itself there: what stands in front is taken over at inference without transforms."""
    plain = randomize(Bottleneck()).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(2, 1, C, 7, 9)
    with torch.no_grad():
        y = torch.compile(lambda x: torch.func.vmap(lambda one: fused(one))(x), fullgraph=True, backend="eager")(x)
        assert relative(torch.func.vmap(plain)(x), y) < 1e-5


def guards(model: nn.Module, x: Tensor) -> int:
    """How many things Dynamo looks at in each call of the compiled model."""
    counts: list[int] = []

    def keep(entries: list[Any]) -> list[bool]:
        counts.append(len(entries))
        return [True] * len(entries)

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend="eager", fullgraph=True, options={"guard_filter_fn": keep})(x)
    return sum(counts)


@pytest.mark.parametrize("convolves", [False, True])
def test_guards(convolves: bool) -> None:
    """What fuse() knows of a block are constants: looking at each word of it took a tenth of a small network's time."""
    plain = nn.Sequential(*(Projected(out=C) if convolves else Bottleneck() for _ in range(2))).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(1, C, 7, 9)
    with config.patch(freezing=convolves):
        assert guards(fused, x) < 1.2 * guards(plain, x)


class Softened(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x)


def replace_an_activation(model: nn.Module) -> None:
    model.get_submodule("0.se.fc")[1] = Softened()  # type: ignore[operator]


def hook_an_activation(model: nn.Module) -> None:
    model.get_submodule("0.se.fc.1").register_forward_hook(lambda *given: 2 * given[2])
    torch._dynamo.reset()  # which does not look at hooks again by itself


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "activation": replace_an_activation,
    "hook": hook_an_activation,
    "norm": lambda model: model.get_submodule("0.bn2").train(),
    "mode": lambda model: model.train(),
    "weights": lambda model: randomize(model, seed=1),
    "type": lambda model: model.double(),
    "unfused": lambda model: unfuse(model),
}


@functools.cache
def projected() -> tuple[nn.Module, nn.Module]:
    """A model, and that fused; for copies."""
    with torch.random.fork_rng():  # what a test draws is the same whoever asked first
        plain = randomize(nn.Sequential(Projected(out=C))).eval()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    return plain, fused


@pytest.mark.parametrize("freezing", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change: str, freezing: bool) -> None:
    """As in a model that is not fused."""
    plain, fused = map(copy.deepcopy, projected())
    x = torch.randn(1, C, 7, 9)
    with config.patch(freezing=freezing), torch.no_grad():
        run = torch.compile(fused, fullgraph=True, backend="eager")
        assert relative(plain(x), run(x)) < 1e-5
        for model in (plain, fused):
            CHANGES[change](model)
        x = x.to(next(plain.parameters()).dtype)
        expected, actual = (f(x) for f in (copy.deepcopy(plain), run))
        assert relative(expected, actual) < 1e-5


def test_a_forward_that_only_says_something_else() -> None:
    """Fused again, with modules of the same types: nothing but what fuse() found is another thing."""
    plain = randomize(LinearExpand()).eval()
    plain.fc[1] = nn.LeakyReLU(0.1)  # type: ignore[operator]
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(2, C, 7, 9)
    run = torch.compile(fused, fullgraph=True, backend="eager")
    assert relative(plain(x), run(x)) < 1e-5
    unfuse(fused)
    for model in (plain, fused):
        model.get_submodule("fc.1").negative_slope = 0.7
    fuse(fused)
    assert relative(plain(x), run(x)) < 1e-5


def test_blocks_that_are_alike_share_what_is_compiled() -> None:
    compiled = 0

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    blocks = [randomize(LinearExpand(), seed) for seed in range(4)]
    x = torch.randn(2, C, 7, 9)
    expected = [block(x) for block in blocks]
    for block in blocks:
        fuse(block)
        block.compile(fullgraph=True, backend=backend)
    assert max(relative(y, block(x)) for y, block in zip(expected, blocks, strict=True)) < 1e-5
    assert compiled == 1


def test_a_pickle_brings_no_number_along() -> None:
    """Another process has numbers of its own, which another forward may have here."""
    host, block = randomize(Bottleneck()), randomize(LinearExpand())
    for module in (host, block):
        fuse(module)
    forwards = [module.__dict__["_senet_fast_forward"] for module in (host, block)]
    loaded = pickle.loads(pickle.dumps(forwards))
    assert loaded[0].number != forwards[0].number
    assert loaded[1].number == forwards[1].number  # of a block that is alike


@pytest.mark.slow
@pytest.mark.parametrize("make", [Bottleneck, functools.partial(Projected, out=C)], ids=["norm", "convolution"])
@pytest.mark.parametrize(("freezing", "protocol"), [(False, 0), (True, 1), (True, pickle.DEFAULT_PROTOCOL)])
def test_looks_in_python_are_not_more_with_more_blocks(
    make: Callable[[], nn.Module], freezing: bool, protocol: int
) -> None:
    """Dynamo compares what it reaches by two ways in Python, at each call: nothing of what ``fuse`` has made, nor of
    what pickle makes of that, by any protocol.
    """

    def looks(blocks: int) -> int:
        model = nn.Sequential(*(randomize(make()) for _ in range(blocks))).eval()
        assert len(fuse(model).fused) == blocks
        model = pickle.loads(pickle.dumps(model, protocol))

        def run(x: Tensor) -> Any:
            return model(x)

        torch._dynamo.reset()  # or the other's is there as well
        torch.compile(run, fullgraph=True, backend="eager")(torch.randn(2, C, 9, 8))
        (entry,) = torch._dynamo.eval_frame._debug_get_cache_entry_list(run.__code__)
        return str(entry.guard_manager).count("LAMBDA_GUARD")

    with torch.no_grad(), config.patch(freezing=freezing):
        assert 0 < looks(1) == looks(3)
        scopes = len(steps._scopes)
        assert looks(3) == looks(1)
        assert len(steps._scopes) == scopes

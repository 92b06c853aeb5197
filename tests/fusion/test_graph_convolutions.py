"""fuse() on fx.GraphModules: the 1x1 convolution beside a gate, in one op with it at inference."""

import copy
import functools
import gc
import logging
import operator
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from arithmetic import Operation, Products
from arithmetic import graph_of as graph_of_modules
from fusion_testing import assert_same, assert_same_at_inference, ops, randomize, relative, step
from pointwise import CASES, SHAPE, Bottleneck, Functional, Projected
from test_convolutions import CHANGES, HOOKED, changed, stand_ins_leave_nothing
from test_graph_neighbours import graph_of
from torch import Tensor, fx, nn
from zoo import C, ConvMean, WithNorm

from senet_fast import fuse, unfuse
from senet_fast.se import kept

HOWS = ["traced", "exported"]
ONE_OP = ["squeeze_excite_conv"]


def block(name: str) -> nn.Module:
    # A weight of the graph module's own is no child's, and left: test_graph_convolutions_taken.
    return nn.Sequential(Functional()) if name == "functional" else CASES[name][0]()


@functools.cache
def fused_once(name: str, how: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    with torch.random.fork_rng():  # what a test draws is the same whoever asked first
        plain = graph_of(randomize(block(name)), torch.randn(2, *SHAPE[1:]), how)
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    # What reads the input of an exported graph, its guards as well, has it as it is.
    prologue = "" if (name, how) == ("functional", "exported") else CASES[name][1]
    assert (entry.prologue, entry.epilogue) == (prologue, CASES[name][2])
    return plain, fused


def pair(name: str, how: str = "traced") -> tuple[Any, Any]:
    """Copies of a graph and of that fused."""
    plain, fused = fused_once(name, how)
    return copy.deepcopy(plain), copy.deepcopy(fused)


def same(plain: nn.Module, fused: nn.Module, x: Tensor, expected: list[str] | None = ONE_OP) -> None:
    """At inference, by the ``expected`` ops; None: by others than the one of both."""
    with torch.no_grad():
        assert relative(plain(x), fused(x)) < 1e-5
        called = ops(lambda: fused(x))
    assert called == expected if expected is not None else "squeeze_excite_conv" not in called


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", CASES)
def test_one_op(name: str, how: str) -> None:
    plain, fused = pair(name, how)
    x = torch.randn(2, *SHAPE[1:])
    same(plain, fused, x)
    assert "squeeze_excite_conv" not in ops(lambda: fused(x))  # gradients are wanted
    assert_same_at_inference(plain, fused, x)
    (y, gradients), (fused_y, fused_gradients) = (step(model, x) for model in (plain, fused))
    assert relative(y, fused_y) < 1e-5
    assert gradients.keys() == fused_gradients.keys()
    for key, gradient in gradients.items():
        assert relative(gradient, fused_gradients[key]) < 1e-4, key
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert not fuse(fused).fused


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", CASES)
def test_what_a_call_fetches(name: str, how: str) -> None:
    """Nothing twice, nothing for nobody, and each child under its name, so that torch.fx does not drop it."""
    plain, fused = pair(name, how)
    before, after = ([node for node in graph.nodes if node.op == "get_attr"] for graph in (plain.graph, fused.graph))
    unread = {str(node.target) for node in before if not node.users}  # as its exporter left it
    assert {str(node.target) for node in after if not node.users} <= unread
    fetched = [str(node.target) for node in after if node.users]
    assert len(fetched) == len({*fetched})
    fused.delete_all_unused_submodules()
    same(plain, fused, torch.randn(2, *SHAPE[1:]))


@pytest.mark.parametrize("how", HOWS)
def test_unfuse(how: str) -> None:
    plain, _ = pair("bottleneck", how)
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert unfuse(fused) == 1
    assert fused.code == plain.code
    same(plain, fused, torch.randn(2, *SHAPE[1:]), [])


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    plain, fused = pair(name)
    for model in (plain, fused):
        for conv in (part for part in model.modules() if isinstance(part, nn.Conv2d)):
            conv.bias = None  # in front of a norm that trains its gradient is rounding
    x = torch.randn(2, *SHAPE[1:])
    assert_same(plain, fused, x)
    for model in (plain, fused):
        model.train()(x)
    for key, buffer in plain.named_buffers():
        torch.testing.assert_close(fused.get_buffer(key), buffer)
    same(plain.eval(), fused.eval(), x)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["projected", "added", "bottleneck"])
def test_types_and_layouts(
    name: str, layout: torch.memory_format, dtype: torch.dtype, tolerance: float, batch: int
) -> None:
    plain, fused = (model.to(dtype) for model in pair(name))
    x = torch.randn(batch, *SHAPE[1:]).to(dtype).to(memory_format=layout)
    exact = copy.deepcopy(plain).double()(x.double()).detach()
    with torch.no_grad():
        assert ops(lambda: fused(x)) == ONE_OP
        y, own = fused(x), plain(x)
    assert (y.dtype, y.stride()) == (own.dtype, own.stride())
    error, own_error = (float((exact - result).square().mean().sqrt() / exact.std()) for result in (y, own))
    assert error < max(tolerance / 40, 1.5 * own_error)
    assert relative(exact, y.double()) < max(tolerance / 4, 3 * relative(exact, own.double()))


TRAINS = ("statistics",)  # an exported graph has no such mode
WEIGHTS = [(name, how, change) for name in ("projected", "bottleneck", "added") for how in HOWS for change in CHANGES]


@pytest.mark.parametrize(("name", "how", "change"), [row for row in WEIGHTS if row[1:] != ("exported", *TRAINS)])
def test_weights_are_never_stale(name: str, how: str, change: str) -> None:
    plain, fused = pair(name, how)
    x = torch.randn(SHAPE if how == "traced" else (2, *SHAPE[1:]))
    with torch.no_grad():
        before = fused(x)
        for model in (plain, fused):
            torch.manual_seed(0)
            CHANGES[change](model)
        assert relative(before, plain(x)) > 1e-3
    same(plain, fused, x)


COPIES: list[tuple[str, Callable[[Any], Any]]] = [
    *((how, copy.deepcopy) for how in HOWS),
    ("traced", lambda model: pickle.loads(pickle.dumps(model))),
    ("traced", fx.symbolic_trace),
]


@pytest.mark.parametrize(("how", "copied"), COPIES)
@pytest.mark.parametrize("name", ["projected", "bottleneck"])
def test_copies(name: str, how: str, copied: Callable[[Any], Any]) -> None:
    plain, fused = pair(name, how)
    x = torch.randn(2, *SHAPE[1:])
    with torch.no_grad():
        fused(x)
    other = copied(fused)
    same(plain, other, x)
    others = copy.deepcopy(plain)
    for model in (others, other):
        model.load_state_dict(changed(plain))
    same(others, other, x)
    shared = copied is fx.symbolic_trace  # the children are the same
    same(others if shared else plain, fused, x)


def test_what_is_kept_leaves_with_the_graph() -> None:
    x = torch.randn(SHAPE)
    fused = fx.symbolic_trace(randomize(Bottleneck()).eval())
    fused.conv3.weight.register_hook(lambda grad, model=fused: grad)  # leads back to the module
    gc.collect()  # what other tests left
    before = len(kept._kept)
    for turn in range(2):
        fuse(fused)
        with torch.no_grad():
            fused(x)
            fused(x)
        assert len(kept._kept) == before + 1
        if turn == 0:
            unfuse(fused)
            assert len(kept._kept) == before
    alive = weakref.ref(fused)
    del fused
    gc.collect()
    assert alive() is None
    assert len(kept._kept) == before


def test_weights_that_take_turns(caplog: pytest.LogCaptureFixture) -> None:
    plain, fused = pair("bottleneck")
    x = torch.randn(SHAPE)
    others = [dict(plain.state_dict()), changed(plain)]
    with torch.no_grad(), caplog.at_level(logging.WARNING, "senet_fast.fuse"):
        for turn in range(10):
            weights = others[turn % 2]
            expected, actual = (torch.func.functional_call(model, weights, (x,)) for model in (plain, fused))
            assert relative(expected, actual) < 1e-5
    (told,) = caplog.records
    assert told.getMessage().startswith("conv3.weight changes at every call")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ["projected", "bottleneck"])
def test_what_runs_the_rest(name: str, how: str) -> None:
    """Single pixels, autocast, float64, torch.func and tensors that count no writes are no kernel's."""
    plain, fused = pair(name, how)
    x = torch.randn(2, *SHAPE[1:])
    with torch.no_grad():
        if how == "traced":
            same(plain, fused, x[..., :1, :1], None)
            assert fused(x[:0]).shape == plain(x[:0]).shape
        with torch.autocast("cpu"):
            assert "squeeze_excite_conv" not in ops(lambda: fused(x))
            assert relative(plain(x), fused(x)) < 3e-2
        shapes = torch.func.vmap(plain)(x[:, None].expand(-1, 2, -1, -1, -1))
        assert relative(shapes, torch.func.vmap(fused)(x[:, None].expand(-1, 2, -1, -1, -1))) < 1e-5
        same(plain.double(), fused.double(), x.double(), None)
    with torch.inference_mode():
        plain, fused = pair(name, how)
        assert relative(plain(x), fused(x)) < 1e-5
        assert "squeeze_excite_conv" not in ops(lambda: fused(x))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ["projected", "bottleneck"])
def test_fake_tensors(name: str, how: str) -> None:
    stand_ins_leave_nothing(*pair(name, how))


@pytest.mark.parametrize(("name", "at"), [(n, at) for n, paths in HOOKED.items() for at in paths if "se" not in at])
def test_hooks_are_called(name: str, at: str) -> None:
    plain, fused = pair(name)
    x, calls = torch.randn(SHAPE), []
    with torch.no_grad():
        fused(x)
        handle = fused.get_submodule(at).register_forward_hook(lambda *_: calls.append(1))
        assert relative(plain(x), fused(x)) < 1e-5
    assert calls == [1]
    handle.remove()
    same(plain, fused, x)


def test_hooks_that_were_there() -> None:
    plain, _ = pair("added")
    calls: list[int] = []
    plain.conv.register_forward_hook(lambda *_: calls.append(1))
    fused = copy.deepcopy(plain)
    assert [(entry.prologue, entry.epilogue) for entry in fuse(fused).fused] == [("", "in place")]
    same(plain, fused, torch.randn(SHAPE), ["squeeze_excite_into"])
    assert len(calls) == 3


class Conv2d(nn.Conv2d):
    """An adapter that is called like what it takes the place of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean()


@pytest.mark.parametrize("other", [nn.Identity(), nn.Tanh(), Conv2d(C, C, 1)])
def test_children_of_another_class(other: nn.Module) -> None:
    for name, at in (("added", "conv"), ("bottleneck", "bn2"), ("added", "bn2"), ("projected", "bn1")):
        if isinstance(other, nn.Conv2d) and at != "conv":
            continue
        plain, fused = pair(name)
        for model in (plain, fused):
            setattr(model, at, other.eval())
        same(plain, fused, torch.randn(SHAPE), None if (name, at) in (("added", "conv"), ("added", "bn2")) else ONE_OP)


@pytest.mark.parametrize(("name", "at"), [("projected", "bn1"), ("projected", "bn2"), ("bottleneck", "bn2")])
def test_a_norm_that_trains(name: str, at: str) -> None:
    """Alone, in a graph that does not: its statistics are of the batch, and change."""
    plain, fused = pair(name)
    x = torch.randn(4, *SHAPE[1:])
    with torch.no_grad():
        for model in (plain, fused):
            model.get_submodule(at).train()
        assert relative(plain(x), fused(x)) < 1e-5
        assert relative(plain.get_buffer(f"{at}.running_var"), fused.get_buffer(f"{at}.running_var")) < 1e-6
    same(plain.eval(), fused.eval(), x)


class Normed(Projected):
    """Norms of fixed statistics between the layers of the excitation, folded at every call."""

    def __init__(self) -> None:
        super().__init__(WithNorm)


class OfProducts(Projected):
    """Matrix products with weights [in, out], and biases apart."""

    def __init__(self) -> None:
        super().__init__(Products)


@pytest.mark.parametrize(("kind", "how"), [(Normed, "exported"), (OfProducts, "exported"), (OfProducts, "traced")])
def test_excitations_whose_weights_are_computed(
    kind: type[nn.Module], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Prepared once all the same, and anew where something that they are made of changes, be it in one element."""
    x = torch.randn(2, *SHAPE[1:])
    plain = graph_of(randomize(kind()), x, how)
    fused = copy.deepcopy(plain)
    assert [entry.epilogue for entry in fuse(fused).fused] == ["conv, batch_norm"]
    with torch.no_grad(), caplog.at_level(logging.WARNING, "senet_fast.fuse"):
        for _ in range(10):
            fused(x)
        assert not [record for record in caplog.records if record.name == "senet_fast.fuse"]
        same(plain, fused, x)
        before = plain(x)
        for name in [name for name in plain.state_dict() if name.startswith("se.") and "num" not in name]:
            for model in (plain, fused):
                model.state_dict()[name].view(-1)[1] += 1.0
            same(plain, fused, x)
        assert relative(before, plain(x)) > 1e-3


class AddedByModules(nn.Module):
    """Converters' additions, behind either side of a gate, with the residual first or second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Operation(operator.add), Operation(operator.add)
        self.conv1, self.conv2, self.dw = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3, padding=1)
        self.se1, self.se2 = ConvMean(), ConvMean()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x, self.conv1(self.se1(self.dw(x))))
        return self.second(self.se2(self.conv2(self.dw(x))), x)  # type: ignore[no-any-return]


def test_additions_by_modules() -> None:
    plain = graph_of_modules(randomize(AddedByModules()).eval())
    fused = copy.deepcopy(plain)
    assert [(e.prologue, e.epilogue) for e in fuse(fused).fused] == [("", "conv, residual"), ("conv", "residual")]
    x = torch.randn(2, *SHAPE[1:])
    same(plain, fused, x, ONE_OP * 2)
    assert_same(plain, fused, x)

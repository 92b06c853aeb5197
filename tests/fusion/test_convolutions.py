"""The 1x1 convolution beside a gate: one op of both at inference, with weights that are never stale."""

import copy
import functools
import gc
import logging
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_testing import assert_compiled, assert_same, assert_same_at_inference, ops, randomize, relative
from pointwise import (
    CASES,
    OUT,
    SHAPE,
    ActivatedBetween,
    Added,
    FrontIsReadTwice,
    Grouped,
    Projected,
    ReadTwice,
    Strided,
    TwoReaders,
    Wide,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from zoo import C

from senet_fast import fuse, unfuse
from senet_fast.se import kept


@functools.cache
def fused_once(name: str) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():  # what a test draws is the same whoever asked first
        plain = randomize(CASES[name][0]()).eval()
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.prologue, entry.epilogue) == CASES[name][1:]
    return plain, fused


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Copies of a host and of that fused."""
    plain, fused = fused_once(name)
    return copy.deepcopy(plain), copy.deepcopy(fused)


@pytest.mark.parametrize("name", CASES)
def test_one_op(name: str) -> None:
    plain, fused = pair(name)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert ops(lambda: fused(x)) == ["squeeze_excite_conv"]
    assert "squeeze_excite_conv" not in ops(lambda: fused(x))  # gradients are wanted
    assert_same_at_inference(plain, fused, x)
    with torch.no_grad():
        assert ops(lambda: fused(x)) == ["squeeze_excite_conv"]
    for model in (plain, fused):
        for conv in (part for part in model.modules() if isinstance(part, nn.Conv2d)):
            conv.bias = None  # in front of a norm that trains its gradient is rounding
    assert_same(plain, fused, x)
    unfuse(fused)
    with torch.no_grad():
        assert ops(lambda: fused.eval()(x)) == []


@pytest.mark.parametrize("check", ["x.ndim == 4", "x.shape[2] > 1", "x.ndim == self.axes"])
def test_only_what_is_true_of_every_input_is_skipped(check: str) -> None:
    """A check of sizes, or one against what may change, runs in every call."""
    names: dict[str, Any] = {"torch": torch, "F": F, "nn": nn}
    lines = (
        *("class Norm(nn.BatchNorm2d):", "    axes = 4", "    def forward(self, x):"),
        *(
            f"        torch._assert({check}, 'as it should be')",
            "        mean, var = self.running_mean, self.running_var",
        ),
        "        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)",
    )
    exec("\n".join(lines), names)
    plain = Projected()
    plain.bn2 = names["Norm"](OUT)
    plain = randomize(plain).eval()
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert entry.epilogue == ("conv" if "shape" in check else "conv, batch_norm")
    assert_same_at_inference(plain, fused, torch.randn(SHAPE))
    if "shape" in check:
        with torch.no_grad(), pytest.raises(AssertionError, match="as it should be"):
            fused(torch.randn(1, C, 1, 7))


@pytest.mark.parametrize("batch", [1, 3, 33])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["projected", "added", "bottleneck"])
def test_types_and_layouts(
    name: str, layout: torch.memory_format, dtype: torch.dtype, tolerance: float, batch: int
) -> None:
    plain, fused = (model.to(dtype) for model in pair(name))
    x = torch.randn(batch, *SHAPE[1:]).to(dtype).to(memory_format=layout)
    exact = copy.deepcopy(plain).double()(x.double())
    with torch.no_grad():
        assert ops(lambda: fused(x)) == ["squeeze_excite_conv"]
        y, own = fused(x), plain(x)
    assert y.dtype == own.dtype
    assert y.stride() == own.stride()
    error, own_error = (float((exact - result).square().mean().sqrt() / exact.std()) for result in (y, own))
    assert error < max(tolerance / 40, 1.5 * own_error)  # the mean of all: the largest is another for each x
    assert relative(exact, y.double()) < max(tolerance / 4, 3 * relative(exact, own.double()))


def changed(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, tensor in model.state_dict().items():
        made = torch.rand(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else tensor
        tensors[name] = made if "var" in name or tensor.dim() < 2 else made - 1
    return tensors


def optimizer_step(model: nn.Module) -> None:
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.3)
    torch.optim.SGD(parameters, lr=1.0).step()


def write_past_autograd(model: nn.Module) -> None:
    for name, tensor in changed(model).items():
        model.get_parameter(name).data.copy_(tensor) if name in dict(model.named_parameters()) else None


def other_statistics(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(torch.randn(16, *SHAPE[1:]) * 3)
    model.eval()


def new_parameters(model: nn.Module) -> None:
    for name, tensor in changed(model).items():
        owner, _, last = name.rpartition(".")
        if last in model.get_submodule(owner)._parameters:
            setattr(model.get_submodule(owner), last, nn.Parameter(tensor))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "load_state_dict": lambda model: model.load_state_dict(changed(model)),
    "load_and_assign": lambda model: model.load_state_dict(changed(model), assign=True),
    "optimizer": optimizer_step,
    "past_autograd": write_past_autograd,
    "statistics": other_statistics,
    "parameters": new_parameters,
    "there_and_back": lambda model: model.bfloat16().float(),
    "in_place": lambda model: torch.nn.init.normal_(model.get_parameter("se.fc.0.weight")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["projected", "bottleneck", "added"])
def test_weights_are_never_stale(name: str, change: str) -> None:
    plain, fused = pair(name)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        before = fused(x)
        for model in (plain, fused):
            torch.manual_seed(0)
            CHANGES[change](model)
        assert ops(lambda: fused(x)) == ["squeeze_excite_conv"]
        assert relative(before, plain(x)) > 1e-3
        assert relative(plain(x), fused(x)) < 1e-5


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["projected", "bottleneck"])
def test_copies(name: str, how: Callable[[Any], Any]) -> None:
    plain, fused = pair(name)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        fused(x)
        copied = how(fused)
        # torch writes the address of each storage, which has 14 or 15 digits.
        sizes = [len(re.sub(rb"\d{14,15}", b"", pickle.dumps(model))) for model in (copied, how(copied))]
        assert sizes[0] == sizes[1]
        copied.load_state_dict(changed(plain))
        assert ops(lambda: copied(x)) == ["squeeze_excite_conv"]
        assert relative(plain(x), fused(x)) < 1e-5
        plain.load_state_dict(changed(plain))
        assert relative(plain(x), copied(x)) < 1e-5


@pytest.mark.slow
def test_what_is_kept_leaves_with_the_module() -> None:
    _, fused = pair("bottleneck")
    fused.conv3.weight.register_hook(lambda grad, model=fused: grad)  # leads back to the module
    gc.collect()  # what other tests left
    before = len(kept._kept)
    with torch.no_grad():
        fused(torch.randn(SHAPE))
    assert len(kept._kept) == before + 1
    unfuse(fused)
    assert len(kept._kept) == before
    fuse(fused)
    with torch.no_grad():
        fused(torch.randn(SHAPE))
    alive = weakref.ref(fused)
    del fused
    gc.collect()
    assert alive() is None
    assert len(kept._kept) == before


def test_weights_that_take_turns(caplog: pytest.LogCaptureFixture) -> None:
    """An ensemble in one module: preparing at every call would take longer than it saves."""
    plain, fused = pair("bottleneck")
    x = torch.randn(SHAPE)
    others = [dict(plain.state_dict()), changed(plain)]
    with torch.no_grad(), caplog.at_level(logging.WARNING, "senet_fast.fuse"):
        for turn in range(10):
            weights = others[turn % 2]
            expected, actual = (torch.func.functional_call(model, weights, (x,)) for model in (plain, fused))
            assert relative(expected, actual) < 1e-5
        (told,) = caplog.records
        assert "conv3.weight changes at every call" in told.getMessage()
        for _ in range(3):
            assert relative(plain(x), fused(x)) < 1e-5
        assert ops(lambda: fused(x)) == ["squeeze_excite_conv"]


@pytest.mark.parametrize("name", ["projected", "bottleneck"])
def test_tensors_that_count_no_writes(name: str) -> None:
    with torch.inference_mode():
        plain, fused = pair(name)
        x = torch.randn(SHAPE)
        for model in (plain, fused):
            model.get_submodule("se.fc")[0].bias.fill_(5.0)  # every hidden unit matters
        before = fused(x)
        for model in (plain, fused):
            model.get_submodule("se.fc")[0].weight[1, 1] += 3.0  # one element, which a sample of them may miss
        assert relative(before, plain(x)) > 1e-4
        assert relative(plain(x), fused(x)) < 1e-5


def stand_ins_leave_nothing(plain: nn.Module, fused: nn.Module) -> None:
    """A call with fake tensors, which may have the real weights beside them, prepares nothing for the next."""
    x = torch.randn(2, *SHAPE[1:])
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad():
        for weights in ({}, {name: fakes.from_tensor(weight) for name, weight in fused.state_dict().items()}):
            with fakes:
                y = torch.func.functional_call(fused, weights, (fakes.from_tensor(x),))
            assert y.shape == plain(x).shape
        assert relative(plain(x), fused(x)) < 1e-5
        assert ops(lambda: fused(x)) == ["squeeze_excite_conv"]


@pytest.mark.parametrize("name", ["projected", "bottleneck"])
def test_fake_tensors(name: str) -> None:
    stand_ins_leave_nothing(*pair(name))


HOOKED = {
    "projected": ("conv", "bn1", "bn2", "dw", "se", "se.fc.0"),
    "bottleneck": ("conv2", "bn2", "conv3", "bn3", "se"),
}


@pytest.mark.parametrize(("name", "at"), [(name, at) for name, paths in HOOKED.items() for at in paths])
def test_hooks_are_called(name: str, at: str) -> None:
    plain, fused = pair(name)
    x, calls = torch.randn(SHAPE), []
    with torch.no_grad():
        fused(x)
        fused.get_submodule(at).register_forward_hook(lambda *_: calls.append(1))
        assert relative(plain(x), fused(x)) < 1e-5
    assert calls == [1]


@pytest.mark.parametrize("name", ["projected", "bottleneck", "functional"])
def test_what_runs_the_rest(name: str) -> None:
    """float64, autocast, other devices and single pixels are no kernel's."""
    plain, fused = pair(name)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert ops(lambda: fused(x[..., :1, :1])) != ["squeeze_excite_conv"]
        assert relative(plain(x[..., :1, :1]), fused(x[..., :1, :1])) < 1e-5
        with torch.autocast("cpu"):
            assert "squeeze_excite_conv" not in ops(lambda: fused(x))
            assert relative(plain(x), fused(x)) < 3e-2
        assert fused(x[:0]).shape == plain(x[:0]).shape
        assert "squeeze_excite_conv" not in ops(lambda: fused.double()(x.double()))
        assert relative(plain.double()(x.double()), fused(x.double())) < 1e-12


@pytest.mark.parametrize(("name", "at"), [("projected", "bn1"), ("bottleneck", "bn2")])
def test_a_norm_in_front_that_trains(name: str, at: str) -> None:
    """Alone, in a network that does not: its statistics are of the batch, and change."""
    plain, fused = pair(name)
    x = torch.randn(4, *SHAPE[1:])
    with torch.no_grad():
        fused(x)
        for model in (plain, fused):
            model.get_submodule(at).train()
        assert relative(plain(x), fused(x)) < 1e-5
        assert relative(plain.get_buffer(f"{at}.running_var"), fused.get_buffer(f"{at}.running_var")) < 1e-6
        for model in (plain, fused):
            model.eval()
        assert ops(lambda: fused(x)) == ["squeeze_excite_conv"]
        assert relative(plain(x), fused(x)) < 1e-5


@pytest.mark.parametrize("host", [TwoReaders, ActivatedBetween, Wide, Strided, Grouped, ReadTwice])
def test_what_it_does_not_take(host: type[nn.Module]) -> None:
    plain = randomize(host()).eval()
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert "conv" not in f"{entry.prologue} {entry.epilogue}"
    x = torch.randn(SHAPE)
    assert_same_at_inference(plain, fused, x)


def test_what_stays_in_front() -> None:
    plain = randomize(FrontIsReadTwice()).eval()
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.prologue, entry.epilogue) == ("conv", "residual")
    assert_same_at_inference(plain, fused, torch.randn(SHAPE))


class Contained(Added):
    """The convolution is in a container, where another takes its place unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(self.conv)  # type: ignore[assignment]


def test_a_convolution_that_is_exchanged() -> None:
    plain = randomize(Contained()).eval()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    for model in (plain, fused):
        model.conv[0] = nn.Identity()
    assert_same_at_inference(plain, fused, torch.randn(SHAPE))


class Viewed(nn.Module):
    """What is behind the convolution can be viewed as the contiguous tensor that it is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.block = pair(name)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).view(len(x), -1)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["projected", "bottleneck"])
def test_compiled(name: str, layout: torch.memory_format, frozen: bool) -> None:
    """Where weights are constants they are prepared once, before anything is run."""
    plain, fused = pair(name)
    x = torch.randn(2, *SHAPE[1:]).to(memory_format=layout)
    if layout == torch.contiguous_format:
        plain = Viewed(name)
        fused = copy.deepcopy(plain)
        fuse(fused)
    assert_compiled(plain, fused, x, frozen)

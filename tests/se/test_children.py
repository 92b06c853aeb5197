"""Blocks whose layers somebody changed: pruning, adapters, hooks, quantization; beside SEBlock, changed alike."""

import logging
from typing import Any

import pytest
import torch
from children import (
    CHANGES,
    C,
    Change,
    R,
    Tagged,
    adapted,
    hooked,
    in_sequence,
    own_forward,
    pair,
    parametrized,
    pruned,
    subclassed,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from senet_fast.se import FusedSE
from senet_fast.se.guards import is_untouched


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_trains_like_the_readable_block(change: Change) -> None:
    """Three steps: outputs, gradients of all parameters, and what the parameters become; then inference."""
    blocks = pair(change)
    batches = [torch.randn(3, C, 5, 4) for _ in range(3)]
    seen: list[list[Tensor]] = []
    for block in blocks:
        results: list[Tensor] = []
        optimizer = torch.optim.SGD((p for p in block.parameters() if p.requires_grad), lr=0.5)
        for x in batches:
            optimizer.zero_grad()
            x = x.clone().requires_grad_()
            y = block(x)
            y.square().sum().backward()
            optimizer.step()
            assert x.grad is not None
            results += [y, x.grad, *(p.grad for p in block.parameters() if p.requires_grad)]  # type: ignore[list-item]
        block.eval()
        with torch.no_grad():
            results.append(block(batches[0]))
        with torch.inference_mode():
            results.append(block(batches[1]))
        seen.append([*results, *block.state_dict().values()])
    assert len(seen[0]) == len(seen[1]) > 20
    for actual, expected in zip(seen[1], seen[0], strict=True):
        if isinstance(expected, Tensor):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_inference_follows_a_pruned_parameter() -> None:
    """The stale product of mask and parameter must not be what inference uses."""
    for block in pair(pruned):
        x = torch.randn(2, C, 5, 5)
        block.eval()
        with torch.no_grad():
            before = block(x)
            block.fc1.weight_orig.mul_(3)
            assert not torch.allclose(block(x), before)


def test_hooks_fire_as_often_as_in_the_readable_block() -> None:
    def watch(block: nn.Module) -> list[str]:
        seen: list[str] = []
        for name, layer in block.named_children():
            layer.register_forward_pre_hook(lambda *_, name=name: seen.append(f"{name} pre"))
            layer.register_forward_hook(lambda *_, name=name: seen.append(f"{name} forward"))
            layer.register_full_backward_pre_hook(lambda *_, name=name: seen.append(f"{name} backward pre"))
            layer.register_full_backward_hook(lambda *_, name=name: seen.append(f"{name} backward"))
        block(torch.randn(2, C, 3, 3, requires_grad=True)).sum().backward()
        return seen

    calls = [watch(block) for block in pair()]
    assert calls[0] == calls[1]
    assert len(calls[1]) == 8


def test_hooks_of_all_modules_see_the_layers() -> None:
    """As FlopCounterMode and other trackers register them."""
    counted = []
    for block in pair():
        with FlopCounterMode(display=False) as counter:
            block(torch.randn(2, C, 3, 3))
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] == 2 * 2 * 2 * C * R


def test_subclasses_of_the_weight_are_called() -> None:
    met = []
    for block in pair(subclassed):
        Tagged.met = 0
        block(torch.randn(2, C, 3, 3))
        met.append(Tagged.met)
    assert met == [2, 2]  # what fc1 makes is one as well


def test_subclass_as_x() -> None:
    Tagged.met = 0
    plain, fused = pair()
    x = torch.randn(2, C, 3, 3)
    torch.testing.assert_close(fused(x.as_subclass(Tagged)), plain(x.as_subclass(Tagged)), rtol=1e-5, atol=1e-6)
    assert Tagged.met == 4


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"bias": False, "gate": "hardsigmoid", "add_one": True},
    {"dim": -1},
    {"post_activation": "relu"},
    {"inplace": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
@pytest.mark.parametrize("prologue", [False, True])
def test_every_option_without_the_op(options: dict[str, Any], rank: int, prologue: bool) -> None:
    """A layer that somebody watches changes nothing: the layers one by one give what the op gives."""
    torch.manual_seed(0)
    block = FusedSE(C, hidden_channels=R, **options).eval()
    shape = [2, *(3, 4, 5)[: rank - 2]]
    shape.insert(rank - 1 if options.get("dim") == -1 else 1, C)
    x, residual = torch.randn(2, *shape)
    more: dict[str, Any] = {}
    if prologue:
        more = {"pre_scale": torch.rand(C), "pre_shift": torch.randn(C), "pre_activation": "relu"}
    expected = block(x, residual, **more), block(x, **more)
    block.fc2.register_forward_hook(lambda *_: None)
    assert not is_untouched(block.fc2, nn.Conv2d)
    torch.testing.assert_close(block(x, residual, **more), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(block(x, **more), expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide_weights", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_types_without_the_op(half: torch.dtype, wide_weights: bool, autocast: bool) -> None:
    block = FusedSE(C, hidden_channels=R).to(torch.float32 if wide_weights else half)
    x = torch.randn(2, C, 7, 5, dtype=half)
    with torch.autocast("cpu", half, enabled=autocast):
        expected = block(x)
        block.fc1.register_forward_hook(lambda *_: None)
        actual = block(x)
    assert actual.dtype == expected.dtype == half
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def test_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    _, block = pair()
    x = torch.randn(2, C, 3, 3)
    with caplog.at_level(logging.INFO, "senet_fast.se"):
        block.fc1.register_forward_hook(lambda *_: None)
        block(x)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "senet_fast.se"):
        block(x)
        block(x)
        (record,) = caplog.records
        assert record.getMessage() == "FusedSE calls its layers instead of the fused op: fc1 has hooks"
        caplog.clear()
        for change, message in {
            in_sequence: "fc1 is a torch.nn.modules.container.Sequential, no torch.nn.modules.conv.Conv2d",
            own_forward: "fc1 has a forward of its own",
            subclassed: "fc1 has a weight that is a Tagged",
        }.items():
            pair(change)[1](x)
            assert caplog.records[-1].getMessage().endswith(f"op: {message}")
        pair()[1](x.as_subclass(Tagged))
        assert caplog.records[-1].getMessage().endswith("op: x is a Tagged")
        with FlopCounterMode(display=False):
            pair()[1](x)
        assert caplog.records[-1].getMessage().endswith("op: hooks of all modules are registered")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that a FusedSE called its layers."""
    calls: list[None] = []
    original = FusedSE._call_layers
    monkeypatch.setattr(FusedSE, "_call_layers", lambda *args: calls.append(None) or original(*args))
    return calls


def test_what_is_plain_stays_one_op(called: list[None]) -> None:
    """Copies of parameters that are no nn.Parameter are plain: of functional calls, of DataParallel's replicas."""
    _, block = pair()
    x = torch.randn(2, C, 3, 3)
    expected = block(x)
    copies = tree_map(lambda t: t.detach().clone(), dict(block.named_parameters()))
    torch.testing.assert_close(torch.func.functional_call(block, copies, x), expected)
    torch.func.grad(lambda tensors: torch.func.functional_call(block, tensors, x).sum())(copies)
    replica: Any = block._replicate_for_data_parallel()
    for name, layer in block.named_children():
        copied = layer._replicate_for_data_parallel()
        for key, tensor in layer._parameters.items():
            setattr(copied, key, tensor.detach())
        replica._modules[name] = copied
    torch.testing.assert_close(replica(x), expected)
    handle = block.fc1.register_forward_hook(lambda *_: None)
    handle.remove()
    block(x)
    assert not called
    block.fc1.register_forward_hook(lambda *_: None)
    block(x)
    assert len(called) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("change", [None, pruned, parametrized, adapted, in_sequence, hooked])
def test_compiles_whole(change: Change | None) -> None:
    plain, block = pair(change)
    x = torch.randn(2, C, 5, 5)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=change not in (pruned, hooked))
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)


def test_weights_that_are_no_parameters() -> None:
    """Of hypernetworks, or frozen: buffers and plain attributes."""
    for change in ("bias", "weight"):
        plain, block = pair()
        for each in (plain, block):
            value = getattr(each.fc1, change).detach() * 2
            delattr(each.fc1, change)
            if change == "bias":
                each.fc1.bias = value
            else:
                each.fc1.register_buffer("weight", value)
        x = torch.randn(2, C, 3, 3)
        torch.testing.assert_close(block(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_code_notices_a_forward_of_a_layer() -> None:
    """Set after the block was compiled, as accelerate does."""
    plain, block = pair()
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph

    compiled, x = torch.compile(block, backend=backend, fullgraph=True), torch.randn(2, C, 5, 5)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)
    assert "senet_fast.squeeze_excite" in graphs[0]
    own_forward(plain), own_forward(block)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, "fc1 has hooks"),
        (in_sequence, r"fc1 is a torch.*\.Sequential, no torch.*\.Conv2d"),
        (own_forward, "fc1 has a forward"),
    ],
)
def test_torchscript_of_changed_layers_is_refused(change: Change, message: str) -> None:
    _, block = pair(change)
    for module in (block, nn.Sequential(block)):
        with pytest.raises(TypeError, match=f"{message}.*; expected the layer that FusedSE was built with"):
            torch.jit.script(module)

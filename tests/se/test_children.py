"""Blocks whose layers somebody changed: pruning, adapters, hooks, quantization; beside SEBlock, changed alike."""

import logging
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from senet_fast.models.layers import ECA, NormSE
from senet_fast.se import FusedSE, SEBlock
from senet_fast.se.guards import is_untouched

C, R = 12, 5


class Adapter(nn.Module):
    """A low-rank addition, as LoRA has it, around a layer."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.base = layer.requires_grad_(False)
        self.down = nn.Conv2d(layer.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, layer.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Tagged(Tensor):
    """A subclass that counts the functions of torch that meet it."""

    met = 0

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.conv2d:
            cls.met += 1
        return super().__torch_function__(function, kinds, args, kwargs)


def pruned(block: Any) -> None:
    prune.l1_unstructured(block.fc1, "weight", 0.5)
    prune.ln_structured(block.fc2, "weight", 0.4, n=2, dim=0)


def old_norms(block: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(block.fc1)
        nn.utils.spectral_norm(block.fc2)


def parametrized(block: Any) -> None:
    parametrizations.weight_norm(block.fc1)
    parametrize.register_parametrization(block.fc2, "weight", Twice())


def adapted(block: Any) -> None:
    block.fc1, block.fc2 = Adapter(block.fc1), Adapter(block.fc2)


def in_sequence(block: Any) -> None:
    block.fc1 = nn.Sequential(block.fc1, nn.Hardtanh(-0.05, 0.05))


def hooked(block: Any) -> None:
    block.fc1.register_forward_hook(lambda module, args, output: output * 0.5)
    block.fc2.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
    block.fc2.register_full_backward_hook(lambda module, grads, _: (grads[0] * 3,))


def own_forward(block: Any) -> None:
    """As accelerate's hooks: a forward of the instance."""
    before = block.fc1.forward
    block.fc1.forward = lambda x: before(x) - 0.2


def rebound_forward(block: Any) -> None:
    block.fc2.forward = types.MethodType(lambda self, x: self._conv_forward(x, -self.weight, self.bias), block.fc2)


def fake_quantized(block: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = torch.ao.quantization
        block.train()
        block.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        quantization.prepare_qat(block, inplace=True)


def subclassed(block: Any) -> None:
    block.fc1.weight = nn.Parameter(block.fc1.weight.detach().as_subclass(Tagged))


CHANGES = (
    *(pruned, old_norms, parametrized, adapted, in_sequence, hooked, own_forward, rebound_forward, fake_quantized),
    subclassed,
)
Change = Callable[[Any], None]


def pair(change: Change | None = None, **options: Any) -> tuple[SEBlock, FusedSE]:
    """The readable block and the fused one with the same parameters, both changed."""
    torch.manual_seed(0)
    blocks = []
    for make in (SEBlock, FusedSE):
        torch.manual_seed(1)
        block = make(C, hidden_channels=R, activation="silu", **options)
        if change is not None:
            torch.manual_seed(2)
            change(block)
        blocks.append(block)
    return blocks[0], blocks[1]


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
            in_sequence: "fc1 is a Sequential, no Conv2d",
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


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("change", [None, pruned, parametrized, adapted, in_sequence, hooked], ids=str)
def test_compiles_whole(change: Change | None) -> None:
    plain, block = pair(change)
    x = torch.randn(2, C, 5, 5)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=change not in (pruned, hooked))
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)


def tail(change: Change | None, se: Any = True) -> NormSE:
    torch.manual_seed(0)
    made = NormSE(C, se, 3, relu_last=True)
    nn.init.normal_(made.norm.weight, 1, 0.2)
    nn.init.normal_(made.norm.running_mean, 0, 0.3)  # type: ignore[arg-type]
    if change is not None:
        change(made)
    return made


def hook_norm(made: Any) -> None:
    made.norm.register_forward_hook(lambda module, args, output: output * 0.5)


def hook_norm_backward(made: Any) -> None:
    made.norm.register_full_backward_hook(lambda module, grads, _: (grads[0] * 3,))


def hook_se(made: Any) -> None:
    made.se.register_forward_pre_hook(lambda module, args: (args[0] + 0.1, *args[1:]))


def norm_forward(made: Any) -> None:
    made.norm.forward = lambda x: x * 2


def change_se(made: Any) -> None:
    hooked(made.se)


def prune_se(made: Any) -> None:
    pruned(made.se)


@pytest.mark.parametrize("change", [hook_norm, hook_norm_backward, hook_se, norm_forward, change_se, prune_se])
@pytest.mark.parametrize("training", [False, True])
def test_networks_notice_as_well(change: Change, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual block's tail against its own modules one after the other."""
    monkeypatch.setattr("senet_fast.models.layers.LEAST_FUSED", 0)
    made, by_hand = tail(change).train(training), tail(change).train(training)
    x, residual = torch.randn(2, 3, C, 5, 4)
    outputs = []
    for block in (made, by_hand):
        results = []
        for mode in (torch.enable_grad, torch.no_grad):
            given = x.clone().requires_grad_(mode is torch.enable_grad)
            with mode():
                v = given * 1
                y = block(v, residual) if block is made else block.se(block.norm(v), residual)
            if mode is torch.enable_grad:
                y.square().sum().backward()
                results += [given.grad, *(p.grad for p in block.parameters())]
            results.append(y.detach())
        outputs.append([*results, *block.buffers()])
    for actual, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", [None, torch.randn(2, C, 5, 4)], ids=["alone", "residual"])
def test_channel_attention_notices_as_well(residual: Tensor | None) -> None:
    torch.manual_seed(0)
    block, x = ECA(C, post_activation="relu"), torch.randn(2, C, 5, 4)
    expected = block(x, residual)
    handle = block.conv.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(block(x, residual), expected)
    handle.remove()
    prune.l1_unstructured(block.conv, "weight", 1)
    block.conv.weight_orig.data.mul_(2)
    block.conv.weight = None  # stale by now: the hook makes it anew
    taps = block.conv.weight_orig * block.conv.weight_mask
    fresh = ECA(C, post_activation="relu")
    fresh.conv.weight.data.copy_(taps)
    torch.testing.assert_close(block(x, residual), fresh(x, residual))


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


def test_channel_attention_with_another_convolution() -> None:
    for options in ({"padding": 2, "dilation": 2}, {"padding": 1, "padding_mode": "circular"}):
        block, x = ECA(C), torch.randn(2, C, 3, 3)
        block.conv = nn.Conv1d(1, 1, 3, bias=False, **options)
        y = block(x)
        block.conv.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(block(x), y)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_code_notices_a_forward_of_a_layer() -> None:
    """Set after the block was compiled, as accelerate does."""
    plain, block = pair()
    compiled, x = torch.compile(block, backend="eager", fullgraph=True), torch.randn(2, C, 5, 5)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)
    own_forward(plain), own_forward(block)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [(hooked, "fc1 has hooks"), (in_sequence, "fc1 is a Sequential, no Conv2d"), (own_forward, "fc1 has a forward")],
)
def test_torchscript_of_changed_layers_is_refused(change: Change, message: str) -> None:
    _, block = pair(change)
    for module in (block, nn.Sequential(block)):
        with pytest.raises(TypeError, match=f"{message}.*; expected the layer that FusedSE was built with"):
            torch.jit.script(module)

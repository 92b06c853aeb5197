"""The 1x1 convolution beside the networks' SE blocks: in one op with them at inference, and nowhere else."""

import copy
import gc
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from called import ops
from test_networks import SMALL, with_statistics
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from senet_fast import fuse
from senet_fast.models import ECA, create, inception_resnet, resnet
from senet_fast.se import SEBlock, kept

CONV, INTO = "squeeze_excite_conv", "squeeze_excite_into"
FEW: dict[str, Any] = {"depths": (1, 2), "base": 16, "group_width": 16, "reduction": 4}
GROUPS = FEW | {"groups": 8, "group_width": 2}


def small(name: str, options: dict[str, Any]) -> Callable[[Any], nn.Module]:
    """A ResNet without its classifier, whose few numbers would tell little."""

    def make(se: Any) -> nn.Module:
        network: Any = create(name, se=se, num_classes=3, **options)
        return nn.Sequential(network.stem, network.stages)

    return make


class ReadableECA(ECA):
    def for_op(self, x: Tensor) -> None:
        """Never: its layer is called."""


IMAGE, MAP = (3, 64, 64), (32, 9, 7)
CASES: dict[str, tuple[Callable[[Any], nn.Module], tuple[int, ...], int]] = {
    "resnet": (small("resnet50", FEW), IMAGE, 3),
    "stride_in_first": (small("resnet50", FEW | {"stride_in_first": True}), IMAGE, 3),
    "resnext": (small("resnext50_32x4d", GROUPS), IMAGE, 3),
    "senet": (small("senet154", GROUPS), IMAGE, 3),
    "eca": (lambda se: small("resnet50", FEW)(ECA if se is True else ReadableECA), IMAGE, 3),
    "pre": (small("resnet50", FEW | {"integration": "pre"}), IMAGE, 3),
    "inception": (lambda se: inception_resnet.Residual(32, inception_resnet.B, se, 8), MAP, 1),
    "inception_last": (lambda se: inception_resnet.Residual(32, inception_resnet.C, se, 8, last=True), MAP, 1),
}
EACH = pytest.mark.parametrize("case", CASES)


def made(case: str) -> tuple[nn.Module, Tensor]:
    make, shape, _ = CASES[case]
    return with_statistics(make(True)).eval(), torch.randn(2, *shape)


def readable(case: str, network: nn.Module) -> nn.Module:
    """A network with the readable block and copies of the parameters and buffers."""
    other = CASES[case][0](SEBlock)
    other.load_state_dict(network.state_dict())
    if isinstance(network, inception_resnet.Residual):
        other.scale = float(network.scales[0])  # which is no parameter, and was rounded where the network was
    return other.eval()


def relative(expected: Tensor, actual: Tensor) -> float:
    assert expected.shape == actual.shape
    assert expected.dtype == actual.dtype
    return float((expected - actual).abs().max() / expected.abs().max())


@EACH
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_which_op_runs(case: str, layout: torch.memory_format) -> None:
    network, x = made(case)
    x = x.to(memory_format=layout)
    given = x.clone()
    with torch.no_grad():
        assert ops(lambda: network(x)) == [CONV] * CASES[case][2]
        y, expected = network(x), readable(case, network)(x)
    assert relative(expected, y) < 1e-5
    assert y.stride() == expected.stride()
    assert torch.equal(x, given)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("mobilenet_v1", {}, (1, 3, 64, 64)),  # ReLU between norm and gate, and depthwise convolutions behind it
        ("shufflenet_v1", {}, (1, 3, 64, 64)),  # in groups
        ("bn_inception", {}, (1, 3, 64, 64)),  # several branches read what is gated
        ("resnet_digits", {}, (1, 1, 16, 16)),  # 3x3
        ("resnet_digits", {"integration": "pre"}, (1, 1, 16, 16)),
        *(("resnet50", FEW | {"integration": place}, (1, 3, 64, 64)) for place in ("post", "identity", "3x3")),
    ],
)
def test_where_there_is_none(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    network = create(name, se=True, num_classes=3, **options).eval()
    with torch.no_grad():
        assert not {*ops(lambda: network(torch.randn(shape)))} & {CONV}


def test_maps_too_small_for_it() -> None:
    """Where the op has no kernel that pays, the tail is what it was."""
    network: Any = create("resnet50", se=True, num_classes=3, **FEW).eval()
    with torch.no_grad():
        assert ops(lambda: network(torch.randn(1, 3, 16, 16))) == [CONV, INTO, INTO]  # 4x4, then 2x2


def test_norm_and_relu_in_front_are_in_the_op() -> None:
    network, x = made("resnet")
    with torch.no_grad(), torch.autograd.profiler.profile() as profile:
        network(x)
    names = Counter(event.name for event in profile.function_events)
    assert names["aten::batch_norm"] == 1 + 3 + 1  # the stem's, one of each block, and a projection's


@EACH
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_error_against_float64(case: str, layout: torch.memory_format, dtype: torch.dtype, images: int) -> None:
    network, _ = made(case)
    network = network.to(dtype, memory_format=layout)
    x = torch.randn(images, *CASES[case][1]).to(dtype).to(memory_format=layout)
    plain = readable(case, network.float()).to(dtype, memory_format=layout)
    network = network.to(dtype)
    with torch.no_grad():
        exact = readable(case, copy.deepcopy(network).double()).double()(x.double())
        assert ops(lambda: network(x)) == [CONV] * CASES[case][2]
        error, own = (float((model(x) - exact).square().mean().sqrt()) for model in (network, plain))
    assert 0 < error < 1.5 * own


# ---- weights are never stale ----


def in_place(network: nn.Module) -> None:
    for name, tensor in network.named_parameters():
        if name.endswith("branch.5.weight") or name.endswith(("fc1.weight", "projection.weight", "branch.0.weight")):
            tensor.mul_(-1.5)


def past_autograd(network: nn.Module) -> None:
    for tensor in network.parameters():
        tensor.data.mul_(0.8)


def statistics(network: nn.Module) -> None:
    for tensor in (*network.buffers(), *network.parameters()):
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.mul_(1.3)


def assigned(network: nn.Module) -> None:
    other = {
        name: tensor * 0.9 if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(other, assign=True)


def loaded(network: nn.Module) -> None:
    network.load_state_dict({name: (tensor * 0.9).to(tensor.dtype) for name, tensor in network.state_dict().items()})


def there_and_back(network: nn.Module) -> None:
    network.to(torch.bfloat16).to(torch.float32)


CHANGES = (in_place, past_autograd, statistics, assigned, loaded, there_and_back)


@EACH
@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_never_stale(case: str, change: Callable[[nn.Module], None]) -> None:
    network, x = made(case)
    with torch.no_grad():
        before = network(x)
        change(network)
        expected = readable(case, network)(x)
        assert ops(lambda: network(x)) == [CONV] * CASES[case][2]
        assert relative(expected, before) > 2e-5
        assert relative(expected, network(x)) < 1e-5


@EACH
@pytest.mark.parametrize("how", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_have_weights_of_their_own(case: str, how: Callable[[nn.Module], nn.Module]) -> None:
    network, x = made(case)
    with torch.no_grad():
        before = network(x)
        other = how(network)
        past_autograd(other)
        assert relative(readable(case, other)(x), other(x)) < 1e-5
        assert torch.equal(network(x), before)


def test_what_is_kept_leaves_with_the_network() -> None:
    gc.collect()  # what other tests left
    before = len(kept._kept)
    network, x = made("resnet")
    with torch.no_grad():
        network(x)
    assert len(kept._kept) == before + 3
    del network
    gc.collect()
    assert len(kept._kept) == before


def test_tensors_that_count_no_writes() -> None:
    with torch.inference_mode():
        network, x = made("resnet")
        assert CONV not in ops(lambda: network(x))


# ---- what asks for the modules' own calls ----

PLACES = {
    **{"branch": 0, "branch.5": 0, "tail": 0, "tail.norm": 0, "tail.se": 0, "tail.se.fc1": 0, "tail.se.fc2": 0},
    **{"": 1, "shortcut": 1, "branch.3": 1, "branch.4": 1, "branch.4.norm": 1, "branch.4.se": 1, "branch.0": 1},
}
PLACES_PRE = {"branch": 0, "branch.0": 0, "branch.1": 0, "branch.2": 0, "se": 0, "se.fc1": 0, "branch.3": 1, "tail": 1}


@pytest.mark.parametrize("pre", [False, True], ids=["behind", "in_front"])
@pytest.mark.parametrize(
    ("case", "at", "count"),
    [*(("resnet", *place) for place in PLACES.items()), *(("pre", *place) for place in PLACES_PRE.items())],
)
def test_hooks_are_called(case: str, at: str, count: int, pre: bool) -> None:
    """And may change what they see; ``count``: calls of the op with the convolution."""
    network, _ = made(case)
    block, other = (model[1][0][0] for model in (network, readable(case, network)))  # type: ignore[index]
    u, seen = torch.randn(2, 64, 12, 12), Counter[nn.Module]()

    def hook(module: nn.Module, args: Any, y: Any = None) -> Any:
        seen[module] += 1
        return (args[0] * 1.1, *args[1:]) if pre else y * 1.1

    for model in (block, other):
        target = model.get_submodule(at)
        target.register_forward_pre_hook(hook) if pre else target.register_forward_hook(hook)
    with torch.no_grad():
        y = block(u)
        if not (at == "tail.se" and not pre):  # FusedSE takes over the neighbours behind it
            assert relative(other(u), y) < 1e-5
        assert seen[block.get_submodule(at)] == 1
        assert ops(lambda: block(u)).count(CONV) == count


@EACH
def test_hooks_of_all_modules(case: str) -> None:
    network, x = made(case)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: None)
    try:
        with torch.no_grad():
            assert CONV not in ops(lambda: network(x))
    finally:
        handle.remove()


def strided(network: nn.Module, conv: nn.Conv2d) -> None:
    conv.stride = (2, 2)


def grouped(network: nn.Module, conv: nn.Conv2d) -> None:
    conv.groups, conv.weight = 2, nn.Parameter(conv.weight[:, ::2].clone())


def padded(network: nn.Module, conv: nn.Conv2d) -> None:
    conv.padding = (1, 1)


def of_its_own(network: nn.Module, conv: nn.Conv2d) -> None:
    conv.forward = lambda x: nn.Conv2d.forward(conv, x) * 2  # type: ignore[method-assign]


def parametrized(network: nn.Module, conv: nn.Conv2d) -> None:
    nn.utils.parametrizations.weight_norm(conv)


def training_norm(network: nn.Module, conv: nn.Conv2d) -> None:
    network.norm.train()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("change", [grouped, of_its_own, parametrized, training_norm])
def test_other_convolutions(change: Callable[[nn.Module, nn.Conv2d], None]) -> None:
    network, _ = made("resnet")
    block = network[1][0][0]  # type: ignore[index]
    other = copy.deepcopy(readable("resnet", network)[1][0][0])  # type: ignore[index]
    x = torch.randn(2, 64, 12, 12)
    for model in (block, other):
        change(model.tail, model.branch[5])
    with torch.no_grad():
        assert relative(other(x), block(x)) < 1e-5
        assert CONV not in ops(lambda: block(x))


@pytest.mark.parametrize("change", [strided, padded])
def test_other_sizes(change: Callable[[nn.Module, nn.Conv2d], None]) -> None:
    """What the convolution makes is then no longer as large as the shortcut, for the modules' addition to refuse."""
    network, _ = made("resnet")
    block = network[1][0][0]  # type: ignore[index]
    change(block.tail, block.branch[5])
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError), match="residual"):
        block(torch.randn(2, 64, 12, 12))


@EACH
def test_the_rest_is_bitwise_what_it_was(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients in either mode, autocast, float64 and norms that train without gradients."""
    network, x = made(case)

    def results() -> list[Tensor]:
        model, found = copy.deepcopy(network), []
        for training in (False, True):
            model.train(training)
            y = model(x)
            found += [y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))]
        with torch.no_grad():
            assert case.startswith("inception") or CONV not in ops(lambda: model(x))  # whose blocks end without a norm
            model.eval()
            with torch.autocast("cpu", torch.bfloat16):
                assert CONV not in ops(lambda: model(x))
                found.append(model(x))
            model.double()
            assert CONV not in ops(lambda: model(x.double()))
            return [*found, model(x.double()), *model.buffers()]

    actual = results()
    for module in (resnet, inception_resnet):
        monkeypatch.setattr(module, "beside", lambda *_: None)
    for value, expected in zip(actual, results(), strict=True):
        assert torch.equal(value, expected)


# ---- graphs ----


@EACH
def test_recorded_calls_hold_no_prepared_weights(case: str) -> None:
    network, x = made(case)
    with torch.no_grad():
        network(x)
        recorded = make_fx(network)(x)
        assert CONV not in {
            str(node.target).split(".")[1] for node in recorded.graph.nodes if "senet" in str(node.target)
        }
        in_place(network)
        assert relative(network(x), recorded(x)) < 1e-5
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert network(mode.from_tensor(x)).shape == network(x).shape


@pytest.mark.slow
@pytest.mark.xdist_group("inductor")
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("case", ["resnet", "pre", "inception"])
def test_compiled(case: str, frozen: bool) -> None:
    """Where weights are constants they are prepared once; elsewhere nothing changes."""
    network, x = made(case)
    with torch.no_grad(), inductor_config.patch(freezing=frozen):
        compiled = torch.compile(network, fullgraph=True, backend="inductor" if frozen else "aot_eager")
        assert relative(network(x), compiled(x)) < 1e-5
        with torch.autograd.profiler.profile() as profile:
            compiled(x)
    called = [event.name for event in profile.function_events if event.name.startswith("senet_fast::squeeze_excite")]
    assert len(called) == CASES[case][2]
    assert all(name.startswith(f"senet_fast::{CONV}") == frozen for name in called)


# ---- the networks around it ----


def test_names_in_state_dicts() -> None:
    block = resnet.ResNet(SMALL, se=True).stages[0][0]  # type: ignore[index]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = [f"tail.se.{name}" for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
    convolutions = [f"branch.{at}.weight" for at in (0, 3, 5)] + ["shortcut.0.weight"]
    norms = [f"{at}.{name}" for at in ("branch.1", "branch.4.norm", "shortcut.1", "tail.norm") for name in norm]
    assert sorted(block.state_dict()) == sorted([*convolutions, *norms, *layers])


@EACH
def test_fuse_leaves_it(case: str) -> None:
    network, x = made(case)
    with torch.no_grad():
        expected = network(x)
        report = fuse(network)
        assert (report.fused, report.skipped) == ([], [])
        assert torch.equal(network(x), expected)
        assert ops(lambda: network(x)) == [CONV] * CASES[case][2]

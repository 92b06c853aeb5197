"""FusedSE beside SEBlock: parameters, state dicts of other libraries, options, training."""

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from senet_fast.se import FusedSE, SEBlock, reference

C, R = 12, 3
Block = Callable[..., nn.Module]


class Host(nn.Module):
    """A block inside a network, with neighbours whose names look like its own."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(4, C, 1)
        self.layers = nn.Sequential(nn.Identity(), block)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.fc1(x))


class TorchvisionStyle(nn.Module):
    """torchvision.ops.SqueezeExcitation; timm's SEModule has the same names beside another order of construction."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(C, R, 1, bias=bias), nn.Conv2d(R, C, 1, bias=bias)
        self.activation, self.scale_activation = nn.ReLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))


class TimmStyle(nn.Module):
    """timm's SEModule, whose bn is an Identity; its SqueezeExcite names the layers conv_reduce and conv_expand."""

    def __init__(self, bias: bool = True, names: tuple[str, str] = ("fc1", "fc2")) -> None:
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(C, R, 1, bias=bias))
        self.bn, self.act, self.gate = nn.Identity(), nn.ReLU(inplace=True), nn.Sigmoid()
        self.add_module(names[1], nn.Conv2d(R, C, 1, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (getattr(self, name) for name in self.names)
        return x * self.gate(second(self.act(self.bn(first(x.mean((2, 3), keepdim=True))))))


class LinearStyle(nn.Module):
    """The SELayer found in many repositories."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(C, R, bias=bias), nn.ReLU(), nn.Linear(R, C, bias=bias), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


OTHERS: dict[str, Block] = {
    "torchvision": TorchvisionStyle,
    "timm": TimmStyle,
    "timm_efficientnet": lambda bias: TimmStyle(bias, ("conv_reduce", "conv_expand")),
    "selayer": LinearStyle,
    "seblock": lambda bias: SEBlock(C, hidden_channels=R, bias=bias),
}


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_loads_state_dicts_of_other_libraries(other: str, bias: bool, nested: bool, assign: bool) -> None:
    source: nn.Module = OTHERS[other](bias)
    target: nn.Module = FusedSE(C, hidden_channels=R, bias=bias)
    x = torch.randn(2, C, 5, 5)
    if nested:
        source, target, x = Host(source), Host(target), torch.randn(2, 4, 5, 5)
    own = shapes(target)
    state = source.state_dict()
    before = OrderedDict(state)
    result = target.load_state_dict(state, strict=True, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert state == before  # the caller's dict: same keys, same tensors
    assert shapes(target) == own
    torch.testing.assert_close(target(x), source(x))


@pytest.mark.parametrize("other", ["torchvision", "selayer"])
def test_strict_loading_still_complains(other: str) -> None:
    """A bias too many or too few, or another size, is an error that names our parameter."""
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        FusedSE(C, hidden_channels=R, bias=False).load_state_dict(OTHERS[other](True).state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"fc1.bias"'):
        FusedSE(C, hidden_channels=R).load_state_dict(OTHERS[other](False).state_dict())
    target = FusedSE(C, hidden_channels=R + 1)
    with pytest.raises(RuntimeError, match=r"size mismatch for fc1.weight: .*\[3, 12, 1, 1\]"):
        target.load_state_dict(OTHERS[other](True).state_dict())


def test_failed_loading_changes_nothing() -> None:
    target = FusedSE(C, hidden_channels=R)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = {"fc.0.weight": torch.randn(R + 1, C), "fc.2.weight": torch.randn(C, R + 1)}
    kept = dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        target.load_state_dict(state)
    assert state == kept
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"hidden_channels": 5}, {"reduction": 3}], ids=str)
def test_same_parameters_as_the_twin(options: dict[str, Any]) -> None:
    """Names, shapes, order and, from one seed, values: the two are interchangeable in both directions."""
    torch.manual_seed(3)
    block = SEBlock(C, **{"reduction": 4} | options)
    torch.manual_seed(3)
    fused = FusedSE(C, **{"reduction": 4} | options)
    assert list(fused.state_dict()) == list(block.state_dict())
    for name, tensor in block.state_dict().items():
        assert torch.equal(fused.state_dict()[name], tensor), name
    x = torch.randn(2, C, 3, 4)
    torch.testing.assert_close(fused(x), block(x))
    with torch.no_grad():
        fused.fc1.weight.add_(0.1)
    block.load_state_dict(fused.state_dict())
    torch.testing.assert_close(block(x), fused(x))


@pytest.mark.parametrize("training", [True, False])
def test_from_block_shares_parameters(training: bool) -> None:
    block = SEBlock(C, 4, activation="silu", gate="hardsigmoid").train(training)
    block.fc1.weight.requires_grad_(False)
    fused = FusedSE.from_block(block)
    assert type(fused) is FusedSE
    assert fused.training is fused.fc1.training is training
    assert dict(fused.named_parameters()).keys() == dict(block.named_parameters()).keys()
    for ours, theirs in zip(fused.parameters(), block.parameters(), strict=True):
        assert ours is theirs
    x = torch.randn(2, C, 3, 3)
    torch.testing.assert_close(fused(x), block(x))


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ("gelu_tanh", "gelu_tanh"),
        ("leaky_relu(0.2)", "leaky_relu(0.2)"),
        (nn.SiLU, "silu"),
        (nn.LeakyReLU(0.2), "leaky_relu(0.2)"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (nn.Hardsigmoid(inplace=True), "hardsigmoid"),
        (F.silu, "silu"),
        (torch.sigmoid, "sigmoid"),
        (F.leaky_relu, "leaky_relu(0.01)"),
        (partial(F.leaky_relu, negative_slope=0.3), "leaky_relu(0.3)"),
        (partial(F.gelu, approximate="tanh"), "gelu_tanh"),
        (partial(nn.SiLU, inplace=True), "silu"),
        (partial(nn.LeakyReLU, 0.2, inplace=True), "leaky_relu(0.2)"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),  # the same name in every process
)
@pytest.mark.parametrize("argument", ["activation", "gate"])
def test_activations_as_names_modules_and_classes(given: Any, spec: str, argument: str) -> None:
    x = torch.randn(2, C, 3, 3)
    for make in (FusedSE, SEBlock):
        torch.manual_seed(0)
        named = make(C, 4, **{argument: spec})
        torch.manual_seed(0)
        module = make(C, 4, **{argument: given})
        assert getattr(module, argument) == spec
        assert torch.equal(module(x), named(x))


def test_options_of_the_module() -> None:
    """dim, add_one, post_activation and the residual reach the op."""
    module = FusedSE(C, 4, activation="silu", gate="tanh", dim=-1, add_one=True, post_activation=nn.ReLU)
    x, residual = torch.randn(2, 7, C), torch.randn(2, 7, C)
    weights = [module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias]
    options = {"activation": "silu", "gate": "tanh", "dim": -1, "add_one": True, "post_activation": "relu"}
    expected = reference.squeeze_excite(x, *weights, residual=residual, **options)
    torch.testing.assert_close(module(x, residual), expected)
    torch.testing.assert_close(module(x), reference.squeeze_excite(x, *weights, **options))


@pytest.mark.parametrize("shape", [(2, C), (2, C, 7), (2, C, 3, 4), (2, C, 2, 3, 4)], ids=str)
def test_any_rank(shape: tuple[int, ...]) -> None:
    module, x = FusedSE(C, 4), torch.randn(shape)
    weights = [module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias]
    torch.testing.assert_close(module(x), reference.squeeze_excite(x, *weights))


def test_repr() -> None:
    plain = repr(FusedSE(C, 4))
    assert plain.startswith("FusedSE(\n  activation='relu', gate='sigmoid'\n  (fc1): Conv2d(12, 3, kernel_size=(1, 1)")
    shown = repr(FusedSE(C, 4, gate=nn.Hardsigmoid, dim=2, add_one=True, post_activation="relu"))
    assert "activation='relu', gate='hardsigmoid', dim=2, add_one=True, post_activation='relu'" in shown


def test_half_precision_module(dtype: torch.dtype) -> None:
    """model.to(dtype) moves the parameters along, and float32 parameters take a half x."""
    module = FusedSE(C, 4)
    x = torch.randn(2, C, 3, 3).to(dtype)
    if dtype != torch.float64:
        assert module(x).dtype == dtype
    assert module.to(dtype)(x).dtype == dtype


def test_to_meta_and_back() -> None:
    """Deferred initialization, as large models are built."""
    with torch.device("meta"):
        module = FusedSE(C, 4)
    assert module(torch.empty(2, C, 3, 3, device="meta")).shape == (2, C, 3, 3)
    source = SEBlock(C, 4)
    module.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(2, C, 3, 3)
    torch.testing.assert_close(module(x), source(x))


@pytest.mark.parametrize("given", [F.elu, partial(F.relu, torch.ones(1)), partial(nn.ELU), nn.PReLU, lambda z: z, 3])
def test_other_activations_are_refused(given: Any) -> None:
    with pytest.raises(
        TypeError, match=r"activation is .*; expected a name \(identity, relu, .*or the function of one"
    ):
        FusedSE(C, 4, activation=given)


def test_device_and_dtype() -> None:
    """As torch's own layers take them, so that skip_init and deferred initialization work."""
    module = FusedSE(C, 4, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
    skipped = nn.utils.skip_init(FusedSE, C, 4, gate="hardsigmoid", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in skipped.parameters()} == {("cpu", torch.bfloat16)}
    assert skipped.gate == "hardsigmoid"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [lambda **o: FusedSE(C, 4, **o), lambda **o: FusedSE.from_block(SEBlock(C, 4))])
@pytest.mark.parametrize("bias", [True, False])
def test_torchscript(make: Callable[..., FusedSE], bias: bool, tmp_path: Any) -> None:
    """A scripted block, alone and in a host, saved and loaded: values, gradients, and the parameters are shared."""
    module = make(bias=bias, activation="silu", post_activation="relu", add_one=True, inplace=True)
    host = nn.Sequential(nn.Conv2d(3, C, 1), module)
    scripted = torch.jit.script(host)
    assert host[1] is module
    torch.jit.save(scripted, str(tmp_path / "host.pt"))
    loaded = torch.jit.load(str(tmp_path / "host.pt"))
    x = torch.randn(2, 3, 5, 5)
    residual = torch.randn(2, C, 5, 5)
    alone = torch.jit.script(module)
    for mode in (True, False):
        host.train(mode), scripted.train(mode), loaded.train(mode), alone.train(mode)
        expected = host(x)
        torch.testing.assert_close(scripted(x), expected)
        torch.testing.assert_close(loaded(x), expected)
        torch.testing.assert_close(alone(host[0](x), residual), module(host[0](x), residual))
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), expected)
    grads = torch.autograd.grad(host(x).square().sum(), list(host.parameters()))
    torch.testing.assert_close(torch.autograd.grad(scripted(x).square().sum(), list(host.parameters())), grads)
    with pytest.raises(Exception, match="expected none in TorchScript"):
        alone(host[0](x), None, torch.ones(C))


def small_network(block: Block) -> nn.Sequential:
    torch.manual_seed(11)
    return nn.Sequential(
        *(nn.Conv2d(1, C, 3, padding=1), nn.BatchNorm2d(C), block(C, 4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(C, C, 3, padding=1), block(C, 4, activation="silu", gate="hardsigmoid"), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(C * 16, 4)),
    )


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize(
    ("memory_format", "checkpointed"),
    [(torch.contiguous_format, False), (torch.channels_last, False), (torch.contiguous_format, True)],
    ids=str,
)
def test_training_runs_alike(memory_format: torch.memory_format, checkpointed: bool) -> None:
    """Thirty steps of Adam from one seed: the fused network's losses and parameters are the plain one's."""
    torch.set_num_threads(1)  # so small a network is faster without
    torch.manual_seed(7)
    images, labels = torch.randn(32, 1, 8, 8), torch.randint(4, (32,))
    images[range(32), 0, labels] += 2  # something to learn: the label's row is brighter
    images = images.contiguous(memory_format=memory_format)

    def train(block: Block) -> tuple[list[float], list[Tensor]]:
        network = small_network(block).to(memory_format=memory_format)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            if checkpointed and block is FusedSE:
                scores = checkpoint_sequential(network, 3, images, use_reentrant=False)
            else:
                scores = network(images)
            loss = nn.functional.cross_entropy(scores, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, list(network.parameters())

    plain, fused = train(SEBlock), train(FusedSE)
    assert plain[0][-1] < 0.5 * plain[0][0]
    assert fused[0] == pytest.approx(plain[0], rel=2e-3)
    torch.testing.assert_close(fused[1][0], plain[1][0], rtol=0.02, atol=2e-3)


def test_one_optimizer_step() -> None:
    """Before rounding can grow: one step of SGD leaves every parameter where the plain network's is."""
    x, target = torch.randn(8, 1, 8, 8), torch.randn(8, 4)
    after = []
    for block in (SEBlock, FusedSE):
        network = small_network(block)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
        nn.functional.mse_loss(network(x), target).backward()
        optimizer.step()
        after.append(dict(network.named_parameters()))
    torch.testing.assert_close(*after, rtol=1e-5, atol=1e-6)

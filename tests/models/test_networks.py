"""The networks with the fused op against the same networks with the readable block."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from senet_fast.models import ECA, NETWORKS, ResNet, create, inception_resnet, layers, resnet, shufflenet
from senet_fast.models.layers import NormSE
from senet_fast.models.resnet import INTEGRATIONS, RESNET_50, RESNET_DIGITS, Residual
from senet_fast.se import FusedSE, SEBlock, reference

SMALL = replace(RESNET_50, depths=(1, 2), base=8, group_width=8, reduction=4)


def with_statistics(network: nn.Module) -> nn.Module:
    """BatchNorms as training leaves them, so that folding one wrongly shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.8, 1.2),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.8, 1.3),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return network


def twin(network: nn.Module, name: str, **options: Any) -> nn.Module:
    """Another network on the same parameters and buffers."""
    with torch.device("meta"):
        other = create(name, **options)
    other.load_state_dict(network.state_dict(), assign=True)
    for path, buffer in network.named_buffers():  # those that no state dict has
        other.get_submodule(path.rpartition(".")[0])._buffers[path.rpartition(".")[2]] = buffer
    return other.train(network.training)


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("eca_resnet50", "vgg16_bn")])
def test_fused_equals_reference(name: str) -> None:
    """With one block a stage where there are stages."""
    torch.manual_seed(0)
    shape = (2, 1, 8, 8) if name == "resnet_digits" else (1, 3, 75, 75)
    options: dict[str, Any] = {"num_classes": 10}
    if name in resnet.NETWORKS:
        options["depths"] = (1, 1, 1) if name == "resnet_digits" else (1, 1, 1, 1)
    x = torch.randn(shape)
    plain = with_statistics(create(name, se=SEBlock, **options)).eval()
    fused = twin(plain, name, se=True, **options)
    assert sum(isinstance(module, FusedSE) for module in fused.modules()) >= 3
    with torch.no_grad():
        expected = plain(x)
        assert expected.shape == (len(x), 10)
        assert_same(fused(x), expected)
        # channels_last as well, and the blocks' gates must matter
        fused, x = fused.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        assert_same(fused(x), expected)
        for module in fused.modules():
            if isinstance(module, FusedSE):
                module.fc2.bias.data.fill_(-3.0)
        assert not torch.allclose(fused(x), expected, rtol=1e-2)


def test_vgg() -> None:
    """Its convolutions alone: the classifier has 124 of 138 million parameters and nothing of ours."""
    torch.manual_seed(0)
    with torch.device("meta"):
        plain, fused = create("vgg16_bn", se=SEBlock).features, create("vgg16_bn", se=True).features
    assert isinstance(plain, nn.Sequential)
    assert isinstance(fused, nn.Sequential)
    plain = plain[:14].to_empty(device="cpu").eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.05)
    fused = fused[:14].eval()
    fused.load_state_dict(with_statistics(plain).state_dict(), assign=True)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_same(fused(x), plain(x))
    assert_same(fused(x), plain(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("integration", INTEGRATIONS)
@pytest.mark.parametrize("config", [SMALL, RESNET_DIGITS], ids=["bottleneck", "basic"])
def test_integrations(config: Any, integration: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and running statistics, each place of the block, against the readable block in float64."""
    monkeypatch.setattr(layers, "LEAST_FUSED", 0)
    torch.manual_seed(0)
    options = {"num_classes": 10, "integration": integration}
    plain = with_statistics(ResNet(config, se=SEBlock, **options)).double().train(training)
    fused = ResNet(config, se=True, **options).double().train(training)
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(3, 1 if config is RESNET_DIGITS else 3, 20, 28, dtype=torch.float64)
    labels = torch.arange(3)
    kept = x.clone()
    for network in (plain, fused):
        cross_entropy(network(x), labels).backward()
    for (name, expected), actual in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-8, atol=1e-10, msg=name)
    for expected, actual in zip(plain.buffers(), fused.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
    assert torch.equal(x, kept)


def by_hand(block: Residual, x: Tensor) -> Tensor:
    """Figure 5 and section 6.5 of arXiv 1709.01507, in eval mode."""

    def norm(tail: NormSE, u: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        mean, var = tail.norm.running_mean, tail.norm.running_var
        assert mean is not None
        assert var is not None
        u = (u - mean.view(shape)) / torch.sqrt(var.view(shape) + tail.norm.eps)
        return u * tail.norm.weight.view(shape) + tail.norm.bias.view(shape)

    def scale(se: Any, u: Tensor) -> Tensor:
        return reference.squeeze_excite(u, se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias)

    def branch(u: Tensor) -> Tensor:
        for layer in block.branch:
            if isinstance(layer, NormSE):
                u = norm(layer, u)
                u = relu(scale(layer.se, u) if block.integration == "3x3" else u)
            else:
                u = layer(u)
        return norm(block.tail, u)

    if block.integration == "pre":
        return relu(branch(scale(block.se, x)) + block.shortcut(x))
    if block.integration == "post":
        return scale(block.se, relu(branch(x) + block.shortcut(x)))
    if block.integration == "identity":
        return relu(branch(x) + scale(block.se, block.shortcut(x)))
    if block.integration == "standard":
        return relu(scale(block.tail.se, branch(x)) + block.shortcut(x))
    return relu(branch(x) + block.shortcut(x))


@pytest.mark.parametrize("integration", INTEGRATIONS)
def test_places_are_those_of_the_paper(integration: str) -> None:
    torch.manual_seed(0)
    network = with_statistics(ResNet(SMALL, se=True, integration=integration)).double().eval()
    for block, channels in zip(network.stages[1], (32, 64), strict=True):  # with a projection and without
        assert isinstance(block.shortcut, nn.Identity) is (channels == 64)
        x = torch.randn(2, channels, 9, 7, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(block(x), by_hand(block, x))


def test_inference_is_one_op_for_the_tail() -> None:
    """BatchNorm, SE, addition and ReLU; with a listener on the BatchNorm it is called as ever."""
    torch.manual_seed(0)
    tail = with_statistics(NormSE(16, True, 4, relu_last=True)).eval()
    x, shortcut = torch.randn(2, 2, 16, 5, 5)
    with torch.no_grad():
        y = x.clone()
        assert tail(y, shortcut, inplace=True).data_ptr() == y.data_ptr()
        with torch.profiler.profile() as profile:
            tail(x.clone(), shortcut, inplace=True)
        names = [event.name for event in profile.events()]
        assert "senet_fast::squeeze_excite_into" in names
        assert not {"aten::batch_norm", "aten::native_batch_norm", "aten::add_", "aten::relu_"} & set(names)
        seen: list[Tensor] = []
        handle = tail.norm.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        torch.testing.assert_close(tail(x.clone(), shortcut), y)
        handle.remove()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], tail.norm(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: create("resnet_digits", se=True, depths=(1, 1)), (2, 1, 8, 8)),
        (lambda: shufflenet.Unit(24, 240, 3, 2, True, 16), (2, 24, 8, 8)),
        (lambda: inception_resnet.Residual(32, inception_resnet.B, True, 16), (2, 32, 5, 5)),
    ],
    ids=["resnet", "shufflenet", "inception_resnet"],
)
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiles_whole(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = with_statistics(make()).eval()
    x = torch.randn(shape)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = network(x.clone())
        assert_same(compiled(x.clone()), expected)
    network.train()
    assert_same(compiled(x.clone()), network(x.clone()))


def test_autocast() -> None:
    torch.manual_seed(0)
    plain = with_statistics(create("resnet_digits", se=SEBlock)).eval()
    fused = twin(plain, "resnet_digits", se=True)
    x = torch.randn(4, 1, 8, 8)
    expected = plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            assert_same(fused(x).float(), expected, 5e-2)
        fused.train()
        cross_entropy(fused(x), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 3}, {"kernel_size": 3, "padding": 0}, {"kernel_size": 4, "padding": "same"}],
)
def test_eca_whose_convolution_was_exchanged(options: dict[str, Any]) -> None:
    """It is called where the op would compute something else, or refuse it; errors are torch's own."""
    eca, x = ECA(16), torch.randn(2, 16, 5, 3)
    eca.conv = nn.Conv1d(1, 1, bias=False, **{"padding": 1} | options)

    def by_hand() -> Tensor:
        scale = torch.sigmoid(eca.conv(x.mean((2, 3))[:, None])[:, 0])
        return x * scale[:, :, None, None]

    if options.get("padding") == 0:
        with pytest.raises(RuntimeError):
            eca(x)
    else:
        torch.testing.assert_close(eca(x), by_hand())


def test_eca() -> None:
    torch.manual_seed(0)
    for channels, width in ((16, 3), (64, 3), (256, 5), (512, 5), (1024, 5), (2048, 7)):
        assert ECA(channels).conv.kernel_size == (width,)
    eca, x = ECA(64), torch.randn(2, 64, 5, 3)
    means = x.mean((2, 3))
    scale = torch.sigmoid(eca.conv(means[:, None]))[:, 0]
    torch.testing.assert_close(eca(x), x * scale[..., None, None])
    network = with_statistics(ResNet(SMALL, 10, se=ECA)).eval()
    plain = with_statistics(ResNet(SMALL, 10)).eval()
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if ".se." not in key})
    assert not torch.allclose(network(torch.ones(1, 3, 32, 32)), plain(torch.ones(1, 3, 32, 32)))


def test_errors_name_what_was_given() -> None:
    with pytest.raises(ValueError, match=r"name is 'resnet51'; expected one of resnet50, "):
        create("resnet51")
    with pytest.raises(
        ValueError, match=r"integration is 'middle'; expected one of standard, pre, post, identity, 3x3"
    ):
        create("resnet50", se=True, integration="middle")
    with pytest.raises(TypeError, match="integration"):
        create("vgg16_bn", se=True, integration="pre")

"""fuse() on the networks of other packages, which `make networks` installs: how many blocks, and the same numbers.

The counts are of the packages' own classes, taken with timm 1.0.31, torchvision 0.28, transformers 5.24.
"""

import copy
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import needs
import pytest
import torch
from fusion_testing import counts_calls, relative, step
from networks import TIMM, quantizable_network, randomized, shortened, timm_network
from torch import Tensor, nn

from senet_fast import FusionReport, fuse
from senet_fast.cli import main

TORCHVISION = {"mobilenet_v3_small": 3, "efficientnet": 4, "regnet": 5}


class First(nn.Module):
    """A model's main output as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        y = self.model(*inputs)
        return y if isinstance(y, Tensor) else y[0]


def check(model: nn.Module, x: Tensor, blocks: int, unused: int = 0) -> FusionReport:
    """``blocks`` are fused, all but ``unused`` run; values and gradients of each alone and of the network stay.

    A network amplifies the rounding of float32, eager's too; so its outputs have to be as near to float64's as 1e-5 or
    three times eager's, in either layout; and in float64 within 1e-7, with gradients (in training mode) within 1e-6.
    """
    plain = First(randomized(model, x))
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert len(report.fused) == blocks, report
    assert not report.skipped, report
    inputs: dict[str, Tensor] = {}
    hooks = [
        plain.get_submodule(entry.path).register_forward_pre_hook(
            lambda _, args, path=entry.path: inputs.__setitem__(path, args[0].clone())
        )
        for entry in report.fused
    ]
    with torch.no_grad():
        expected = plain(x)
        for hook in hooks:
            hook.remove()
        assert torch.isfinite(expected).all()
        # Of one draw eager's rounding may be small by chance; other kernels round anew.
        eager = [expected, plain(x.contiguous(memory_format=torch.channels_last)) if x.dim() == 4 else expected]
        actual: list[Tensor] = []
        assert counts_calls(lambda: actual.append(fused(x))) == blocks - unused
    for path, given in inputs.items():
        given /= given.std()  # random networks grow, and saturated gates have gradients of rounding alone
        check_block(plain.get_submodule(path), fused.get_submodule(path), given, path)
    x = x.double()
    plain, fused = plain.double(), fused.double()
    with torch.no_grad():
        exact = plain(x)
        assert relative(exact, fused(x)) < 1e-7
    rounding = max(relative(exact, made.double()) for made in eager)
    assert relative(exact, actual[0].double()) < max(1e-5, 3 * rounding)
    results = []
    for network in (plain, fused):
        torch.manual_seed(0)  # of dropped paths
        results.append(step(network.train(), x))
    (y, gradients), (fused_y, fused_gradients) = results
    assert relative(y, fused_y) < 1e-7
    assert gradients.keys() == fused_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        if float(gradient.abs().max()) > 1e-8 * largest:  # less is rounding: a bias in front of a BatchNorm
            assert relative(gradient, fused_gradients[name]) < 1e-6, name
    return report


def check_block(plain: nn.Module, fused: nn.Module, given: Tensor, path: str) -> None:
    (y, gradients), (fused_y, fused_gradients) = (step(block, given) for block in (plain, fused))
    assert relative(y, fused_y) < 1e-5, path
    assert gradients.keys() == fused_gradients.keys(), path
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        if float(gradient.abs().max()) > 1e-6 * largest:
            assert relative(gradient, fused_gradients[name]) < 1e-4, (path, name)


def images(pixels: int = 64) -> Tensor:
    return torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    blocks, pixels = TIMM[name]
    check(timm_network(name), images(pixels), blocks)


# An exported graph knows its maps: those of the last blocks are too small for a kernel with a convolution.
TAKEN = ("batch_norm, relu", "conv, batch_norm, residual, relu")
GRAPHS = {
    ("seresnet18", "traced"): {("batch_norm", "residual, relu, in place")},
    ("seresnet18", "exported"): {("batch_norm", "residual, relu, in place")},
    ("regnety_002", "traced"): {TAKEN},
    ("regnety_002", "exported"): {TAKEN, ("batch_norm, relu", "in place")},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), GRAPHS)
def test_graphs_of_timm(name: str, how: str) -> None:
    plain = randomized(timm_network(name), images())
    graph = torch.fx.symbolic_trace(plain) if how == "traced" else torch.export.export(plain, (images(),)).module()
    blocks = TIMM[name][0]
    report = fuse(graph)
    assert len(report.fused) == blocks
    assert {(entry.prologue, entry.epilogue) for entry in report.fused} == GRAPHS[name, how]
    with torch.no_grad():
        assert counts_calls(lambda: graph(images())) == blocks
        assert relative(plain(images()), graph(images())) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    models = needs.library("torchvision").models
    if name == "efficientnet":
        package = models.efficientnet
        stages = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 1), (6, 5, 2, 24, 40, 2)]
        model = package.EfficientNet([package.MBConvConfig(*stage) for stage in stages], dropout=0.2)
    elif name == "regnet":
        package = models.regnet
        sizes = {"depths": [1, 2, 1, 1], "widths": [48, 104, 208, 440], "strides": [2] * 4}
        rest = {"group_widths": [8] * 4, "bottleneck_multipliers": [1.0] * 4, "se_ratio": 0.25}
        model = package.RegNet(package.BlockParams(**sizes, **rest))
    else:
        package = models.mobilenetv3
        blocks, last = package._mobilenet_v3_conf(name)
        model = package.MobileNetV3(blocks[:5], last)
    check(model, images(), TORCHVISION[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchvision_prepared_for_quantization() -> None:
    model = quantizable_network()
    quantization = importlib.import_module("torch.ao.quantization")
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    prepared = quantization.prepare_qat(model.train())
    report = fuse(prepared)
    assert not report.fused


@pytest.mark.slow
def test_transformers_regnet() -> None:
    regnet = needs.library("transformers.models.regnet.modeling_regnet")
    config = regnet.RegNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=8, layer_type="y")
    report = check(regnet.RegNetModel(config), images(), 3)
    assert {entry.cls for entry in report.fused} == {"RegNetSELayer"}


@pytest.mark.slow
def test_transformers_efficientnet() -> None:
    efficientnet = needs.library("transformers.models.efficientnet.modeling_efficientnet")
    config = efficientnet.EfficientNetConfig(
        **{"width_coefficient": 0.5, "depth_coefficient": 0.4, "hidden_dim": 640, "image_size": 64},
        **{"kernel_sizes": [3, 3, 5, 3], "in_channels": [32, 16, 24, 40], "out_channels": [16, 24, 40, 48]},
        **{"strides": [1, 2, 2, 1], "num_block_repeats": [1, 2, 3, 2], "expand_ratios": [1, 6, 6, 6]},
    )
    report = check(efficientnet.EfficientNetModel(config), images(), 5)
    assert {entry.cls for entry in report.fused} == {"EfficientNetSqueezeExciteLayer"}


@pytest.mark.slow
def test_efficientnet_pytorch() -> None:
    package = needs.library("efficientnet_pytorch")
    blocks, options = package.utils.get_model_params("efficientnet-b0", {})
    check(package.EfficientNet(blocks[:3], options), images(), 5)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "blocks"), [("timm-mobilenetv3_small_075", 4), ("se_resnet50", 5)])
def test_segmentation_models(encoder: str, blocks: int) -> None:
    models = needs.library("segmentation_models_pytorch")
    model = models.Unet(encoder, encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8))
    check(shortened(model, encoder), images(), blocks)


@pytest.mark.slow
def test_the_channel_half_of_scse() -> None:
    """The decoder's six blocks, x * cSE(x) + x * sSE(x), one of them for a skip that there is not."""
    models = needs.library("segmentation_models_pytorch")
    decoder = {"decoder_channels": (64, 32, 16), "decoder_attention_type": "scse"}
    model = models.Unet("resnet18", encoder_depth=3, encoder_weights=None, **decoder)
    check(model, images(), 6, unused=1)


@pytest.fixture
def ecapa(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., nn.Module]]:
    """speechbrain imports torchaudio, which has no part in the network and whose binary may not fit torch.

    Its lazy modules raise when somebody looks at all of sys.modules, as hypothesis does: they leave with the test, and
    so do its own methods of torch's iterator over batches, which call themselves when it is imported once more.
    """
    iterator = torch.utils.data.dataloader._BaseDataLoaderIter
    for name in ("__init__", "_reset"):
        monkeypatch.setattr(iterator, name, getattr(iterator, name))
    monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
    yield needs.library("speechbrain.lobes.models.ECAPA_TDNN").ECAPA_TDNN
    for name in [name for name in sys.modules if name.partition(".")[0] == "speechbrain"]:
        del sys.modules[name]


@pytest.mark.slow
def test_ecapa_tdnn(ecapa: Callable[..., nn.Module]) -> None:
    channels = [32, 32, 32, 32, 96]
    model = ecapa(20, lin_neurons=16, channels=channels, attention_channels=8, se_channels=8, res2net_scale=4)
    report = check(model, torch.randn(3, 37, 20), 3)
    assert [(entry.cls, entry.channels, entry.hidden) for entry in report.fused] == [("SEBlock", 32, 8)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_ecapa_tdnn_with_lengths(ecapa: Callable[..., nn.Module], training: bool) -> None:
    """The op has no masked squeeze: blocks that are given lengths run their own code, and those without the op."""
    channels = [32, 32, 32, 32, 96]
    plain = ecapa(20, lin_neurons=16, channels=channels, attention_channels=8, se_channels=8, res2net_scale=4)
    x, lengths = torch.randn(3, 37, 20), torch.tensor([1.0, 0.6, 0.8])
    plain = randomized(plain, x).train(training)
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 3
    results, gradients = [], []
    for model in (plain, fused):
        y = model(x, lengths)
        results.append(y)
        gradients.append(torch.autograd.grad(y.square().sum(), list(model.parameters()), allow_unused=True))
    assert torch.equal(*results)
    for own, other in zip(*gradients, strict=True):
        assert own is other is None or torch.equal(own, other)
    assert counts_calls(lambda: fused(x, lengths)) == counts_calls(lambda: fused(x, lengths=lengths)) == 0
    assert counts_calls(lambda: fused(x)) == counts_calls(lambda: fused(x, None)) == 3
    assert relative(plain(x), results[0]) > 1e-2  # lengths matter


def test_deepctr() -> None:
    interaction = needs.library("deepctr_torch.layers.interaction")
    check(interaction.SENETLayer(12, 3), torch.randn(8, 12, 4), 1)


# timm's modules that resemble an excitation. "cecam" and "ge" can not be made by its 1.0.31 or need sizes of the input.
RESEMBLING = ["ceca", "gc", "gca", "cbam", "lcbam", "coord", "scoord", "ela", "strip", "splat", "sk"]


@pytest.mark.parametrize("name", RESEMBLING)
def test_timm_modules_that_resemble_excitations(name: str) -> None:
    layers = needs.library("timm.layers")
    torch.manual_seed(0)
    module = layers.create_attn(name, 32)
    unchanged(module, torch.randn(2, 32, 12, 14))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnest14d", "skresnet18", "gcresnet33ts", "resnet18", "focalnet_tiny_srf", "davit_tiny"]
)
def test_timm_without_excitations(name: str) -> None:
    timm = needs.library("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
    assert not fuse(model).fused


def unchanged(module: nn.Module, x: Tensor) -> None:
    before = module.eval()(x.clone())
    classes = [type(part) for part in module.modules()]
    assert not fuse(nn.Sequential(module)).fused
    assert [type(part) for part in module.modules()] == classes
    assert torch.equal(module(x.clone()), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:lcnet_035", "torchvision:mobilenet_v3_small"])
def test_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, where torchvision can be imported."""
    needs.library(name.partition(":")[0])
    assert main(["fuse", name, "--input", "2x3x32x32", "--seconds", "0.1", "--strict"]) == 0
    text = capsys.readouterr().out
    blocks = 2 if "lcnet" in name else 9
    assert f"{blocks} fused, 0 skipped" in text
    assert re.search(r"largest difference of the outputs, relative: \d\.\de-0[5-9]", text)
    assert re.search(r"before [0-9.]+ ms, after [0-9.]+ ms: [0-9.]+ times as fast", text)


@pytest.mark.parametrize("name", ["timm:no_such_network", "torchvision:no_such_network"])
def test_command_names_what_there_is_not(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs.library(name.partition(":")[0])
    assert main(["fuse", name]) == 2
    assert f"MODEL is '{name}': " in capsys.readouterr().err

"""fuse() on the networks of other packages: how many blocks, and the same numbers as before."""

import copy
import importlib

import pytest
import torch
from fusion_testing import counts_calls, randomize, relative
from torch import nn

from senet_fast import fuse

# name: blocks
TIMM = {
    "efficientnet_b0": 16,
    "seresnet18": 8,
    "ecaresnet26t": 8,
    "mobilenetv3_small_050": 9,
    "regnety_002": 13,
    "rexnet_100": 13,
    "legacy_seresnet18": 8,
    "ese_vovnet19b_dw": 4,
    "ghostnet_050": 7,
    "repvit_m0_9": 10,
    "lcnet_035": 2,
    "tresnet_m": 18,
    "coatnet_pico_rw_224": 5,
    "eca_nfnet_l0": 12,
    "fastvit_sa12": 1,
    "shvit_s1": 2,
    "efficientvim_m1": 2,
    "hgnet_tiny": 5,
    "nf_seresnet26": 8,
    "repghostnet_050": 7,
    "gcvit_xxtiny": 11,
    "efficientvit_m0": 2,
}
TORCHVISION = {"mobilenet_v3_small": 9, "efficientnet_b0": 16, "regnet_y_400mf": 16}


def check(model: nn.Module, x: torch.Tensor, blocks: int) -> None:
    """``blocks`` are fused; each one alone is within 1e-5 on the input that it gets in the model."""
    randomize(model).eval()
    inputs: dict[str, torch.Tensor] = {}
    plain = copy.deepcopy(model)
    report = fuse(model)
    assert len(report.fused) == blocks, report
    paths = [entry.path for entry in report.fused]
    for path in paths:
        plain.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: inputs.__setitem__(path, args[0].clone())
        )
    with torch.no_grad():
        expected = plain(x)
        assert counts_calls(lambda: model(x)) == blocks
        for path in paths:
            given = inputs[path] / inputs[path].abs().max().clamp(min=1e-30)  # random networks grow
            wanted = plain.get_submodule(path)(given)
            assert relative(wanted, model.get_submodule(path)(given)) < 1e-5, path
        assert torch.isfinite(expected).all()
        x = x.double()  # rounding of float32 grows on its way through random layers
        assert relative(plain.double()(x), model.double()(x)) < 1e-7


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    size = 224 if "coatnet" in name or "vi" in name else 64  # transformers take one size
    check(timm.create_model(name), torch.randn(2, 3, size, size), TIMM[name])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    check(models.get_model(name), torch.randn(2, 3, 64, 64), TORCHVISION[name])


@pytest.mark.parametrize("name", ["resnest14d", "skresnet18", "gcresnet33ts", "resnet18"])
def test_timm_without_excitations(name: str) -> None:
    timm = pytest.importorskip("timm")
    assert not fuse(timm.create_model(name)).fused


def test_deepctr() -> None:
    interaction = pytest.importorskip("deepctr_torch.layers.interaction")
    check(interaction.SENETLayer(12, 3), torch.randn(8, 12, 4), 1)


def test_transformers() -> None:
    pytest.importorskip("transformers")
    regnet = importlib.import_module("transformers.models.regnet.modeling_regnet")
    config = regnet.RegNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=8, layer_type="y")
    report = fuse(regnet.RegNetModel(config))
    assert [entry.cls for entry in report.fused] == ["RegNetSELayer"] * 3


def test_segmentation_models() -> None:
    models = pytest.importorskip("segmentation_models_pytorch")
    model = models.Unet("timm-mobilenetv3_small_075", encoder_weights=None, decoder_attention_type=None)
    assert len(fuse(model).fused) == 9

"""Networks of timm, each made as small as it can be with a block of each kind, and random numbers for any network."""

from typing import Any

import needs
import torch
from torch import Tensor, nn

# One of each family of timm that has such blocks, the smallest: (blocks, pixels of its images). OPTIONS make some
# smaller yet, with a block of each kind.
TIMM = {
    "efficientnet_b0": (8, 64),
    "mnasnet_small": (4, 64),
    "test_coatnet": (2, 160),
    "test_maxvit": (4, 160),
    "seresnet18": (5, 64),
    "ecaresnet26t": (4, 64),
    "nf_seresnet26": (4, 64),
    "eca_nfnet_l0": (4, 64),
    "mobilenetv3_small_050": (6, 64),
    "lcnet_035": (2, 64),
    "regnety_002": (5, 64),
    "test_byobnet": (4, 64),
    "mobileone_s4": (4, 32),
    "fastvit_t8": (1, 64),
    "ghostnet_050": (6, 64),
    "rexnet_100": (8, 64),
    "legacy_seresnet18": (5, 64),
    "efficientvim_m1": (2, 224),
    "repghostnet_050": (6, 64),
    "repvit_m0_9": (5, 64),
    "ese_vovnet19b_slim_dw": (4, 64),
    "efficientvit_m0": (2, 224),
    "sedarknet21": (6, 32),
    "cspnext_tiny": (4, 64),
    "gcvit_xxtiny": (11, 64),
    "rdnet_tiny": (5, 64),
    "shvit_s1": (2, 224),
    "tresnet_m": (3, 64),
    "hgnet_tiny": (5, 32),
    "lcnetv2_small": (3, 64),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "seresnet18": {"channels": (16, 32, 64, 128)},
    "ecaresnet26t": {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)},
    "nf_seresnet26": {"depths": (1, 1, 1, 1), "width_factor": 0.5},
    "eca_nfnet_l0": {"depths": (1, 1, 1, 1)},
    "rexnet_100": {"depth_mult": 0.5, "width_mult": 0.5},
    "rdnet_tiny": {"num_blocks_list": (1,) * 7},
    "tresnet_m": {"layers": [1, 1, 1, 1], "width_factor": 0.5},
    "gcvit_xxtiny": {"img_size": 64},
}
# What stays of a row of blocks, by its path: the first of a stage, which changes the size, and one of each kind.
KEPT: dict[str, dict[str, tuple[int, ...]]] = {
    "efficientnet_b0": {"blocks.1": (0,), "blocks.2": (0,), "blocks.3": (0,), "blocks.4": (0, 1), "blocks.5": (0,)},
    "mnasnet_small": {"blocks.2": (0,), "blocks.3": (0, 1), "blocks.4": (0,), "blocks.5": (0,)},
    "mobilenetv3_small_050": {"blocks.1": (0,), "blocks.2": (0, 1), "blocks.4": (0,)},
    "seresnet18": {"layer2": (0,), "layer3": (0,), "layer4": (0,)},
    "legacy_seresnet18": {"layer2": (0,), "layer3": (0,), "layer4": (0,)},
    "regnety_002": {"s3": (0,), "s4": (0, 1)},
    "mobileone_s4": {"stages.0": (0, 1), "stages.1": (0, 1), "stages.2": (0, 1, 10, 11), "stages.3": (0, 1)},
    "gcvit_xxtiny": {"stages.2.blocks": (0, 1)},
    "fastvit_t8": {f"stages.{i}.blocks": (0,) for i in range(4)},
    "ghostnet_050": {"blocks.6": (0, 3, 4), "blocks.8": (0, 1)},
    "repghostnet_050": {"blocks.6": (0, 3, 4), "blocks.8": (0, 1)},
    "repvit_m0_9": {"stages.1.blocks": (0,), "stages.2.blocks": (0, 1, 2), "stages.3.blocks": (0,)},
    "efficientvim_m1": {f"stages.{i}.blocks": (0,) for i in range(3)},
    "efficientvit_m0": {f"stages.{i}.blocks": (0,) for i in range(1, 3)},
    "shvit_s1": {f"stages.{i}.blocks": (0,) for i in range(3)},
    "sedarknet21": {"stages.3.blocks": (0,)},
    "lcnetv2_small": {"stages.0": (0,), "stages.2": (0, 2, 3)},
    "timm-mobilenetv3_small_075": {f"encoder.model.blocks.{i}": (0,) for i in range(1, 5)},
    "se_resnet50": {"encoder.layer1": (0, 1), "encoder.layer2": (0,), "encoder.layer3": (0,), "encoder.layer4": (0,)},
}


def shortened(model: nn.Module, name: str) -> nn.Module:
    """The network ``name`` without blocks of a kind that it has already."""
    for path, kept in KEPT.get(name, {}).items():
        row = model.get_submodule(path)
        row._modules = {key: child for i, (key, child) in enumerate(row._modules.items()) if i in kept}
    return model


def timm_network(name: str) -> nn.Module:
    timm = needs.library("timm")
    torch.manual_seed(0)
    return shortened(timm.create_model(name, num_classes=10, **OPTIONS.get(name, {})), name)


def quantizable_network() -> nn.Module:
    """The first blocks of torchvision's MobileNetV3, three with an excitation, of modules that add and multiply."""
    needs.library("torchvision")
    from torchvision.models import mobilenetv3
    from torchvision.models.quantization.mobilenetv3 import QuantizableInvertedResidual, QuantizableMobileNetV3

    blocks, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    network: nn.Module = QuantizableMobileNetV3(blocks[:5], last, block=QuantizableInvertedResidual)
    return network


def randomized(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Random parameters, statistics near those of ``inputs``: far from them a deep network overflows."""
    generator = torch.Generator().manual_seed(0)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momentums = [norm.momentum for norm in norms]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = max(1, parameter[0].numel())
                parameter.normal_(generator=generator).mul_(1.2 / fan_in**0.5)
            else:
                parameter.add_(uniform(parameter, -0.2, 0.2))
        for norm in norms:
            norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
            norm.reset_running_stats()
            norm.momentum = None
        model.train()(*inputs)
        for norm, momentum in zip(norms, momentums, strict=True):
            norm.running_mean += uniform(norm.running_mean, -0.3, 0.3) * norm.running_var.sqrt()
            norm.running_var *= uniform(norm.running_var, 0.7, 1.4)
            norm.momentum = momentum
    return model.eval()

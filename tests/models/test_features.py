"""What hooks keep of a network is what the same network with the readable block gives them: nothing writes over it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from senet_fast.models import create
from senet_fast.models.resnet import INTEGRATIONS
from senet_fast.se import FusedSE, SEBlock

NETWORKS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    *(("resnet_digits", {"integration": integration, "depths": (1, 2)}, (2, 1, 8, 8)) for integration in INTEGRATIONS),
    ("resnet50", {"depths": (1, 1), "base": 8, "group_width": 8, "reduction": 4, "integration": "3x3"}, (1, 3, 32, 32)),
    ("shufflenet_v1", {}, (1, 3, 32, 32)),
    ("mobilenet_v1", {}, (1, 3, 32, 32)),
    ("bn_inception", {}, (1, 3, 64, 64)),
    ("inception_resnet_v2", {}, (1, 3, 75, 75)),
]


def kept(network: nn.Module, x: Tensor, pre: bool, mode: Any, only: str) -> dict[str, Tensor]:
    """By the path of the module: its first input, or its output, as it is when the call of the network ends."""
    found: dict[str, Tensor] = {}
    hooks = []
    for path, module in network.named_modules():
        if not path or path.endswith(("fc1", "fc2")) or (only and not path.endswith(only)):
            continue
        if pre:
            hook = module.register_forward_pre_hook(lambda module, args, path=path: found.__setitem__(path, args[0]))
        else:
            hook = module.register_forward_hook(lambda module, args, y, path=path: found.__setitem__(path, y))
        hooks.append(hook)
    with mode():
        network(x.clone())
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("pre", [False, True], ids=["outputs", "inputs"])
@pytest.mark.parametrize(("name", "options", "shape"), NETWORKS, ids=lambda value: str(value))
def test_kept_features(name: str, options: dict[str, Any], shape: tuple[int, ...], pre: bool, mode: Any) -> None:
    """Hooks on everything, and on one kind of module at a time: each has its own way to keep what is written over."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    kinds = ["", "branch", "tail", "shortcut", "norm", "se", "projection", "expand"]
    kinds += [f".{place}" for place in (0, 3, 5)]
    readable, network = (create(name, num_classes=10, se=se, **options).eval() for se in (SEBlock, True))
    network.load_state_dict(readable.state_dict())
    for only in kinds if mode is torch.no_grad else [""]:
        expected = kept(readable, x, pre, mode, only)
        actual = kept(network, x, pre, mode, only)
        assert actual.keys() == expected.keys()
        for path, tensor in expected.items():
            if path.endswith(".se") and not pre:  # FusedSE takes over the neighbours behind it
                continue
            torch.testing.assert_close(actual[path], tensor, rtol=1e-3, atol=1e-4, msg=f"{only}: {path}")


@pytest.mark.parametrize("se", [SEBlock, True], ids=["SEBlock", "fused"])
@pytest.mark.parametrize(("name", "options", "shape"), NETWORKS, ids=lambda value: str(value))
def test_what_blocks_return_stays(name: str, options: dict[str, Any], shape: tuple[int, ...], se: Any) -> None:
    """Of a hooked block, be it the readable one or what stands for no block: the tensor is as it was in the hook."""
    torch.manual_seed(0)
    network = create(name, num_classes=10, se=se, **options).eval()
    found: list[tuple[str, Tensor, Tensor]] = []
    for path, module in network.named_modules():
        if path.endswith("se") or isinstance(module, SEBlock | FusedSE):
            module.register_forward_hook(lambda m, args, y, path=path: found.append((path, y, y.detach().clone())))
    with torch.no_grad():
        network(torch.randn(shape))
    assert found
    assert not [path for path, y, then in found if not torch.equal(y, then)]

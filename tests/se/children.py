"""Changes that people make to the layers of blocks, and pairs of blocks to make them to."""

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from senet_fast.se import FusedSE, SEBlock

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

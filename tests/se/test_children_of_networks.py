"""What hooks, pruning and exchanges inside of a network's tail do: as its modules one after the other."""

from typing import Any

import pytest
import torch
from children import C, Change, hooked, pruned
from torch import Tensor, nn
from torch.nn.utils import prune

from senet_fast.models.layers import ECA, NormSE


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


def test_channel_attention_with_another_convolution() -> None:
    for options in ({"padding": 2, "dilation": 2}, {"padding": 1, "padding_mode": "circular"}):
        block, x = ECA(C), torch.randn(2, C, 3, 3)
        block.conv = nn.Conv1d(1, 1, 3, bias=False, **options)
        y = block(x)
        block.conv.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(block(x), y)

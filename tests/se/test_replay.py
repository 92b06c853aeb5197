"""Bodies that run once without gradients and again in backward: what is written in place must be nobody's input.

Reentrant checkpoints, reversible networks and other autograd functions keep their inputs, run with grad mode off, and
run again. An in-place block that overwrites such an input changes gradients without a word.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from senet_fast import fuse
from senet_fast.models import create
from senet_fast.models.layers import NormSE
from senet_fast.models.resnet import INTEGRATIONS
from senet_fast.se import FusedSE, SEBlock

C = 8
Body = Callable[[Tensor], Tensor]


class Replayed(torch.autograd.Function):
    """A minimal body that is run twice, as libraries write it."""

    @staticmethod
    def forward(ctx: Any, body: Body, x: Tensor) -> Tensor:
        ctx.body = body
        ctx.save_for_backward(x)
        return body(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.body(x)
        y.backward(grad)
        assert x.grad is not None
        return None, x.grad


class Reversible(torch.autograd.Function):
    """y1 = x1 + f(x2), y2 = x2 + g(y1); keeps the outputs only and computes the inputs from them."""

    @staticmethod
    def forward(ctx: Any, f: Body, g: Body, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, 1)
        y1 = x1 + f(x2)
        y2 = x2 + g(y1)
        ctx.bodies = f, g
        y = torch.cat([y1, y2], 1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        f, g = ctx.bodies
        (y,) = ctx.saved_tensors
        y1, y2 = y.chunk(2, 1)
        grad1, grad2 = grad.chunk(2, 1)
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            of_y1 = g(y1)
        of_y1.backward(grad2)
        assert y1.grad is not None
        grad1 = grad1 + y1.grad
        with torch.enable_grad():
            x2 = (y2 - of_y1).detach().requires_grad_()
            of_x2 = f(x2)
        of_x2.backward(grad1)
        assert x2.grad is not None
        return None, None, torch.cat([grad1, grad2 + x2.grad], 1)


def reentrant(body: Body, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(body, x, use_reentrant=True)
    return y


REPLAYS: dict[str, Callable[[Body, Tensor], Tensor]] = {
    "reentrant checkpoint": reentrant,
    "checkpoint without": lambda body, x: checkpoint(body, x, use_reentrant=False),
    "autograd function": Replayed.apply,  # type: ignore[dict-item]
    "behind a view": lambda body, x: reentrant(lambda v: body(v.view(v.shape)), x),
    "behind a reshape": lambda body, x: reentrant(lambda v: body(v.flatten(2).unflatten(2, v.shape[2:])), x),
    "behind a slice": lambda body, x: reentrant(lambda v: body(v[:]), x),
    "behind an identity": lambda body, x: reentrant(lambda v: body(nn.Dropout().eval()(nn.Identity()(v))), x),
    "nested": lambda body, x: reentrant(lambda v: reentrant(body, v), x),
}


class Host(nn.Module):
    """An SE block that fuse() writes in place where that is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.se = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), SEBlock(C, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.se(self.norm(self.conv(x))))
        return y


def fused(model: nn.Module) -> nn.Module:
    assert fuse(model).fused
    return model


BODIES: dict[str, Callable[[], nn.Module]] = {
    "FusedSE": lambda: FusedSE(C, 4, inplace=True),
    "two": lambda: nn.Sequential(FusedSE(C, 4, inplace=True), FusedSE(C, 4, inplace=True, gate="hardsigmoid")),
    "fused block": lambda: fused(SEBlock(C, 4)),
    "fused host": lambda: fused(Host()),
    "fused graph": lambda: fused(torch.export.export(Host().eval(), (torch.randn(2, C, 5, 5),)).module()),
    "network's block": lambda: NormSE(C, True, 4, relu_first=True, relu_last=False),
}


def gradients(run: Callable[[Body, Tensor], Tensor], body: nn.Module, x: Tensor) -> list[Tensor]:
    body.zero_grad()
    leaf = x.clone().requires_grad_()
    run(body, leaf * 1).square().sum().backward()
    assert leaf.grad is not None
    return [leaf.grad, *(p.grad for p in body.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("replay", REPLAYS)
@pytest.mark.parametrize("body", BODIES)
def test_gradients_of_a_replay(body: str, replay: str) -> None:
    torch.manual_seed(0)
    module = BODIES[body]()
    if body != "fused graph":
        module.eval()
    x = torch.randn(2, C, 5, 5)
    expected = gradients(lambda run, v: run(v), module, x)
    actual = gradients(REPLAYS[replay], module, x)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_reversible_network() -> None:
    torch.manual_seed(0)
    f, g = (nn.Sequential(nn.Conv2d(C, C, 1), FusedSE(C, 4, inplace=True)).eval() for _ in range(2))

    def plain(x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, 1)
        y1 = x1 + f(x2)
        return torch.cat([y1, x2 + g(y1)], 1)

    results = []
    for run in (plain, lambda x: Reversible.apply(f, g, x)):
        x = torch.randn(2, 2 * C, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = run(x * 1)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("integration", INTEGRATIONS)
@pytest.mark.parametrize("se", [True, False, SEBlock], ids=["fused", "plain", "SEBlock"])
def test_networks_in_segments(integration: str, se: Any) -> None:
    """Every block a checkpoint of its own, in eval mode, as for fine-tuning with fixed statistics."""
    torch.manual_seed(0)
    network: Any = create("resnet_digits", se=se, integration=integration).double().eval()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    expected = gradients(lambda run, v: run(v), network, x)
    blocks = nn.Sequential(network.stem, *(block for stage in network.stages for block in stage))
    actual = gradients(
        lambda _, v: network.head(checkpoint_sequential(blocks, len(blocks), v, use_reentrant=True)), network, x
    )
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_in_place_where_nothing_wants_a_gradient() -> None:
    """What the rule must not take away: inference writes over x, also through views, and with trainable weights."""
    block = FusedSE(C, 4, inplace=True).eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            x = torch.randn(2, C, 5, 5)
            assert block(x) is x
            view = torch.randn(2, 2 * C, 5, 5)[:, :C]
            assert block(view) is view
    wanted = torch.randn(2, C, 5, 5).requires_grad_() * 1
    kept = wanted.detach().clone()
    with torch.no_grad():
        for x in (wanted, wanted.view(wanted.shape), wanted[:]):
            assert block(x).data_ptr() != wanted.data_ptr()
            assert torch.equal(wanted, kept)


def test_memory_that_others_share_is_left() -> None:
    """A residual of the same memory, and a block whose hooks may have kept x: the same values, out of place."""
    block = FusedSE(C, 4, inplace=True, post_activation="relu").eval()
    both = torch.randn(2, 2 * C, 5, 5)
    x, residual = both.chunk(2, 1)
    overlapping = both.flatten()[: x.numel()].view(x.shape), both.flatten()[1 : x.numel() + 1].view(x.shape)
    for a, b in ((x, residual), (x, x), overlapping):
        expected = block(a, b).detach()
        with torch.no_grad():
            kept = both.clone()
            torch.testing.assert_close(block(a, b), expected)
            assert torch.equal(both, kept)
    seen: list[Tensor] = []
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        kept = x.clone()
        block(x)
    assert torch.equal(seen[0], kept)

"""Second derivatives where one input is computed from another, and sums over many images."""

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from senet_fast.se import _C, FusedSE, reference, squeeze_excite

Function = Callable[..., Tensor]


def _weights(generator: torch.Generator) -> tuple[Tensor, ...]:
    shapes = ((4, 4), (4,), (4, 4), (4,))
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes)


def _residual_is_x_behind_relu(se: Function, x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    return se(x, *w, residual=x, post_activation="relu")


def _residual_is_x(se: Function, x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    return se(x, *w, residual=x, post_activation="silu")


def _x_from_residual(se: Function, x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    return se(x.sin(), *w, residual=x, post_activation="silu")


def _weight_from_x(se: Function, x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    return se(x, x.mean((0, 2, 3)) * w[0], *w[1:])


def _tied_weights(se: Function, x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    return se(x, w[0], w[1], w[0], w[3])


BUILDS = [_residual_is_x, _residual_is_x_behind_relu, _x_from_residual, _weight_from_x, _tied_weights]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("build", BUILDS)
def test_inputs_that_depend_on_each_other(build: Function, create_graph: bool) -> None:
    found = []
    for se in (squeeze_excite, reference.squeeze_excite):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
        w = _weights(generator)
        loss = build(se, x, w).pow(2).sum()
        first = torch.autograd.grad(loss, (x, w[0]), create_graph=create_graph)
        found.append(first)
        if create_graph:
            found[-1] += torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, w[0]))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_hooks_run_once(create_graph: bool) -> None:
    calls = []
    w = _weights(torch.Generator().manual_seed(2))
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    expected = torch.autograd.grad(squeeze_excite(x, *w).sum(), w[0])[0]
    w[0].register_hook(lambda grad: (calls.append(1), grad * 2)[1])
    (found,) = torch.autograd.grad(squeeze_excite(x, *w).sum(), w[0], create_graph=create_graph)
    assert calls == [1]
    torch.testing.assert_close(found, expected * 2)


@pytest.mark.parametrize("excitation", ["two_fc", "channel_conv"])
def test_many_images(excitation: str) -> None:
    """Weights' gradients sum over the batch: their error is of the order of eager's, however large the batch."""
    torch.manual_seed(3)
    x = torch.rand(4096, 32)
    shapes = ((8, 32), (8,), (32, 8), (32,)) if excitation == "two_fc" else ((1, 1, 3), (1,))
    weights = [torch.rand(shape) - 0.3 for shape in shapes]

    def gradients(se: Function, dtype: torch.dtype) -> list[Tensor]:
        leaves = [w.to(dtype).requires_grad_() for w in weights]
        y = se(x.to(dtype), *leaves, excitation=excitation)
        return list(torch.autograd.grad(y.sum(), leaves))

    exact = gradients(reference.squeeze_excite, torch.float64)
    eager = gradients(reference.squeeze_excite, torch.float32)
    for ours, theirs, right in zip(gradients(squeeze_excite, torch.float32), eager, exact, strict=True):
        size = right.abs().max()
        limit = 2 * (theirs - right).abs().max() / size + 8 * torch.finfo(torch.float32).eps
        assert (ours - right).abs().max() / size <= limit


def test_a_bias_is_one_dimensional() -> None:
    with pytest.raises(ValueError, match=r"fc1_bias has shape \[3, 1\]; expected \[3\]"):
        squeeze_excite(torch.randn(3, 4, 2, 2), torch.randn(3, 4), torch.randn(3, 1), torch.randn(4, 3))


def test_autocast_refuses_what_the_op_refuses() -> None:
    w = [torch.randn(2, 4, dtype=torch.float64), None, torch.randn(4, 2, dtype=torch.float64)]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="fc1_weight is Double"):
        squeeze_excite(torch.randn(1, 4, 2, 2), *w)


def test_module_arguments() -> None:
    assert FusedSE(4, 2, activation=nn.LeakyReLU(np.float64(0.25))).activation == "leaky_relu(0.25)"
    with pytest.raises(ValueError, match="dim is 0"):
        FusedSE(4, 2, dim=0)
    with pytest.raises(TypeError, match=r"channels is 64.0, a float; expected an int"):
        FusedSE(64.0)
    for se in (squeeze_excite, reference.squeeze_excite):
        with pytest.raises(ValueError, match="lo <= hi"):
            se(torch.randn(1, 4, 2, 2), torch.eye(4), None, torch.eye(4), gate="affine_clamp(1,0,1,0)")
        with pytest.raises(ValueError, match="dim is -7"):
            se(torch.randn(1, 4, 2, 2), torch.eye(4), None, torch.eye(4), dim=-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "", "sse9"])
def test_isa_from_the_environment(name: str) -> None:
    if name == "baseline" and "baseline" not in _C.isas():
        pytest.skip("this processor's lowest instruction set has another name")
    code = "from senet_fast.se import _C; print(_C.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "SENET_FAST_ISA": name}, capture_output=True, text=True
    )
    if name == "sse9":
        assert "SENET_FAST_ISA is 'sse9'; expected one of" in done.stderr
    else:
        assert done.stdout.strip() == (name or _C.isas()[-1])


def test_plan_shows_how_a_call_is_cut() -> None:
    plan = _C.plan(B=32, O=1, K=256, I=56 * 56, R=16)
    assert 1 <= plan["images_per_tile"] <= 32
    assert plan["blocks"] == 1
    assert plan["threads"] == torch.get_num_threads()
    rows = _C.plan(B=32, O=56 * 56, K=256, I=1, R=16)
    assert rows["blocks"] == -(-56 * 56 // rows["rows_per_block"])
    tiny = _C.plan(B=1, O=1, K=16, I=16, R=4)
    assert (tiny["threads"], tiny["stream"]) == (1, False)
    assert _C.plan(B=256, O=1, K=1024, I=64 * 64, R=64)["stream"]  # 8 GB: no cache holds what the next layer will read


def test_plan_can_be_forced() -> None:
    try:
        _C.force_plan(threads=3, images_per_tile=7, stream=True, overlap=True)
        forced = _C.plan(B=1, O=1, K=16, I=16, R=4)
    finally:
        _C.force_plan()
    wanted = {"threads": 3, "images_per_tile": 7, "stream": True, "overlap": True}
    assert forced == forced | wanted
    assert _C.plan(B=1, O=1, K=16, I=16, R=4)["threads"] == 1
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"):
        _C.force_plan(threads=0)


def plan_in_environment(text: str) -> "subprocess.CompletedProcess[str]":
    code = "from senet_fast.se import _C; print(_C.plan(B=9, O=1, K=16, I=16, R=4))"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "SENET_FAST_PLAN": text}, text=True, capture_output=True
    )


@pytest.mark.slow
def test_plan_forced_by_the_environment() -> None:
    done = plan_in_environment("images_per_tile=3,stream=1")
    assert "'images_per_tile': 3" in done.stdout
    assert "'stream': True" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("text", ["tiles=3", "threads=0", "stream", "stream=x"])
def test_plan_in_the_environment_that_does_not_fit(text: str) -> None:
    done = plan_in_environment(text)
    assert f"SENET_FAST_PLAN has '{text}'; expected threads, images_per_tile (1 or more)" in done.stderr


@pytest.mark.slow
def test_huge_pages_change_no_number() -> None:
    code = (
        "import torch; from senet_fast.se import FusedSE; torch.manual_seed(0);"
        "print(FusedSE(64)(torch.randn(12, 64, 112, 112)).double().sum().item())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SENET_FAST_HUGE_PAGES": value},
            capture_output=True,
            text=True,
        ).stdout
        for value in ("0", "1")
    }
    assert len(results) == 1
    assert results != {""}

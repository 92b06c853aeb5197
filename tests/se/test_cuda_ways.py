"""The op on a GPU by each way to it: both kernels, every excitation, the prologue, graphs. As test_cuda.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_testing import DEVICE, TOLERANCES, assert_close, exclude_ties, needs_gpu, on_gpu, poisoned  # noqa: F401
from se_testing import BY_NAME, EXCITATIONS, STAND_IN, assert_same_bits, exact, make_arguments, value_and_grads

from senet_fast.se import reference, squeeze_excite

HERE = Path(__file__).resolve().parent
HALF = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
FIRST_CALL = """
import torch
from senet_fast.se import squeeze_excite
x = torch.randn(3, 40, 9, 9, device="cuda", requires_grad=True)
weights = [torch.randn(size, device="cuda", requires_grad=True) for size in ((8, 40), (40, 8))]
grad_y = torch.randn_like(x)

def work():
    y = squeeze_excite(x, fc1_weight=weights[0], fc2_weight=weights[1])
    return [y, *torch.autograd.grad(y, [x, *weights], grad_y)]

torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    recorded = work()
graph.replay()
torch.cuda.synchronize()
assert all(torch.equal(one, other) for one, other in zip(recorded, work(), strict=True))
"""


@needs_gpu
@HALF
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("excitation", EXCITATIONS)
@pytest.mark.parametrize("name", ["nchw", "channels_last"])
def test_every_excitation_by_both_kernels(name: str, excitation: str, dtype: torch.dtype) -> None:
    assert_close(make_arguments(BY_NAME[name], dtype, excitation=excitation, residual=True, post_activation="relu"))


@needs_gpu
@HALF
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", ["nchw", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_prologue_against_the_reference(activation: str, name: str, dtype: torch.dtype) -> None:
    arguments = make_arguments(BY_NAME[name], dtype, residual=True, post_activation="silu")
    K = arguments["fc1_weight"].shape[1]
    before = {"pre_scale": torch.rand(K) + 0.5, "pre_shift": torch.randn(K)}
    expected = reference.squeeze_excite(**exact(arguments | before), pre_activation=activation)
    with torch.no_grad():
        actual = squeeze_excite(**on_gpu(arguments | before), pre_activation=activation)
    error = (actual.cpu().double() - expected).abs().max()
    assert error <= 2 * TOLERANCES[dtype] * expected.abs().max()  # u is rounded, too


def test_a_sign_is_no_matter_of_rounding() -> None:
    arguments = make_arguments(BY_NAME["nchw"], residual=True, post_activation="relu")
    arguments["residual"].zero_()
    arguments["x"][0, 0] = 1e-7
    exclude_ties(arguments)
    v = reference.squeeze_excite(**(exact(arguments) | {"post_activation": "identity"}))
    assert v.abs().min() >= 2**-6


@needs_gpu
@pytest.mark.usefixtures("kernel")
def test_the_first_call_of_a_process_may_be_recorded() -> None:
    """Forward and backward: kernels are loaded, plans made and counters allocated while a graph is recorded."""
    path = [str(HERE.parents[1])]
    if STAND_IN:
        path.append(str(HERE.parent / "csrc/cuda/stand_in"))
    program = f"import sys; sys.path[:0] = {path!r}\n" + "import cuda_stand_in\n" * STAND_IN + FIRST_CALL
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_gpu
@pytest.mark.skipif(STAND_IN, reason="Inductor wants Triton for a GPU; graph_trees_tests.py has torch's warm-up")
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_reduce_overhead(backward: bool, fresh_dynamo: None) -> None:
    arguments = on_gpu(make_arguments(BY_NAME["nchw"], residual=True, post_activation="relu"))
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(squeeze_excite, arguments, grad_y)
    compiled = torch.compile(squeeze_excite, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # warm-up with torch's check of the pool, recording, replays
        torch.compiler.cudagraph_mark_step_begin()
        if backward:
            results = value_and_grads(compiled, arguments, grad_y)
        else:
            with torch.no_grad():
                results = {"y": compiled(**arguments)}
        for name, value in results.items():
            assert_same_bits(value, expected[name])
        del results, value

"""The op and its module where networks are trained: autocast, checkpoints, hooks, copies, two processes."""

import copy
import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from se_testing import BY_NAME, TENSORS, make_arguments, value_and_grads
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from senet_fast.se import FusedSE, SEBlock, reference, squeeze_excite

AUTOCAST = {
    "float32": (torch.float32, torch.float32, None),
    "half_x": (torch.bfloat16, torch.float32, None),
    "half_weights": (torch.float32, torch.bfloat16, None),
    "other_half": (torch.bfloat16, torch.float16, None),
    "half_residual": (torch.float32, torch.float32, torch.bfloat16),
    "float_residual": (torch.bfloat16, torch.float32, torch.float32),
    "all_half": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
}


@pytest.mark.parametrize("case", AUTOCAST)
def test_autocast(case: str) -> None:
    """y in the type that eager's promotion gives, gradients each in the type of its tensor."""
    x_type, weight_type, residual_type = AUTOCAST[case]
    arguments = make_arguments(BY_NAME["nchw"], residual=residual_type is not None)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            kind = {"x": x_type, "residual": residual_type}.get(name, weight_type)
            arguments[name] = value.to(kind).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, eager = squeeze_excite(**arguments), reference.squeeze_excite(**arguments)
    assert y.dtype == eager.dtype
    torch.testing.assert_close(y, eager, rtol=0.05, atol=0.05)
    if case in ("float32", "half_x", "all_half"):  # types that the op takes as they are: nothing is rounded on the way
        assert torch.equal(y, squeeze_excite(**arguments))
    y.float().sum().backward()
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            assert value.grad.dtype == value.dtype, name


def test_autocast_module_in_a_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), FusedSE(16, 4), nn.Conv2d(16, 4, 1))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    arguments = make_arguments(BY_NAME["nchw"], residual=True, post_activation="relu")
    grad_y = torch.randn_like(arguments["x"])
    expected = value_and_grads(squeeze_excite, arguments, grad_y)
    inputs = [arguments[name].detach().requires_grad_() for name in TENSORS]
    options = {name: value for name, value in arguments.items() if name not in TENSORS}

    def run(*tensors: Tensor) -> Tensor:
        return squeeze_excite(**dict(zip(TENSORS, tensors, strict=True)), **options)

    checkpoint(run, *inputs, use_reentrant=reentrant).backward(grad_y)
    for name, tensor in zip(TENSORS, inputs, strict=True):
        assert torch.equal(tensor.grad, expected[name]), name


def test_selective_checkpoint() -> None:
    """A policy may keep the op's result by name while the rest is computed again."""
    seen: set[str] = set()

    def policy(_: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        seen.add(str(op))
        return CheckpointPolicy.MUST_SAVE if "squeeze_excite" in str(op) else CheckpointPolicy.PREFER_RECOMPUTE

    arguments = make_arguments(BY_NAME["nchw"])
    grad_y = torch.randn_like(arguments["x"])

    def plain(**given: Any) -> Tensor:
        return squeeze_excite(**given).relu()

    def selective(**given: Any) -> Tensor:
        contexts = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
        return checkpoint(plain, use_reentrant=False, context_fn=contexts, **given)

    torch.testing.assert_close(value_and_grads(selective, arguments, grad_y), value_and_grads(plain, arguments, grad_y))
    assert "senet_fast.squeeze_excite_forward.default" in seen


def test_module_hooks() -> None:
    module, hits = FusedSE(8, 2), []
    module.register_forward_hook(lambda *_: hits.append("forward"))
    module.register_full_backward_hook(lambda *_: hits.append("backward"))
    module.fc1.weight.register_hook(lambda _: hits.append("weight"))
    module(torch.randn(2, 8, 3, 3, requires_grad=True)).sum().backward()
    assert sorted(hits) == ["backward", "forward", "weight"]


def test_copies_of_a_module() -> None:
    module, x = FusedSE(8, 2, activation=nn.LeakyReLU(0.3), gate=nn.Hardsigmoid, add_one=True), torch.randn(2, 8, 3, 3)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)]
    for other in copies:
        assert repr(other) == repr(module)
        assert torch.equal(other(x), module(x))
        with torch.no_grad():
            other.fc1.weight.add_(1)
        assert not torch.equal(other(x), module(x))


def _train_in_parallel(rank: int, meeting: str, results: str) -> None:
    """One of two processes: half the batch, two steps."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save(_steps(rank), f"{results}.{rank}")
    dist.barrier()  # neither leaves while the other still reads from it
    dist.destroy_process_group()
    os._exit(0)  # Gloo's threads may abort while Python is torn down (examples/train_parallel.py)


def _steps(rank: int | None) -> list[Tensor]:
    """Gradients and parameters after two steps of SGD, on half the batch (a rank) or the whole one (None)."""
    torch.manual_seed(5)
    model: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 1), FusedSE(8, 2), nn.Flatten(), nn.Linear(8 * 9, 3))
    x, target = torch.randn(6, 3, 3, 3), torch.randn(6, 3)
    if rank is not None:
        model = DistributedDataParallel(model)
        x, target = x[rank::2], target[rank::2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
    return [t.detach() for p in model.parameters() for t in (p, p.grad)]


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with half a batch each train as one with the whole batch. Nothing leaves this machine."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    arguments = (str(tmp_path / "meeting"), str(tmp_path / "result"))
    torch.multiprocessing.spawn(_train_in_parallel, arguments, nprocs=2)
    alone = _steps(None)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"result.{rank}"), alone)


def test_data_parallel_of_blocks_agrees() -> None:
    """A shared block and its fused twin add their gradients into one place."""
    block = SEBlock(8, 2)
    fused, x = FusedSE.from_block(block), torch.randn(2, 8, 3, 3)
    (block(x).sum() + fused(x).sum()).backward()
    both = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    (2 * block(x).sum()).backward()
    torch.testing.assert_close(both, [parameter.grad for parameter in block.parameters()])

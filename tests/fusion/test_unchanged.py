"""What fuse() leaves as it was: everything but the forward."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from fusion_testing import assert_same, counts_calls, randomize, relative, step
from hosts import Bottleneck
from torch import Tensor, nn
from zoo import ZOO, C, LinearExpand, Optional, WithNorm

from senet_fast import fuse, unfuse


def network() -> nn.Module:
    return randomize(
        nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), LinearExpand(), nn.Conv2d(C, 4, 1))
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 7, 9)


def test_structure_and_state() -> None:
    model = network()
    names = [name for name, _ in model.named_modules()]
    parameters, state, text = dict(model.named_parameters()), model.state_dict(), repr(model)
    model[3].train(False)
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    assert len(fuse(model).fused) == 1
    assert torch.equal(torch.get_rng_state(), generator)
    assert [name for name, _ in model.named_modules()] == names
    assert repr(model) == text
    assert isinstance(model[3], LinearExpand)
    assert [module.training for module in model.modules()] == modes
    assert not model[0].weight.requires_grad
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    network().load_state_dict(model.state_dict())
    model.load_state_dict(state)


def test_optimizer_made_before_and_new_weights(x: Tensor) -> None:
    plain, fused = network(), network()
    for model in (plain, fused):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if model is fused:
            fuse(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(dict(fused.named_parameters()), dict(plain.named_parameters()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["deepcopy", "copy", "pickle", "torch.save", "replica"])
def test_copies_are_fused_and_stand_alone(way: str, x: Tensor) -> None:
    model = network().eval()
    fuse(model)
    y = model(x)
    if way == "deepcopy":
        copied = copy.deepcopy(model)
    elif way == "copy":
        copied = copy.copy(model)
        copied._modules = {name: copy.copy(child) for name, child in model.named_children()}
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(model))
    elif way == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    else:
        copied = model._replicate_for_data_parallel()
        copied._modules = {name: child._replicate_for_data_parallel() for name, child in model.named_children()}
        for name, child in model.named_children():
            copied._modules[name]._parameters = dict(child._parameters)
            copied._modules[name]._modules = dict(child._modules)
    assert counts_calls(lambda: copied(x)) == 1
    assert torch.equal(copied(x), y)
    if way not in ("replica", "copy"):  # those share their children
        copied[3].fc = copy.deepcopy(copied[3].fc)  # setting an attribute takes the fusion back
        with torch.no_grad():
            copied[3].fc[2].weight.add_(1)
        assert counts_calls(lambda: copied(x)) == 0
        assert not torch.allclose(copied(x), y)
    assert torch.equal(model(x), y)
    assert counts_calls(lambda: model(x)) == 1


def test_setting_an_attribute_takes_the_fusion_back() -> None:
    block = randomize(LinearExpand())
    fuse(block)
    plain = copy.deepcopy(block)
    unfuse(plain)
    block.avg_pool = plain.avg_pool = nn.AdaptiveMaxPool2d(1)
    given = torch.randn(2, C, 4, 5)
    assert torch.equal(block(given), plain(given))
    assert type(block) is LinearExpand


def test_hooks_on_the_block_run_and_later_ones_on_children_are_seen(x: Tensor) -> None:
    model = network()
    seen: list[str] = []
    model[3].register_forward_hook(lambda *_: seen.append("before"))
    assert len(fuse(model).fused) == 1
    model[3].register_forward_hook(lambda *_: seen.append("after"))
    model(x)
    assert seen == ["before", "after"]
    assert counts_calls(lambda: model(x)) == 1
    handle = model[3].fc[1].register_forward_hook(lambda *_: seen.append("child"))
    seen.clear()
    assert counts_calls(lambda: model(x)) == 0
    assert seen == ["child", "before", "after"]
    handle.remove()
    assert counts_calls(lambda: model(x)) == 1


def test_other_arguments_and_axes_run_the_forward_it_had() -> None:
    block = randomize(Optional())
    plain = copy.deepcopy(block)
    fuse(block)
    given, mask = torch.randn(2, C, 9), (torch.arange(9) < 5).float().expand(2, 1, 9)
    for call in (lambda: block(given), lambda: block(x=given, mask=None), lambda: block(given, None)):
        assert counts_calls(call) == 1
    assert counts_calls(lambda: block(given, mask)) == counts_calls(lambda: block(given, mask=mask)) == 0
    assert torch.equal(block(given, mask=mask), plain(given, mask=mask))
    for wrong in (lambda: block(), lambda: block(given, x=given), lambda: block(given, None, None)):
        with pytest.raises(TypeError):
            wrong()
    other = LinearExpand()
    fuse(other)
    with pytest.raises(ValueError, match="unpack"):
        other(torch.randn(C, 4, 5))


def test_norms_fold_only_where_they_do_not_train() -> None:
    block = randomize(WithNorm())
    fuse(block)
    given = torch.randn(4, C, 3, 3)
    assert counts_calls(lambda: block.train()(given)) == 0
    before = block.se[2].running_mean.clone()
    assert counts_calls(lambda: block.eval()(given)) == 1
    assert torch.equal(block.se[2].running_mean, before)
    block.se[2].train()
    assert counts_calls(lambda: block(given)) == 0
    assert not torch.equal(block.se[2].running_mean, before)


@pytest.mark.parametrize("name", ["linear_expand_as", "norm_before_activation", "eca"])
def test_compile_and_export(name: str) -> None:
    case = ZOO[name]
    plain = randomize(case.make()).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    given = torch.randn(case.shape)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(given), plain(given), rtol=1e-5, atol=1e-5)
    program = torch.export.export(fused, (given,))
    assert sum("senet_fast.squeeze_excite" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(given), plain(given), rtol=1e-5, atol=1e-5)


def test_compiled_training() -> None:
    plain = randomize(LinearExpand())
    fused = copy.deepcopy(plain)
    fuse(fused)
    given = torch.randn(2, C, 5, 7)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for model in (plain, compiled):
        model(given).square().sum().backward()
    for (name, expected), actual in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_types(dtype: torch.dtype) -> None:
    plain = randomize(LinearExpand()).to(dtype)
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    given = torch.randn(2, C, 5, 7, dtype=dtype)
    tolerance: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(fused(given), plain(given), **tolerance)
    assert fused.fc[0].weight.dtype == dtype


def test_autocast() -> None:
    plain = randomize(LinearExpand())
    fused = copy.deepcopy(plain)
    fuse(fused)
    given = torch.randn(2, C, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = plain(given), fused(given)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        block = LinearExpand()
    assert len(fuse(block).fused) == 1
    block = randomize(block.to_empty(device="cpu"))
    plain = copy.deepcopy(block)
    unfuse(plain)
    assert_same(plain, block, torch.randn(2, C, 6, 7))


def test_fusing_within_inference_mode_and_without_gradients(x: Tensor) -> None:
    for mode in (torch.inference_mode, torch.no_grad):
        model = network()
        with mode():
            assert len(fuse(model).fused) == 1
        model(x).sum().backward()


def test_jit_trace_of_a_fused_model() -> None:
    """What is traced without gradients is later called with them: nothing for inference only goes into the trace."""
    plain = randomize(Bottleneck()).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = torch.randn(2, C, 7, 9)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated
        traced = torch.jit.trace(fused, x)
    (y, gradients), (traced_y, traced_gradients) = step(plain, x), step(traced, x)
    assert relative(y, traced_y) < 1e-5
    assert relative(gradients["x"], traced_gradients["x"]) < 1e-4

"""benchmarks/modes.py and contenders.py: rows, the networks that they stand for, and the pass that is timed."""

import importlib
import sys

import pytest
import torch
from torch import nn

from benchmarks import contenders
from benchmarks.modes import Case, Layer, Mode, modes
from senet_fast.measure import frozen
from senet_fast.se import SEBlock

COMMANDS = ("claim", "fusing", "memory", "norm", "onnx", "peers", "table", "tax")
OF_IDS = ("ids.alternatives", "ids.scaling", "ids.table")


def test_rows() -> None:
    found = modes(("vgg", "ecapa"), passes=(("forward", 1), ("step", 8)), dtypes=("bf16",))
    layouts = [mode.layout for mode in found]
    assert [mode.id for mode in found][:2] == ["vgg forward 1 nchw bf16", "vgg step 8 nchw bf16"]
    assert layouts == ["nchw", "nchw", "nhwc", "nhwc", "nchw", "nchw"]  # sound has no channels_last
    x = Mode("vgg", batch=2, layout="nhwc", dtype="bf16").input()
    assert (x.shape, x.dtype) == ((2, 3, 224, 224), torch.bfloat16)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert found[-1].input(3).shape == (3, 300, 80)
    case = Case(Layer("some", 1, 8, (5, 7), 2, "relu", "sigmoid"), 3, "nhwc", "fp16", "step")
    assert (case.id, case.bytes) == ("some 3x8x5x7 r2 nhwc fp16 step", 3 * 8 * 35 * 2)
    assert case.input().shape == case.shape


@pytest.mark.parametrize("name", [*COMMANDS, *OF_IDS])
def test_every_command_lists_its_rows(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--list"])
    with pytest.raises(SystemExit, match=r"^0$"):
        module.main()
    listed = capsys.readouterr().out.splitlines()
    assert listed
    assert len(listed) == len(set(listed))


def test_own_networks_share_weights() -> None:
    mode = Mode("mobilenet_v1", "step", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "CALIBRATION_IMAGES", 1)
        patch.setattr(Mode, "input", lambda self, batch: torch.randn(batch, 3, 64, 64))
        made = contenders.own(mode, "mobilenet_v1", plain=False, eager=SEBlock, ours=True)
    states = [made[name].state_dict() for name in ("eager", "ours")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert all(network.training for network in made.values())
    x = torch.randn(2, 3, 64, 64)
    assert contenders.check(mode, made["eager"], made["ours"], x) < contenders.TOLERANCE
    assert made["ours"].training
    with pytest.raises(AssertionError, match="mobilenet_v1 step 1 nchw fp32: the outputs differ by"):
        contenders.check(mode, made["plain"], made["ours"], x)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 1), SEBlock(16), nn.AdaptiveAvgPool2d(1))


def test_a_pass(network: nn.Module) -> None:
    x = torch.randn(2, 3, 4, 4)
    y = contenders.passing(network, "forward", x)()
    assert y.is_inference()
    before = network[0].weight.detach().clone()
    contenders.passing(network, "step", x)()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not torch.equal(before, network[0].weight)


def test_versions(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 4, 4)
    fused, blocks = contenders.fused(network.eval())
    assert blocks == 1
    expected = network(x)
    assert contenders.agree("fused", expected, fused(x)) < 1e-5
    with pytest.raises(AssertionError, match="no block of Conv2d was fused"):
        contenders.fused(network[0])
    with pytest.raises(AssertionError, match="has no SE block that is known here"):
        contenders.without_se(network)
    monkeypatch.setattr(contenders, "BLOCKS", {f"{SEBlock.__module__}.SEBlock"})
    none = contenders.without_se(network)
    assert torch.equal(none(x), network[2](network[0](x)))
    assert isinstance(network[1], SEBlock)


@pytest.mark.slow
@pytest.mark.parametrize("make", ["compiled", "frozen"])
def test_compiled_versions(network: nn.Module, make: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    for one in (network.eval(), contenders.fused(network.eval())[0]):
        torch._dynamo.reset()
        run = frozen(one, x) if make == "frozen" else contenders.compiled(one)
        y = contenders.passing(run, "forward", x)()
        assert contenders.agree(make, network(x), y) < 1e-5

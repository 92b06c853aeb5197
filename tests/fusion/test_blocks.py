"""fuse() on blocks: every style is found, nothing that only looks like one, and numbers stay."""

import copy
import sys

import pytest
import torch
from fusion_testing import assert_same, counts_calls, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from lookalikes import LOOKALIKES, NEAR
from torch import nn
from zoo import ECA, ZOO, AnyActivation, C, LinearExpand, R, Transposed

from senet_fast import fusion
from senet_fast.fusion import fuse, unfuse
from senet_fast.se import SEBlock


@pytest.mark.parametrize("name", ZOO)
def test_every_style_is_found(name: str) -> None:
    case = ZOO[name]
    plain = randomize(case.make())
    fused = copy.deepcopy(plain)
    report = fuse(nn.Sequential(fused))
    assert not report.skipped
    (entry,) = report.fused
    assert (entry.path, entry.cls) == ("0", type(plain).__name__)
    assert (entry.activation, entry.gate, entry.hidden) == (case.activation, case.gate, case.hidden)
    x = torch.randn(case.shape) + torch.randn(case.shape).mean(-1, keepdim=True)
    assert_same(plain, fused, x)
    with torch.no_grad():
        assert counts_calls(lambda: fused.eval()(x)) == 1
        assert counts_calls(lambda: fused.train()(x)) == case.training
        assert counts_calls(lambda: plain(x)) == 0


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_block_between_transposes(given: bool, inside: bool) -> None:
    plain = randomize(nn.Sequential(Transposed(), nn.Linear(C, 3)) if inside else Transposed())
    fused = copy.deepcopy(plain)
    x = torch.randn(2, 9, C) + torch.randn(2, 1, C)
    report = fuse(fused, example_inputs=x if given else None)
    assert ([entry.path for entry in report.fused], report.skipped) == (["0" if inside else ""], [])
    assert counts_calls(lambda: fused(x)) == 1
    assert_same(plain, fused, x)


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes_are_left_alone(name: str) -> None:
    module = randomize(LOOKALIKES[name][0]())
    x = torch.randn(LOOKALIKES[name][1])
    before = module.eval()(x.clone())
    report = fuse(nn.Sequential(module))
    assert not report.fused
    assert torch.equal(module.eval()(x.clone()), before)
    assert [entry.reason for entry in report.skipped] == NEAR.get(name, [])
    if name in NEAR:
        with pytest.raises(ValueError, match="strict"):
            fuse(nn.Sequential(module), strict=True)


ACTIVATIONS = [nn.ReLU(), nn.SiLU(), nn.GELU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.Hardswish()]
CHANGES = {
    "softplus": nn.Softplus(),
    "elu": nn.ELU(),
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "softmax": lambda z: z.softmax(1),
    "normalised": lambda z: z / z.norm(dim=1, keepdim=True),
    "shuffled": lambda z: z.flip(1),
    "of_the_batch": lambda z: z - z.mean(0, keepdim=True),
    "dropout": nn.Dropout(0.5),
    "by_channel": lambda z: z * torch.arange(1.0, 1 + z.shape[1]),
    "learned": nn.PReLU(),
}


@pytest.mark.slow
@settings(max_examples=25)
@given(st.sampled_from(ACTIVATIONS), st.floats(0.1, 2), st.floats(-1, 1), st.integers(0, 2**16))
def test_random_blocks_are_found(activation: nn.Module, slope: float, shift: float, seed: int) -> None:
    """An affine clamp of any numbers for a gate."""
    plain = randomize(AnyActivation(activation, lambda z: (slope * z + shift).clamp(-0.25, 1.5)), seed)
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    assert_same(plain, fused, torch.randn(3, C, 4, 5))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", ["activation", "gate"])
def test_near_misses_are_left_alone(change: str, at: str) -> None:
    """Each is an SE block but for one function. Those that are plain in eval mode may be fused there."""
    wrong = CHANGES[change]
    plain = randomize(AnyActivation(*((wrong, torch.sigmoid) if at == "activation" else (nn.ReLU(), wrong))))
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert len(report.fused) == (change == "dropout")
    assert len(report.skipped) == (change != "dropout")
    if change == "dropout":
        fused.train()
        assert counts_calls(lambda: fused(torch.randn(2, C, 3, 3))) == 0
        plain.eval()
        fused.eval()
    torch.testing.assert_close(fused(x := torch.randn(2, C, 3, 3)), plain(x))


def test_unfuse_and_fusing_twice() -> None:
    model = nn.Sequential(LinearExpand(), nn.Conv2d(C, C, 3), LinearExpand())
    assert [entry.path for entry in fuse(model).fused] == ["0", "2"]
    again = fuse(model)
    assert (again.fused, again.skipped) == ([], [])
    x = torch.randn(2, C, 6, 6)
    assert counts_calls(lambda: model(x)) == 2
    assert unfuse(model) == 2
    assert type(model[0]) is LinearExpand
    assert counts_calls(lambda: model(x)) == 0
    assert unfuse(model) == 0
    assert len(fuse(model).fused) == 2


def test_report_prints_a_table() -> None:
    text = str(fuse(nn.Sequential(LinearExpand(), AnyActivation(nn.ELU(), torch.sigmoid))))
    assert "path  class         channels  hidden  activation  gate" in text
    assert "0     LinearExpand  12        5       relu        sigmoid" in text
    assert "1 fused, 1 skipped:" in text
    assert "1     AnyActivation  its activation is none that the op has" in text
    assert str(fuse(nn.ReLU())) == "0 fused, 0 skipped"


def test_progress_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(LinearExpand(), LinearExpand())
    monkeypatch.setattr(fusion, "PROGRESS_SECONDS", -1.0)
    fuse(copy.deepcopy(model))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fuse(copy.deepcopy(model))
    modules = sum(1 for _ in model.modules())
    assert f"\rfuse: 2 of {modules} modules" in capsys.readouterr().err
    monkeypatch.setattr(fusion, "PROGRESS_SECONDS", 1000.0)
    fuse(model)
    assert capsys.readouterr().err == ""


def test_report_entries() -> None:
    report = fuse(nn.Sequential(LinearExpand(), ECA(), AnyActivation(nn.ELU(), torch.sigmoid)))
    assert [(e.path, e.cls, e.channels, e.hidden, e.activation, e.gate) for e in report.fused] == [
        ("0", "LinearExpand", C, R, "relu", "sigmoid"),
        ("1", "ECA", None, None, "identity", "sigmoid"),
    ]
    assert [(e.path, e.cls, e.reason) for e in report.skipped] == [
        ("2", "AnyActivation", "its activation is none that the op has")
    ]


def test_no_module_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"model is a int; expected a torch\.nn\.Module"):
        fuse(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, C, 7), (2, C, 5, 6), (2, C, 3, 4, 5)], ids=str)
def test_the_package_s_own_block_for_any_number_of_axes(shape: tuple[int, ...]) -> None:
    plain = randomize(SEBlock(C, 4, activation="silu"))
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    assert counts_calls(lambda: fused(torch.randn(shape))) == 1
    assert_same(plain, fused, torch.randn(shape))


class Silent(LinearExpand):
    """LeViT's way to leave its own mode to itself."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_a_train_that_does_not_return_its_module() -> None:
    plain = randomize(Silent())
    fused = copy.deepcopy(plain)
    assert len(fuse(nn.Sequential(fused)).fused) == 1
    x = torch.randn(2, C, 5, 7)
    assert counts_calls(lambda: fused(x)) == 1
    assert float((plain(x) - fused(x)).abs().max()) < 1e-5

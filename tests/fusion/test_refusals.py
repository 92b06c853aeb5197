"""Nothing is refused in silence: the report, the log and the command tell what was looked at and why it is left."""

import logging

import pytest
import torch
from fusion_testing import Passed, randomize
from lookalikes import NEAR, GroupedLayers, LayerNormed, TwoLayers
from torch import Tensor, nn
from zoo import C, LinearExpand

from senet_fast.cli import main
from senet_fast.fusion import fuse

LOGGER = "senet_fast.fuse"


class Untraceable(TwoLayers):
    """Its number of images decides what it does."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            return x * self.gate(x.mean((2, 3), keepdim=True))
        return x


class Raises(TwoLayers):
    """Refuses all that is no half type."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(checked(x).mean((2, 3), keepdim=True))


@torch.fx.wrap
def checked(x: Tensor) -> Tensor:
    if x.dtype is not torch.float16:
        raise NotImplementedError("half types only")
    return x


class Uncopied(TwoLayers):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("one of its kind")

    forward = LinearExpand.forward


class Normalised(nn.Module):
    """Pools and multiplies back, but has no layers in between."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * torch.rsqrt(x.square().mean(-1, keepdim=True)))


def test_near_misses_have_stage_node_and_reason() -> None:
    report = fuse(nn.Sequential(LayerNormed()))
    (left,) = report.skipped
    assert (left.path, left.reason, left.stage, left.node) == ("0", *NEAR["LayerNormed"], "layers", "mul")
    assert report.explain("0") == "0 (LayerNormed): norm is a LayerNorm [layers at mul]"
    assert report.explain("0") in report.explain("")
    with pytest.raises(ValueError, match=r"path is .no\.such.; expected the path of a module"):
        report.explain("no.such")


@pytest.mark.parametrize(
    ("make", "stage", "reason", "exception"),
    [
        (GroupedLayers, "layers", "fc1 is a Conv2d", ""),
        (Untraceable, "trace", "it can not be traced", "TraceError: "),
        (Raises, "values", "no shape of x", "NotImplementedError: half types only"),
    ],
)
def test_a_model_in_which_nothing_is_found_says_what_pools(
    make: type[nn.Module], stage: str, reason: str, exception: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        report = fuse(nn.Sequential(make()))
    assert (report.fused, report.skipped) == ([], [])
    (left,) = report.missed
    assert (left.path, left.stage, left.reason.startswith(reason)) == ("0", stage, True)
    assert left.exception.startswith(exception)
    assert bool(left.exception) == bool(exception)
    assert "0 fused, 0 skipped, though these may pool and multiply back:" in str(report)
    assert left.reason in str(report)
    (record,) = caplog.records
    assert (record.levelno, record.name, record.getMessage()) == (logging.INFO, LOGGER, str(left))
    fuse(nn.Sequential(make()), strict=True)  # nothing is known to be a block


def test_a_module_that_can_not_be_copied_says_so() -> None:
    report = fuse(nn.Sequential(Uncopied()))
    assert "it can not be copied: RuntimeError: one of its kind [copy]" in report.explain("0")


@pytest.mark.parametrize("make", [Normalised, lambda: nn.Linear(8, 8)])
def test_what_has_nothing_like_it_stays_quiet(make: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        report = fuse(make())
    assert str(report) == "0 fused, 0 skipped"
    assert not caplog.records


def test_what_was_found_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(LinearExpand(), Untraceable())
    with caplog.at_level(logging.DEBUG, LOGGER):
        report = fuse(model)
    assert report.missed == []
    assert str(report).endswith("1 fused, 0 skipped")
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * len(report.looked_at)
    assert "it can not be traced" in report.explain("1")
    assert report.explain("0").startswith("0 (LinearExpand): fused: channels 12, hidden 5, activation relu")
    assert "not looked at" in report.explain("0.fc.1")
    assert fuse(model).missed == []


@pytest.mark.slow
def test_the_pass_of_the_compiler_logs(caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()
    plain = randomize(LayerNormed())
    with caplog.at_level(logging.DEBUG, LOGGER):
        torch.compile(plain, backend=Passed())(torch.randn(2, C, 6, 6))
    assert any("a graph of torch.compile: " in record.getMessage() for record in caplog.records)


def made() -> nn.Module:
    return nn.Sequential(LinearExpand(), LayerNormed(), nn.ReLU())


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", f"{__name__}:made", "--seconds", "0", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "1 (LayerNormed): norm is a LayerNorm [layers at mul]" in text
    assert "0 (LinearExpand): fused: " in text
    assert main(["fuse", f"{__name__}:made", "--seconds", "0", "--explain", "2"]) == 0
    assert "2 (ReLU): not looked at: it has no layer" in capsys.readouterr().out
    assert main(["fuse", f"{__name__}:made", "--seconds", "0", "--explain", "7"]) == 2
    assert "path is '7'" in capsys.readouterr().err

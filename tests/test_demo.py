"""The demo at its quick size, what it checks, and the networks it uses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from senet_fast import cli
from senet_fast.demo import main, network, report
from senet_fast.demo.digits import Comparison, Training
from senet_fast.demo.ids import Draw
from senet_fast.demo.network import Network, Setting, Stage
from senet_fast.measure import Speed
from senet_fast.models import se_resnet50, se_resnet_digits
from senet_fast.se import SEBlock


@pytest.mark.slow
def test_quick_demo_writes_its_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "senet_fast", "demo", "--quick", "--out", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stderr
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "report" / "report.json").read_text())
    assert results["failures"] == []
    assert {"cpu", "cores", "threads"} <= set(results["machine"])
    assert results["versions"]["torch"] == torch.__version__
    assert all(run["accuracy"] > 0.97 for run in results["training"].values())
    networks = results["networks"]
    assert networks["fused"] == {"SE-ResNet-50": 16, "SE-MobileNet": 13}
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert [one["dtype"] for one in networks["settings"]] == ["float32", *["bfloat16"] * half, "float32"]
    assert ["bfloat16 is left out" in note for note in networks["notes"]] == [True] * (not half)
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'src="report.png"' in page
    assert all(note in page for note in networks["notes"])
    assert [table in page for table in ("| network ", "| x ", "| layout ")] == [True] * 3
    for one in networks["settings"]:
        assert one["speed"]["low"] <= one["speed"]["median"] <= one["speed"]["high"]
    assert [stage["shape"][1] for stage in networks["stages"]] == [256, 512, 1024, 2048]
    assert all(stage["seconds"]["fused"] > 0 for stage in networks["stages"])
    assert {draw["how"] for draw in results["ids"]["draws"]} == {"one at a time", "in bulk"}
    assert "| x " in done.stdout


def test_problems_are_named() -> None:
    trainings = {"SEBlock": Training(accuracy=0.99), "FusedSE": Training(accuracy=0.5)}
    stage = Stage((1, 2, 3, 3), {}, float("nan"), True)
    whole = Network({}, [setting({}, Speed(1.0, 1.0, 1.0, 6), errors={"before": 1e-6, "after": 0.5})], [stage], [])
    draws = [Draw("twitter", "Snowflake", "in bulk", 1.0, 10, False)]
    comparisons = {"float64": Comparison(trainings, 1.0, 1.0), "float32": Comparison(trainings, 0.0, 1.0)}
    found = main.problems(comparisons, whole, draws)
    assert len(found) == 5
    assert all(
        word in text for word, text in zip(("FusedSE", "float64", "(1, 2", "ResNet-50", "twitter"), found, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ctrl_c", "kill"])
def test_the_other_process_ends_as_well(tmp_path: Path, end: signal.Signals) -> None:
    """By Ctrl-C, which both get, and where the demo alone is killed."""
    command = [sys.executable, "-m", "senet_fast", "demo", "--quick", "--out", str(tmp_path)]
    demo = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    with demo:
        assert demo.stderr
        said = b""
        while b"training" not in said:
            piece = demo.stderr.read1(100)
            assert piece, said
            said += piece
        (os.killpg if end == signal.SIGINT else os.kill)(demo.pid, end)
        said += demo.stderr.read()  # until both have closed it
        assert demo.wait(timeout=60) != 0
    assert b"float32" not in said


def test_a_failing_demo_fails_without_a_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainings = {name: Training(losses=[1.0], accuracy=0.5) for name in ("SEBlock", "FusedSE")}
    training = Comparison(trainings, 0.0, 0.0)
    monkeypatch.setattr(main, "train_and_time", lambda sizes, other: (training, training, Network({}, [], [], [])))
    monkeypatch.setattr(main.ids, "run", lambda count: ([], []))
    monkeypatch.setattr(main.report, "write_picture", lambda *arguments: None)
    monkeypatch.setattr(main.report, "network_text", lambda whole: "")
    monkeypatch.setattr(main.report, "ids_text", lambda *arguments: "")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["demo", "--out", str(tmp_path)]) == 1


def setting(seconds: dict[str, float], speed: Speed, believable: bool = True, **changed: Any) -> Setting:
    errors = changed.get("errors", {"before": 0.0, "after": 0.0})
    return Setting("SE-ResNet-50", 4, "eager", "float32", seconds, speed, errors, believable)


def test_no_ratios_of_busy_rows() -> None:
    seconds = {"eager": 3e-6, "torch.compile": None, "fused": 2e-6, "copy": 1e-6}
    for believable in (True, False):
        stage = Stage((1, 2, 3, 3), dict(seconds), 0.0, believable)
        whole = setting({"before": 3.0, "after": 2.0}, Speed(1.5, 1.4, 1.6, 9), believable)
        text = report.network_text(Network({}, [whole], [stage], ["something is left out"]))
        assert "something is left out\n" in text
        assert [word in text for word in ("1.50 |", "2.00 |")] == [believable] * 2
        assert all(
            word in text for word in ("1.500", "1.400 to 1.600", " faster")
        )  # the rounds' own ratios, and how sure
        assert [word in text for word in ("1x2x3x3 (busy)", "faster (busy)")] == [not believable] * 2


@pytest.mark.parametrize(
    ("ratios", "low", "high", "words"),
    [
        ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], 1.0, 1.5, "within the noise"),  # 2/64 of all sixes miss the median
        ([1.02, 1.1, 1.2, 1.3, 1.4, 1.5], 1.02, 1.5, "faster"),
        ([0.5, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 3.0], 0.8, 0.9, "slower"),  # one at each end may be left out
        ([2.0], 2.0, 2.0, "within the noise"),
        ([2.0] * 5, 2.0, 2.0, "within the noise"),
    ],
)
def test_speed_says_what_is_noise(ratios: list[float], low: float, high: float, words: str) -> None:
    speed = Speed.of(ratios[::-1])
    assert (speed.low, speed.high, speed.rounds) == (low, high, len(ratios))
    assert words in report.speed_words(setting({}, speed))


@pytest.mark.slow
def test_a_missing_package_is_named_at_once(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["matplotlib"] = None
from senet_fast.cli import main
sys.exit(main(["demo", "--out", {str(tmp_path / "report")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"demo: .*matplotlib.*`make demo`.*'\.\[demo\]'.*\n", done.stderr)
    assert not (tmp_path / "report").exists()


def test_a_failing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> object:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: broken)
    function, problem = network.compiled(SEBlock(16), torch.zeros(1, 16, 2, 2))
    assert function is None
    assert problem == "RuntimeError: no compiler"


def test_networks() -> None:
    plain = se_resnet50()
    assert sum(parameter.numel() for parameter in plain.parameters()) == 28_088_024
    without = se_resnet50(se=False)
    assert sum(parameter.numel() for parameter in without.parameters()) == 25_557_032
    blocks = [module for module in plain.modules() if isinstance(module, SEBlock)]
    assert [block.fc1.in_channels for block in blocks] == [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    assert se_resnet_digits()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

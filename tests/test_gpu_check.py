"""tools/gpu_check.py and benchmarks/gpu without a GPU: a dry run of all but launches, and what they decide."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import needs
import pytest

needs.library("torch")

from benchmarks.gpu import op  # noqa: E402
from benchmarks.gpu.__main__ import markdown  # noqa: E402
from benchmarks.gpu.clock import noted, take_turns  # noqa: E402
from benchmarks.gpu.sources import fingerprint  # noqa: E402


@pytest.fixture(scope="module")
def gpu_check(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", root / "tools/gpu_check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_dry_run(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "tools/gpu_check.py", "--dry-run", "--no-build", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests          passed" in done.stdout
    assert "measurements   passed" in done.stdout
    (written,) = tmp_path.glob("gpu-*-dry-run.json")
    results = json.loads(written.read_text())
    assert {(row["kind"], row["heat"]) for row in results["op"]} == {(k, h) for k in op.KINDS for h in ("cold", "hot")}
    assert all(set(row["seconds"]) == {*op.CONTENDERS, *op.KERNELS} for row in results["op"])
    assert [row["kind"] for row in results["networks"]] == ["forward", "step"]
    text = written.with_suffix(".md").read_text()
    assert "A dry run: these times mean nothing" in text
    before = results["op"][0] | {"seconds": {"ours": 1.0}}
    written.write_text(json.dumps(results | {"op": [before, *results["op"][1:]]}))
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--resume", "--results", str(tmp_path)]
    assert subprocess.run(command, cwd=root).returncode == 0
    assert json.loads(written.read_text())["op"][0] == before  # not measured again
    written.write_text(json.dumps(results | {"sources": "others", "op": [before, *results["op"][1:]]}))
    assert subprocess.run(command, cwd=root).returncode == 0
    assert json.loads(written.read_text())["op"][0] != before  # whatever it was a figure of, it is gone
    assert "FusedSE, tails" in text


def test_steps(gpu_check: ModuleType) -> None:
    steps = gpu_check.steps(dry_run=False, sanitizer="compute-sanitizer", compiler=True)
    assert [step.name for step in steps] == ["build", "tests", "memcheck", "initcheck", "synccheck", "racecheck"]
    assert steps[0].environment["SENET_FAST_CUDA"] == "1"
    assert [step.beside for step in steps[2:]] == [False, True, True, True]
    assert not any("-x" in step.command for step in steps)  # what fails is listed to the end
    assert gpu_check.measurements(False, 200.0, None, False).command[-2:] == ("--seconds", "140")


def test_a_step_that_fails_or_hangs_is_said(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    python = (sys.executable, "-c")
    bad = gpu_check.Step("bad", (*python, "print('why'); raise SystemExit(3)"))
    slow = gpu_check.Step("slow", (*python, "import time; time.sleep(60)"), seconds=0.5)
    outcomes = gpu_check.run([bad, slow])
    assert "bad            FAILED with status 3" in outcomes[0]
    assert "slow           ENDED after 0 s" in outcomes[1]
    assert "why" in capsys.readouterr().out


@pytest.mark.slow
def test_a_limit_holds_for_what_a_step_has_started(gpu_check: ModuleType) -> None:
    """A grandchild that keeps the pipe open, as a compiler's or a test's may."""
    child = "import subprocess; subprocess.Popen(['sleep', '60'])"
    begin = time.monotonic()
    both = [gpu_check.Step(name, (sys.executable, "-c", child), seconds=2.0) for name in ("one", "other")]
    assert all("ENDED after 2 s" in outcome for outcome in gpu_check.run(both))
    assert time.monotonic() - begin < 30


def test_resume_does_what_is_left(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    steps = [gpu_check.Step("build", ()), gpu_check.Step("tests", ()), gpu_check.Step("memcheck", ())]
    fails = {"tests"}

    def run(group: list[Any], left: float = 0) -> list[str]:
        ran.extend(step.name for step in group)
        return [f"{step.name:14} {'FAILED' if step.name in fails else 'passed'}, 1 s" for step in group]

    monkeypatch.setattr(gpu_check, "PASSED", tmp_path / "passed.json")
    monkeypatch.setattr(gpu_check, "steps", lambda *given: steps)
    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--no-build"])
    assert gpu_check.main() == 1
    assert ran == ["build", "tests", "memcheck", "measurements"]
    ran.clear()
    fails.clear()
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--no-build", "--resume"])
    assert gpu_check.main() == 0
    assert ran == ["tests", "measurements"]
    ran.clear()
    monkeypatch.setattr(gpu_check, "fingerprint", lambda folders: "others")
    assert gpu_check.main() == 0
    assert ran == ["build", "tests", "memcheck", "measurements"]
    assert "the sources have changed" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check, "SECONDS", 100.0)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--no-build"])
    capsys.readouterr()
    assert gpu_check.main() == 1
    assert "NOT BEGUN for lack of time: --resume" in capsys.readouterr().out


def test_other_sources_have_another_fingerprint(tmp_path: Path) -> None:
    source, table = tmp_path / "csrc/se/a.cuh", tmp_path / "csrc/table.md"
    source.parent.mkdir(parents=True)
    source.write_text("1")
    first = fingerprint(("csrc", "none"), tmp_path)
    table.write_text("1")
    assert fingerprint(("csrc", "none"), tmp_path) == first
    source.write_text("2")
    second = fingerprint(("csrc", "none"), tmp_path)
    source.rename(source.with_name("b.cuh"))
    assert len({first, second, fingerprint(("csrc", "none"), tmp_path)}) == 3


def row(kind: str, heat: str, batch: int, size: float, **seconds: float) -> dict[str, Any]:
    return {"case": "c", "kind": kind, "heat": heat, "batch": batch, "bytes": size, "seconds": seconds, "problems": {}}


@pytest.mark.parametrize(
    ("kind", "heat", "batch", "size", "reached"),
    [
        ("forward", "cold", 32, 26e6, [("of a copy's GB/s", 0.9, 0.5), ("of torch.compile's speed", 1.4, 1.5)]),
        ("forward", "cold", 32, 24e6, []),
        ("forward", "hot", 1, 1e5, [("of 6 us at batch 1", 1.0, 3.0)]),
        ("epilogue", "cold", 256, 26e6, [("of eager's speed", 2.5, 4.0)]),
        ("backward", "cold", 32, 26e6, [("of eager's speed", 2.0, 4.0)]),
    ],
)
def test_targets(kind: str, heat: str, batch: int, size: float, reached: list[tuple[str, float, float]]) -> None:
    judged = op.targets(row(kind, heat, batch, size, ours=2e-6, copy=1e-6, compile=3e-6, eager=8e-6))
    assert [(t.what, t.least, round(t.reached, 6)) for t in judged] == reached
    assert op.targets(row(kind, heat, batch, size, eager=8e-6)) == []  # ours failed: there is nothing to judge


def test_the_table_shows_losses_failures_and_what_was_left_out() -> None:
    rows = [row("forward", "cold", 32, 100e6, ours=100e-6, copy=80e-6, eager=50e-6)]
    rows[0]["problems"] = {"compile": "RuntimeError: no"}
    results = {"date": "2026-11-24T00:00:00", "gpu": {"name": "H", "clocks.sm": "1 MHz"}, "versions": {"torch": "2"}}
    text = markdown(results | {"dry_run": False, "op": rows, "networks": [], "left_out": ["the last"]})
    assert "2026-11-24, H; torch 2, clocks.sm 1 MHz." in text
    (line,) = (line.split() for line in text.splitlines() if line.startswith("| c "))
    assert line[5:14:2] == ["100.0", "2000", "2500", "0.80", "50.0"]
    assert "0.50" in line
    assert "0.80 of a copy's GB/s |   0.90 |  no |" in text
    assert "FAILED forward c compile: RuntimeError: no" in text
    assert "Out of time, not measured: the last" in text


class Counting:
    """A clock whose calls take a known time and are counted."""

    device, l2_bytes, rounds = "cpu", 1, 4

    def __init__(self) -> None:
        self.order: list[str] = []

    def record(self, prepare: Any) -> Any:
        return prepare()

    def seconds(self, call: Any, times: int) -> float:
        name, duration = call()
        self.order.append(name)
        return duration


def test_contenders_take_turns() -> None:
    clock = Counting()
    taken = take_turns(clock, {"a": lambda: ("a", 1e-3), "b": lambda: ("b", 2e-3)})
    assert taken == {"a": 1e-3, "b": 2e-3}
    assert "".join(clock.order[6:]) == "abbaabba"


def test_what_goes_wrong_is_noted() -> None:
    problems: dict[str, str] = {}
    with noted(problems, "ours"):
        raise ValueError("first line\nsecond")
    assert problems == {"ours": "ValueError: first line"}

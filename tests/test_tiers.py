"""What `make check` runs of `make test`: not what is marked slow, and a few cases of each test, drawn by the seed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import needs
import pytest

TESTS = """
import os
import time
import pytest


@pytest.mark.parametrize("case", range(9))
def test_many(case):
    pass


@pytest.mark.parametrize("case", range(2))
def test_few(case):
    if case and os.environ.get("CRASH"):
        os._exit(3)


def test_sleeps():
    time.sleep(SECONDS)


@pytest.mark.slow
def test_marked():
    pass
"""


def chosen(root: Path, tmp_path: Path, *arguments: str, seconds: float = 0, code: int = 0) -> tuple[list[str], str]:
    """The tests of TESTS that ran, in a process of their own that ends with `code`, and what pytest printed."""
    (tmp_path / "test_parts.py").write_text(TESTS.replace("SECONDS", str(seconds)))
    (tmp_path / "conftest.py").write_text((root / "tests/conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments, "test_parts.py"]
    environment = {**os.environ, "PYTHONPATH": str(root / "tests")}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    names = [line.split("::")[1].split()[0] for line in done.stdout.splitlines() if line.startswith("test_parts.py::")]
    return names, done.stdout


@pytest.mark.slow
def test_a_quick_run_leaves_out_most(root: Path, tmp_path: Path) -> None:
    everything, printed = chosen(root, tmp_path)
    assert len(everything) == 13
    assert "not marked slow" not in printed
    draws = [chosen(root, tmp_path, "--quick", f"--hypothesis-seed={seed}")[0] for seed in (1, 1, 2)]
    for names in draws:
        assert [name.partition("[")[0] for name in names] == ["test_many"] * 2 + ["test_few"] * 2 + ["test_sleeps"]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.slow
def test_several_processes_draw_alike(root: Path, tmp_path: Path) -> None:
    """With a seed that nobody gave: else pytest-xdist stops, for they would collect different tests."""
    needs.library("xdist")
    printed = chosen(root, tmp_path, "--quick", "-n", "2")[1]
    assert "5 passed" in printed


@pytest.mark.slow
def test_what_made_it_slow_is_named(root: Path, tmp_path: Path) -> None:
    printed = chosen(root, tmp_path, "--quick", seconds=2.1)[1]
    (line,) = [line for line in printed.splitlines() if "not marked slow" in line]
    assert line.startswith("2.")
    assert line.endswith("s, and not marked slow: test_parts.py::test_sleeps")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_other_processes_run_each_test_once_and_the_long_ones_first(root: Path, tmp_path: Path, processes: int) -> None:
    needs.library("xdist")
    _, printed = chosen(root, tmp_path, "-n", str(processes), "--dist", "loadgroup")
    ran = re.findall(r"PASSED test_parts.py::(\S+)", printed)
    assert len(ran) == len(set(ran)) == 13
    assert ran[0] == "test_marked" or processes > 1


@pytest.mark.slow
def test_a_process_that_ends_amidst_a_test(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose test hangs does: the test is named, the others run, and nothing waits for ever."""
    needs.library("xdist")
    monkeypatch.setenv("CRASH", "1")
    _, printed = chosen(root, tmp_path, "-n", "2", "--dist", "loadgroup", code=1)
    assert "1 failed, 12 passed" in printed
    assert re.search(r"^FAILED test_parts.py::test_few\[1\]", printed, re.MULTILINE)

"""The decisions of tools/matrix.py: what is asked for, what pytest said, which rows the table has."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("matrix")


def test_pairs(matrix: ModuleType) -> None:
    assert len(matrix.pairs([])) == len(matrix.PYTHONS) * len(matrix.TORCHES)
    assert matrix.pairs(["3.13:2.13", "3.11:2.12"]) == [("3.11", "2.12"), ("3.13", "2.13")]
    for wrong in ("3.10:2.13", "3.12", "3.12:2.13:x"):
        with pytest.raises(matrix.Problem, match=f"{wrong}: expected PYTHON:TORCH"):
            matrix.pairs([wrong])


def test_the_releases_are_those_that_the_package_takes(matrix: ModuleType) -> None:
    bootstrap = sys.modules["bootstrap"]
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert matrix.PYTHONS[0] == ".".join(map(str, bootstrap.MINIMUM_PYTHON))
    assert matrix.TORCHES[0] == ".".join(map(str, bootstrap.MINIMUM_TORCH))
    assert matrix.minor(bootstrap.TORCH.partition("==")[2]) == matrix.TORCHES[-1]
    built = re.search(r'build = "(.*)"', pyproject)
    assert built
    assert [f"cp{python.replace('.', '')}-*" for python in matrix.PYTHONS] == built[1].split()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("....\n4 passed in 1.20s\n", "4 passed"),
        ("==== 1 failed, 7 passed, 2 skipped in 65.02s (0:01:05) ====\n", "1 failed, 7 passed, 2 skipped"),
        ("1 passed in 1.0s\n2 errors in 0.3s", "2 errors"),
        ("Killed\n", "the tests did not run to their end"),
    ],
)
def test_outcome(matrix: ModuleType, output: str, said: str) -> None:
    assert matrix.outcome(output) == said


def test_new_rows_take_the_place_of_old_ones(matrix: ModuleType) -> None:
    old = [matrix.Row("3.12.1", "2.11.0", "9 passed", "200", "30", "a"), matrix.Row("3.14", "2.13", "no such Python")]
    new = [matrix.Row("3.12.4", "2.11.1+cpu", "1 failed", "201", "31", "b"), matrix.Row("3.11.7", "2.13.0", "9 passed")]
    table = matrix.HEADER + "".join(f"{row.line()}\n" for row in matrix.merged(old, new))
    rows = matrix.rows_of(table)
    assert [row.pair for row in rows] == [("3.11", "2.13"), ("3.12", "2.11"), ("3.14", "2.13")]
    assert rows == [new[1], new[0], old[1]]


def test_an_interpreter_is_asked_for_its_version(
    matrix: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "{}.{}".format(*sys.version_info[:2])
    assert matrix.interpreter(here) == sys.executable
    shim = tmp_path / "bin" / "python3.99"  # as pyenv's, which has the name and may not have the release
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent), prepend=":")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert matrix.interpreter("3.99") is None
    real = tmp_path / ".pyenv" / "versions" / "3.99.1" / "bin" / "python"
    real.parent.mkdir(parents=True)
    real.write_text("#!/bin/sh\necho 3.99\n")
    real.chmod(0o755)
    assert matrix.interpreter("3.99") == str(real)
    assert matrix.cell("3.98", "2.13").result == "no such Python on this machine"


@pytest.mark.slow
def test_the_sdist_has_what_the_tests_need(matrix: ModuleType, tmp_path: Path) -> None:
    folder = matrix.sources(tmp_path)
    for name in ("setup.py", "csrc/system.h", "tests/conftest.py", "benchmarks/__init__.py", *matrix.TESTS):
        assert (folder / name).exists(), name
    assert not list(folder.rglob("*.so"))

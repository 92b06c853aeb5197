"""What is missing skips a test, or fails it where --installed says that it was installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import needs
import pytest

PARTS = """
import sys
import needs

sys.modules["timm"] = None  # as if it were missing


def test_library():
    needs.library("timm.layers")


def test_program(monkeypatch):
    monkeypatch.setattr(needs.shutil, "which", lambda name, path=None: None)
    needs.program("nm")


def test_server():
    needs.lacking("a server", "etcd-server")


def test_nobody_brings_it():
    needs.library("no_such_library")


def test_what_is_there():
    assert needs.library("json.decoder").JSONDecoder
    assert needs.program("sh")
"""
MODULE = """
import sys
import needs

sys.modules["msgspec"] = None
needs.library("msgspec")


def test_more():
    pass
"""
TESTS = {"test_module.py", "test_library", "test_program", "test_server", "test_nobody_brings_it"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("installed", "failed"),
    [
        ("", set()),
        ("etcd-server", {"test_server"}),
        ("build,ecosystem,networks,etcd-server", TESTS - {"test_nobody_brings_it"}),
    ],
)
def test_what_is_missing_is_skipped_unless_it_was_installed(
    installed: str, failed: set[str], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_parts.py").write_text(PARTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    options = ["-c", str(root / "pyproject.toml"), "-p", "conftest", f"--rootdir={tmp_path}", "-rsfE"]
    options += ["--continue-on-collection-errors", "--tb=short", f"--installed={installed}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_parts.py", "test_module.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root / 'tests'}:{root}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.findall(r"^(?:FAILED|ERROR) \S*?([^/: ]+)(?: |$)", done.stdout, re.MULTILINE)
    assert (set(found), len(found)) == (failed, len(failed)), done.stdout + done.stderr
    skipped = re.findall(r"^SKIPPED \[1\] \S+: (.*)", done.stdout, re.MULTILINE)
    assert len(skipped) == len(TESTS - failed)
    told = {
        "test_library": r"needs the Python package timm\.layers \(.*\): make networks",
        "test_module.py": r"needs the Python package msgspec \(.*\): make ecosystem",
        "test_program": "needs the program nm",
        "test_server": "needs a server: Debian's etcd-server",
        "test_nobody_brings_it": r"needs the Python package no_such_library \(.*\)",
    }
    for test, reason in told.items():
        assert sum(bool(re.fullmatch(reason, line)) for line in skipped) == (test not in failed), (test, skipped)
    assert len(re.findall("--installed names", done.stdout)) >= len(failed)
    assert "--hypothesis-seed=" in done.stdout


def test_names_that_nothing_has() -> None:
    assert needs.parse("") == frozenset()
    assert needs.parse("ecosystem,zookeeper") == {"ecosystem", "zookeeper"}
    with pytest.raises(pytest.UsageError, match=r"--installed names network; expected some of \['build', 'ecosystem'"):
        needs.parse("ecosystem,network")


def test_who_brings_what() -> None:
    """By the names that are imported; what is installed here is found under them."""
    brought = {"psycopg2": "ecosystem", "rest_framework": "ecosystem", "PIL": "networks", "onnxscript": "interop"}
    assert brought.items() <= needs.LIBRARIES.items()
    assert "" not in needs.LIBRARIES


def test_nobody_skips_by_themselves(root: Path) -> None:
    """pytest.importorskip, or a skip behind a look for a program, would be one that CI does not see."""
    own = {Path(__file__), root / "tests/needs.py"}
    for path in set((root / "tests").rglob("*.py")) - own:
        text = path.read_text()
        assert "importorskip" not in text, path
        assert not re.search(r"skipif\([^\n]*(which|find_spec)\(|(which|find_spec)\([^\n]*\n[^\n]*\bskip\(", text), path

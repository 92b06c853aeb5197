"""The op library and the torch it was built for, without compiling: what is compared, what is said, what a build needs.
`make wheels` tries the rest on installed wheels.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import needs
import pytest
from cli_testing import run

from senet_fast.commands import build


@pytest.mark.slow
def test_another_torch_is_refused_before_anything_is_loaded(root: Path, tmp_path: Path) -> None:
    """In a copy of the package whose op was built for a torch of the past, whether it could be loaded or not."""
    torch = needs.library("torch")
    shutil.copytree(root / "senet_fast", tmp_path / "senet_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    told = tmp_path / "senet_fast/se/built_for_torch.txt"
    told.write_text("1.13.1+cu117\n")
    command = [sys.executable, "-c", "import senet_fast.se"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def last_line() -> str:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    assert last_line() == (
        "ImportError: senet_fast's op was compiled for torch 1.13 (1.13.1+cu117), and this is torch "
        f"{torch.__version__}; compile it anew with `python -m senet_fast build`, or in a checkout with `make build`"
    )
    for same in (torch.__version__, ".".join(torch.__version__.split(".")[:2]) + ".99+cu130", None):
        told.write_text(same) if same else told.unlink()
        assert "the compiled op senet_fast.se._C could not be loaded (No module named" in last_line()


def test_the_build_says_which_torch_it_was_for() -> None:
    torch = needs.library("torch")
    from senet_fast.se import _C, built

    if built.built_for() is not None:  # by an older build
        assert built.built_for() == _C.build_info()["torch"] == torch.__version__


def test_a_checkout_has_no_sources_of_its_own() -> None:
    done = run("build")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("carries no sources; in a checkout run `make build`\n")


def test_what_a_build_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    (tmp_path / "se").mkdir()
    monkeypatch.setenv("CXX", f"{sys.executable} -m")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found("os"))
    assert "pip install torch" in str(build.lacking())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ninja" else found("os"))
    assert str(build.lacking()).endswith("pip install ninja")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("os"))
    assert build.lacking() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler: `no-such-compiler` is not on PATH" in str(build.lacking())
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "no Python.h in" in str(build.lacking())
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "is not writable" in str(build.lacking())

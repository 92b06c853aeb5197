"""Compile the op for the torch that this Python has, from the sources that the installed package carries."""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from senet_fast.commands import complain

if TYPE_CHECKING:
    from senet_fast.commands import Subparsers

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = PACKAGE / "_sources"


def add(commands: "Subparsers") -> None:
    commands.add_parser("build", help="compile the op for this torch", description=__doc__).set_defaults(run=run)


def lacking() -> str | None:
    """What is missing to compile, as one sentence with the remedy."""
    if not SOURCES.is_dir():
        return f"{PACKAGE} carries no sources; in a checkout run `make build`"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; the op is compiled for one: pip install torch"
    absent = [name for name in ("setuptools", "ninja") if importlib.util.find_spec(name) is None]
    if absent:
        return f"the build needs them: pip install {' '.join(absent)}"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler: `{compiler}` is not on PATH; install one (Debian, Ubuntu: apt install g++) or set CXX"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        return f"no Python.h in {include}: install Python's development files (Debian, Ubuntu: apt install python3-dev)"
    if not os.access(PACKAGE / "se", os.W_OK):
        return f"{PACKAGE / 'se'} is not writable: run it as who installed senet_fast"
    return None


def run(options: argparse.Namespace) -> int:
    if problem := lacking():
        complain("build", problem)
        return 1
    with tempfile.TemporaryDirectory(prefix="senet_fast-") as folder:
        tree, made = Path(folder, "sources"), Path(folder, "lib", "senet_fast", "se")
        shutil.copytree(SOURCES, tree)
        complain("build", "compiling the op; this takes a minute or two")
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(made.parents[1])]
        if subprocess.call(command, cwd=tree, env={**os.environ, "SENET_FAST_SE": "1", "SENET_FAST_BUILT": "0"}) != 0:
            complain("build", "the compiler failed; its message is above")
            return 1
        for path in sorted(made.iterdir(), key=lambda path: path.suffix == ".txt"):  # which torch it is for comes last
            shutil.copy(path, PACKAGE / "se" / f".{path.name}.part")
            os.replace(PACKAGE / "se" / f".{path.name}.part", PACKAGE / "se" / path.name)
    return subprocess.call(
        [sys.executable, "-c", "import senet_fast.se.built as built; print('built for torch', built.built_for())"]
    )

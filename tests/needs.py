"""What tests need beside `make test`'s own packages. Without it they are skipped, and name what would bring it.

``--installed=ecosystem,etcd-server`` says what somebody has installed: whatever that brings has to be there, and the
tests that need it fail where it cannot be used. .ci/run says so of all that it could install.
"""

import importlib
import re
import shutil
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest

EXTRAS = {
    "ecosystem": ("ecosystem",),
    "networks": ("networks", "networks-base"),
    "interop": ("interop",),
}  # of pyproject.toml, by the verb of the Makefile that installs them
# Where a distribution is imported by another name than its own; cmake is a program.
IMPORTED_AS = {
    "psycopg-binary": "psycopg",
    "psycopg2-binary": "psycopg2",
    "djangorestframework": "rest_framework",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "cmake": "",
}
BUILD = "build"  # what compiles the op
PROGRAMS = {
    **dict.fromkeys(("g++", "nm", "objdump", "c++filt"), BUILD),
    "cmake": "interop",
}
SERVERS = ("redis-server", "postgresql", "mariadb-server", "etcd-server", "zookeeper")  # Debian's packages

installed: frozenset[str] = frozenset()  # set by conftest.py


def libraries() -> dict[str, str]:
    """What brings each library, by the name that it is imported by."""
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    brought = {"torch": BUILD, "Cython": BUILD}
    for verb, names in EXTRAS.items():
        for line in (line for name in names for line in extras[name]):
            distribution = re.split("[<>=]", line)[0]
            if name := IMPORTED_AS.get(distribution, distribution.replace("-", "_")):
                brought.setdefault(name, verb)
    return brought


LIBRARIES = libraries()


def parse(names: str) -> frozenset[str]:
    """The value of --installed."""
    known = {BUILD, *EXTRAS, *SERVERS}
    given = frozenset(filter(None, names.split(",")))
    if unknown := given - known:
        raise pytest.UsageError(f"--installed names {', '.join(sorted(unknown))}; expected some of {sorted(known)}")
    return given


def library(name: str) -> Any:
    """The module ``name``, imported."""
    provider = LIBRARIES.get(name.partition(".")[0])
    if provider == "networks":  # they import torchvision, whose wheel may not fit the installed torch
        from benchmarks.libraries import define_torchvision_operators

        define_torchvision_operators()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacking(f"the Python package {name} ({error})", provider)


def program(name: str) -> str:
    """The path of a program, which pip may have put beside the interpreter."""
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    return found or lacking(f"the program {name}", PROGRAMS.get(name))


def lacking(what: str, provider: str | None) -> NoReturn:
    """Ends the test: it is skipped, or fails if ``provider`` is said to be installed."""
    if provider in installed:
        pytest.fail(f"needs {what}, which {provider} brings, and --installed names that", pytrace=False)
    verb = f": make {provider}" if provider in EXTRAS else f": Debian's {provider}" if provider in SERVERS else ""
    pytest.skip(f"needs {what}{verb}", allow_module_level=True)

"""Builds and tests the package with several releases of Python and torch: `make matrix`, or some of it by
`make matrix ARGS="3.12:2.11 3.13:2.13"`.

Each pair has an environment of its own, and the sources as the sdist has them; the op's tests and those of the
generators run as in `make check`. The table in docs/versions.md keeps the rows of pairs that were not asked for.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bootstrap import ROOT, Problem, requirements

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCHES = ("2.11", "2.12", "2.13")
TESTS = ("tests/se", "tests/ids/test_snowflake.py")
HERE = ROOT / "build" / "matrix"
TABLE = ROOT / "docs" / "versions.md"
HEADER = """\
# Releases of Python and torch

`make matrix` builds the sdist with each pair of releases, in an environment of its own, and runs the tests of the op
and of the generators (`pytest --quick`; what is skipped needs libraries that are not installed there). It writes this
table. The seconds are the processor's: of the build, and of the tests. CUDA is left out (`SENET_FAST_CUDA=0`).

| Python | torch | result | build, s | tests, s | when and where |
| --- | --- | --- | --- | --- | --- |
"""


class Row(NamedTuple):
    python: str  # with its last number, where it was there
    torch: str
    result: str
    build_s: str = ""
    tests_s: str = ""
    where: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        return minor(self.python), minor(self.torch)

    def line(self) -> str:
        return f"| {' | '.join(self)} |"


# ---- decisions, tested in tests/test_matrix.py -----------------------------------------------------------------------


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def pairs(arguments: "Sequence[str]") -> list[tuple[str, str]]:
    """What `PYTHON:TORCH` names, or all pairs."""
    every = [(python, torch) for python in PYTHONS for torch in TORCHES]
    if not arguments:
        return every
    asked = [tuple(argument.split(":")) for argument in arguments]
    if unknown := [":".join(pair) for pair in asked if pair not in every]:
        raise Problem(f"{', '.join(unknown)}: expected PYTHON:TORCH, of Python {PYTHONS} and torch {TORCHES}")
    return [pair for pair in every if pair in asked]


def outcome(output: str) -> str:
    """What pytest's last line says, without its seconds."""
    found = re.findall(r"^=*\s*(\d+ (?:passed|failed|error|skipped).*?) in [\d.]+s", output, re.MULTILINE)
    return found[-1] if found else "the tests did not run to their end"


def rows_of(table: str) -> list[Row]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return [Row(*row) for row in cells if re.match(r"\d+\.\d+", row[0])]


def merged(old: "Iterable[Row]", new: "Iterable[Row]") -> list[Row]:
    """The rows of each pair, the new ones in the place of the old."""
    by_pair = {row.pair: row for row in [*old, *new]}
    return [by_pair[pair] for pair in pairs([]) if pair in by_pair]


# ---- actions ---------------------------------------------------------------------------------------------------------


def interpreter(version: str) -> str | None:
    """An interpreter of this release: this one, one on PATH, or one of pyenv's."""
    here = [sys.executable] if sys.version_info[:2] == tuple(map(int, version.split("."))) else []
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for path in [*here, shutil.which(f"python{version}"), *map(str, of_pyenv)]:
        if path and _says(path, "import sys; print('%d.%d' % sys.version_info[:2])") == version:
            return path
    return None


def _says(python: "str | Path", program: str) -> str:
    done = subprocess.run([python, "-c", program], capture_output=True, text=True)
    return done.stdout.strip()


def processor_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def sources(to: Path) -> Path:
    """The sdist, unpacked."""
    shutil.rmtree(to / "source", ignore_errors=True)
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", to / "sdist"], cwd=ROOT, check=True)
    (archive,) = (to / "sdist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        file.extractall(to / "source", **safely)
    shutil.rmtree(to / "sdist")
    (folder,) = (to / "source").iterdir()
    return folder


def cell(version: str, torch: str) -> Row:
    found = interpreter(version)
    if found is None:
        return Row(version, torch, "no such Python on this machine")
    here = HERE / f"python{version}-torch{torch}"
    python = here / "venv" / "bin" / "python"
    here.mkdir(parents=True, exist_ok=True)
    settings = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "SENET_FAST_CUDA": "0", "PYTHONSAFEPATH": ""}
    if not python.exists():
        subprocess.run([found, "-m", "venv", here / "venv"], check=True)
    wanted = [f"torch=={torch}.*", *requirements(ROOT / "pyproject.toml", "test-core")]
    where = f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores"
    with open(here / "log.txt", "w+") as log:

        def run(*words: object) -> float | None:
            """The seconds of the processor; None if it failed."""
            begin = processor_s()
            print("+", *words, file=log, flush=True)
            done = subprocess.run(list(map(str, words)), cwd=source, env=settings, stdout=log, stderr=subprocess.STDOUT)
            return processor_s() - begin if done.returncode == 0 else None

        source: Path = here
        if run(python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *wanted) is None:
            return Row(
                _says(python, "import platform; print(platform.python_version())"), torch, "no such torch", where=where
            )
        known = "import platform, torch; print(platform.python_version(), torch.__version__)"
        versions = _says(python, known).split()
        source = sources(here)
        build_s = run(python, "setup.py", "-q", "build_ext", "--inplace")
        if build_s is None:
            return Row(*versions, "did not build", where=where)
        begin = processor_s()
        passed = run(python, "-m", "pytest", "--quick", *TESTS) is not None
        tests_s = processor_s() - begin
        log.seek(0)
        said = outcome(log.read())
    if passed:
        shutil.rmtree(here)  # torch with its CUDA is 5 GB
    return Row(*versions, said, f"{build_s:.0f}", f"{tests_s:.0f}", where)


def main(arguments: "Sequence[str]") -> int:
    rows = []
    for version, torch in pairs(arguments):
        row = cell(version, torch)
        print(row.line(), flush=True)
        rows.append(row)
        old = rows_of(TABLE.read_text()) if TABLE.exists() else []
        TABLE.write_text(HEADER + "".join(f"{row.line()}\n" for row in merged(old, [row])))
    return 1 if any("failed" in row.result or "not" in row.result.split() for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as problem:
        sys.exit(f"error: {problem}")

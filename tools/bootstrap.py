"""Prepare what a verb of the Makefile needs, then run it: `python3 tools/bootstrap.py VERB [arguments]`.

An interpreter that already has torch is used as it is; only what is missing for the job is installed into it, never
torch. Otherwise this file starts again inside .venv, which it makes, and installs torch and the checkout (editable)
there too. What a job needs is listed in pyproject.toml. The compiled modules are built in place, again only when their
fingerprint changed. Standard library only. Annotations newer than Python 3.6 are quoted, so that any python3 gets as
far as check_python.
"""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
BUILD_STAMP = ROOT / "build" / "fingerprint"

MINIMUM_PYTHON = (3, 11)
MINIMUM_TORCH = (2, 11)
TORCH = "torch==2.13.0"  # for .venv
# What changes the compiled modules besides their sources. SENET_FAST_ISA and the like act at run time and are not here.
BUILD_SETTINGS = (
    *("SENET_FAST_SE", "SENET_FAST_CUDA", "SENET_FAST_NVCC", "SENET_FAST_SANITIZE"),
    *("TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX", "CC", "CXXFLAGS", "CFLAGS"),
)
CLANG_FORMAT_FOLDERS = ("csrc", "examples", "tests/csrc")
CLANG_FORMAT_SUFFIXES = {".h", ".inl", ".cpp", ".cuh", ".cu"}


# Extras that a CUDA toolkit on the machine makes needless: the programs that they bring.
PROGRAMS = {"nvcc": ("nvcc",), "gates": ("cuobjdump", "nvdisasm")}
COMPILED = ("senet_fast.ids._snowflake", "senet_fast.se._C")


class Verb(NamedTuple):
    """What a verb needs and the commands it runs; the user's arguments go to the last command."""

    extra: str  # of pyproject.toml; or several, with spaces between them
    build: bool  # the compiled modules, in place
    commands: "tuple[tuple[str, ...], ...]"
    alone: str = ""  # another extra, installed without what it depends on


IN_PARALLEL = ("-n", "{workers}", "--dist", "loadgroup")
VERBS = {
    "build": Verb("ids", True, ()),
    "toolkit": Verb("nvcc gates", False, ()),
    "cuda": Verb("ids nvcc", True, ()),
    "gates": Verb("ids nvcc gates", True, (("{python}", "tests/csrc/cuda/gates.py"),)),
    "ecosystem": Verb("ecosystem", False, ()),
    "networks": Verb("networks-base", False, (), alone="networks"),
    "interop": Verb("interop", False, ()),
    "demo": Verb("demo", True, (("{python}", "-m", "senet_fast", "demo"),)),
    "test": Verb("test", True, (("{python}", "-m", "pytest", *IN_PARALLEL),)),
    "check": Verb("test", True, (("{python}", "-m", "pytest", *IN_PARALLEL, "--quick"),)),
    "stand-in": Verb("test", True, (("{python}", "tests/csrc/cuda/stand_in", *IN_PARALLEL),)),
    "bench": Verb(
        "bench", True, (("{python}", "-m", "pytest", "benchmarks", "--benchmark-json=build/benchmarks.json"),)
    ),
    "docs": Verb("docs", True, (("{python}", "-m", "sphinx", "-E", "-W", "--keep-going", "-q", "docs", "build/docs"),)),
    "wheels": Verb("wheels", False, (("{python}", "tools/wheels.py"),)),
    "clang": Verb("test", False, (("make", "--no-print-directory", "clang-built", "PYTHON={python}"),)),
    "macos": Verb("test macos", False, (("make", "--no-print-directory", "macos-compiled", "PYTHON={python}"),)),
    "aarch64": Verb("test-core", False, (("{python}", "tools/aarch64.py"),)),
    "matrix": Verb("test-core", False, (("{python}", "tools/matrix.py"),)),
    "sanitize": Verb("test", False, (("make", "--no-print-directory", "sanitize-ids", "PYTHON={python}"),)),
    "lint": Verb(
        "lint",
        False,
        (
            ("ruff", "check", "."),
            ("ruff", "format", "--check", "."),
            ("mypy",),
            ("cython-lint", "senet_fast"),
            ("clang-format", "--dry-run", "-Werror", "{csrc}"),
        ),
    ),
    "stubs": Verb(
        "lint",
        True,
        (("{python}", "-m", "mypy.stubtest", "--mypy-config-file", "pyproject.toml", *COMPILED),),
    ),
    "format": Verb("lint", False, (("ruff", "format", "."), ("clang-format", "-i", "{csrc}"))),
}


class Problem(Exception):
    """One sentence that says what is missing and how to get it."""


# ---- decisions: plain functions, tested in tests/test_bootstrap.py -------------------------------------------------


def numbers(version: str) -> "tuple[int, ...]":
    """The leading numbers of a version: '2.13.0+cpu' is (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def installed(name: str) -> "str | None":
    """The version of a distribution in this interpreter."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(pyproject: Path, extra: str) -> "list[str]":
    """What pyproject.toml asks for to build, and for an extra."""
    import tomllib

    listed = tomllib.loads(pyproject.read_text())
    return [*listed["build-system"]["requires"], *listed["project"]["optional-dependencies"][extra]]


def satisfied(requirement: str, version: "str | None") -> bool:
    if version is None:
        return False
    least = re.search(r"[>=]=\s*([0-9.]+)", requirement)
    if least is None:
        return True
    wanted = numbers(least.group(1))
    if requirement.endswith(".*"):
        return numbers(version)[: len(wanted)] == wanted
    return numbers(version) >= wanted


def missing(wanted: "Iterable[str]", version_of: "Callable[[str], str | None]" = installed) -> "list[str]":
    """The requirements, like 'name', 'name>=1.2' and 'name==1.2', that this interpreter does not satisfy."""
    return [line for line in wanted if not satisfied(line, version_of(re.split("[<>=]", line)[0]))]


def extras(words: str, has: "Callable[[str], object]") -> "list[str]":
    """The extras that a verb needs on a machine that has these programs."""
    return [extra for extra in words.split() if extra not in PROGRAMS or not all(map(has, PROGRAMS[extra]))]


def choose_environment(inside_venv: bool, torch_version: "str | None") -> str:
    """'venv' where .venv is ours to fill, 'active' where this interpreter brings a suitable torch."""
    suitable = torch_version is not None and numbers(torch_version) >= MINIMUM_TORCH
    return "venv" if inside_venv or not suitable else "active"


def fingerprint(root: Path, torch_version: "str | None", environment: "Mapping[str, str]") -> str:
    """A hash of everything the compiled modules are made of."""
    digest = hashlib.sha256()
    settings = [f"{name}={environment.get(name, '')}" for name in BUILD_SETTINGS]
    for text in (sys.version, sys.prefix, str(torch_version), *settings):
        digest.update(text.encode() + b"\0")
    sources = [root / "setup.py", *(root / "csrc").rglob("*"), *(root / "senet_fast").rglob("*.p[xy][xd]")]
    for path in sorted(path for path in sources if path.is_file()):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def modules(root: Path, environment: "Mapping[str, str]") -> "list[Path]":
    """The compiled modules, and the op library, that a build leaves in the tree."""
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    op = (
        []
        if environment.get("SENET_FAST_SE") == "0"
        else ["se/libsenet_fast.so", f"se/_C{suffix}", "se/built_for_torch.txt"]
    )
    return [root / "senet_fast" / name for name in (f"ids/_snowflake{suffix}", *op)]


def must_build(root: Path, stamp: Path, wanted: str, environment: "Mapping[str, str]") -> bool:
    built = all(path.exists() for path in modules(root, environment))
    return not (built and stamp.exists() and stamp.read_text() == wanted)


# ---- checks ----------------------------------------------------------------------------------------------------------


def check_python(version: "tuple[int, ...]") -> None:
    if version[:2] < MINIMUM_PYTHON:
        raise Problem(
            f"Python {version[0]}.{version[1]} is too old: install {MINIMUM_PYTHON[0]}.{MINIMUM_PYTHON[1]} or newer "
            "and name it, as in `make PYTHON=python3.12 demo`."
        )


def check_compiler(environment: "Mapping[str, str]", include: str) -> None:
    compiler = environment.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise Problem(
            f"No C++ compiler: `{compiler}` is not on PATH; install one (Debian, Ubuntu: apt install g++) or set CXX."
        )
    if not Path(include, "Python.h").exists():
        raise Problem(
            f"No Python.h in {include}: install Python's development files (Debian, Ubuntu: apt install python3-dev)."
        )


def check_venv() -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Problem(
            f"{sys.executable} cannot make virtual environments: install its venv module "
            "(Debian, Ubuntu: apt install python3-venv), or activate an environment that has torch."
        )


# ---- actions ---------------------------------------------------------------------------------------------------------


def run(command: "Sequence[object]", **settings: str) -> int:
    words = [str(word) for word in command]
    shown = words if len(words) < 20 else [*words[:6], f"... ({len(words) - 6} more)"]
    print("+", shlex.join(shown), file=sys.stderr, flush=True)
    return subprocess.call(words, cwd=ROOT, env={**os.environ, **settings})


def pip_install(what: "Sequence[str]", *options: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-compile", *options, *what]
    if run(command, PIP_DISABLE_PIP_VERSION_CHECK="1") != 0:
        raise Problem(f"pip could not install {', '.join(what)} into {sys.prefix}; its message is above.")


def install_rest(lacking: "Sequence[str]", alone: "Sequence[str]", building: bool, ended: threading.Event) -> None:
    """What the build does not need, and then bytecode of all that is installed; nothing more once `ended` is set.

    pip would compile on one core, and also tests and what hardly anybody imports: half a minute for torch.
    """
    options = ["--quiet"] if building else []  # beside the compiler's lines
    try:
        for what, more in ((lacking, []), (alone, ["--no-deps"])):
            if what and not ended.is_set():
                pip_install(what, *options, *more)
    except Problem as problem:
        if building:  # said now, and once more at the end
            print(f"error: {problem} What is being compiled is kept for the next try.", file=sys.stderr, flush=True)
        raise
    if not ended.is_set():
        packages = sysconfig.get_path("purelib")
        unused = re.escape(packages) + r"[/\\](.*[/\\])?(tests?|testing|pip|Cython|fontTools)[/\\]"
        run([sys.executable, "-m", "compileall", "-qq", "-j", "0", "-x", unused, packages])


def build() -> None:
    wanted = fingerprint(ROOT, installed("torch"), os.environ)
    if must_build(ROOT, BUILD_STAMP, wanted, os.environ):
        check_compiler(os.environ, sysconfig.get_path("include"))
        # --force, because setuptools does not know the headers; ninja still compiles only what changed
        if run([sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]) != 0:
            raise Problem("The build failed; the compiler's message is above.")
        BUILD_STAMP.parent.mkdir(exist_ok=True)
        BUILD_STAMP.write_text(wanted)


def install() -> None:
    """The checkout as an editable package of .venv, so that a script in any folder may import it."""
    if installed("senet-fast") is None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
        if run(command, PIP_DISABLE_PIP_VERSION_CHECK="1", SENET_FAST_BUILT="1") != 0:
            raise Problem(f"pip could not install the checkout into {sys.prefix}; its message is above.")


def tool_path() -> str:
    """PATH with the folders first where pip puts this interpreter's tools; some tools call others by name."""
    folders = [Path(sys.executable).parent, sysconfig.get_path("scripts"), sysconfig.get_path("scripts", "posix_user")]
    return os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])


def toolkit_path() -> str:
    """PATH, then where CUDA's toolkit is otherwise."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [f"{home}/bin" for home in homes if home] + [os.path.dirname(os.environ.get("SENET_FAST_NVCC", ""))]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *filter(None, folders)])


def workers(cores: "int | None") -> int:
    """Processes of pytest-xdist: more than two would wait for the longest tests; 0 is this process."""
    return 2 if (cores or 1) >= 2 else 0


def expand(command: "Sequence[str]", arguments: "Sequence[str]") -> "list[str]":
    """The command with this interpreter, the C++ files and the path of its tool filled in."""
    words = []
    for word in command:
        if word == "{csrc}":
            paths = (path for folder in CLANG_FORMAT_FOLDERS for path in sorted((ROOT / folder).rglob("*")))
            words += [str(path.relative_to(ROOT)) for path in paths if path.suffix in CLANG_FORMAT_SUFFIXES]
        else:
            words.append(word.replace("{python}", sys.executable).replace("{workers}", str(workers(os.cpu_count()))))
    words[0] = shutil.which(words[0], path=tool_path()) or words[0]
    return [*words, *arguments]


def prepare(verb: Verb, arguments: "Sequence[str]") -> int:
    check_python(tuple(sys.version_info[:2]))
    if verb.build and not BUILD_STAMP.exists():  # before anything is downloaded
        check_compiler(os.environ, sysconfig.get_path("include"))
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    torch_version = installed("torch") if importlib.util.find_spec("torch") else None
    chosen = choose_environment(inside, torch_version)
    if chosen == "venv" and not inside:
        have = f"has torch {torch_version}, older than needed" if torch_version else "has no torch"
        print(f"{sys.executable} {have}: using {VENV.name}", file=sys.stderr, flush=True)
        if not VENV_PYTHON.exists():
            check_venv()
            if run([sys.executable, "-m", "venv", "--clear", VENV]) != 0:
                raise Problem(f"Making {VENV} failed; the message is above.")
        return run([VENV_PYTHON, Path(__file__).resolve(), *sys.argv[1:]])
    chosen_extras = extras(verb.extra, lambda name: shutil.which(name, path=toolkit_path()))
    wanted = [line for extra in chosen_extras for line in requirements(ROOT / "pyproject.toml", extra)]
    lacking = missing([TORCH, *wanted] if chosen == "venv" else wanted)
    alone = missing(requirements(ROOT / "pyproject.toml", verb.alone)) if verb.alone else []
    building = [TORCH]  # and numpy, which torch imports where it is there
    for extra in ("ids", *(extra for extra in chosen_extras if extra in PROGRAMS)):
        building += requirements(ROOT / "pyproject.toml", extra)
    first = [line for line in lacking if line in building]
    if first:
        pip_install(first)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:  # pip keeps one core busy, the compiler all
        rest = [line for line in lacking if line not in first]
        beside = pool.submit(install_rest, rest, alone, verb.build, ended) if lacking or alone else None
        try:
            if verb.build:
                build()
            if beside:
                beside.result()
        finally:
            ended.set()
    if verb.build and chosen == "venv":
        install()
    codes = []
    for place, command in enumerate(verb.commands, 1):
        words = expand(command, arguments if place == len(verb.commands) else [])
        codes.append(run(words, PATH=tool_path()))
    return max(codes, default=0)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        print(f"usage: bootstrap.py {{{','.join(VERBS)}}} [arguments]", file=sys.stderr)
        return 2
    try:
        return prepare(VERBS[sys.argv[1]], sys.argv[2:])
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""The decisions of tools/bootstrap.py: which interpreter, what to install, when to build; and its messages."""

import ast
import importlib.util
import re
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load()


@pytest.mark.parametrize(
    ("inside_venv", "torch_version", "chosen"),
    [
        (False, None, "venv"),
        (False, "2.10.1", "venv"),
        (False, "2.11.0", "active"),
        (False, "2.13.0+cpu", "active"),
        (False, "3.0.0a0+git1234", "active"),
        (True, None, "venv"),
        (True, "2.13.0+cpu", "venv"),
    ],
)
def test_environment(inside_venv: bool, torch_version: str | None, chosen: str) -> None:
    assert bootstrap.choose_environment(inside_venv, torch_version) == chosen


def test_missing_names_what_to_install() -> None:
    have = {"setuptools": "65.5.0", "numpy": "2.4.6", "cython": "3.1", "torch": "2.12.1+cpu"}
    wanted = [bootstrap.TORCH, "setuptools>=77", "numpy>=1.26", "cython>=3.1", "ninja", "scikit-learn>=1.4"]
    assert bootstrap.missing(wanted, have.get) == [bootstrap.TORCH, "setuptools>=77", "ninja", "scikit-learn>=1.4"]


def test_requirements_of_every_verb() -> None:
    for name, verb in bootstrap.VERBS.items():
        extras = verb.extra.split()
        listed = [line for extra in extras for line in bootstrap.requirements(ROOT / "pyproject.toml", extra)]
        assert "cython>=3.1" in listed
        assert ("ruff" in listed) == (name in ("lint", "stubs", "format"))
        # Only forms that missing() reads; torch is for .venv alone.
        assert all(re.fullmatch(r"[\w-]+(>=[\d.]+|==[\d.]+\.\*)?", line) for line in listed)
        assert not any(re.match(r"torch(vision)?([>=]|$)", line) for line in listed)
        if verb.alone:
            alone = bootstrap.requirements(ROOT / "pyproject.toml", verb.alone)
            assert all(re.fullmatch(r"[\w-]+(>=[\d.]+)?", line) for line in alone)
            assert "torch" not in {re.split(">=", line)[0] for line in alone}


def test_pins_of_a_release() -> None:
    for version, fits in (("13.0.88", True), ("13.5.37", False), ("12.9", False), (None, False)):
        assert bootstrap.satisfied("nvidia-nvvm==13.0.*", version) == fits


def test_a_toolkit_of_the_machine_is_used() -> None:
    assert bootstrap.extras("ids nvcc gates", {"nvcc": "/usr/bin/nvcc"}.get) == ["ids", "gates"]
    assert bootstrap.extras("nvcc gates", {"nvcc": "x", "cuobjdump": "x", "nvdisasm": "x"}.get) == []
    assert bootstrap.extras("lint", {}.get) == ["lint"]
    assert bootstrap.extras("gates", {"cuobjdump": "x"}.get) == ["gates"]


def test_an_old_interpreter_gets_a_message() -> None:
    ast.parse((ROOT / "tools" / "bootstrap.py").read_text(), feature_version=(3, 6))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("setup.py", "csrc/se/params.h", "senet_fast/ids/_snowflake.pyx", "senet_fast/se/module.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_fingerprint_follows_what_is_compiled(tree: Path) -> None:
    first = bootstrap.fingerprint(tree, "2.13.0", {})
    assert bootstrap.fingerprint(tree, "2.13.0", {"SENET_FAST_ISA": "avx2", "HOME": "/"}) == first
    (tree / "senet_fast/se/module.py").write_text("other")
    assert bootstrap.fingerprint(tree, "2.13.0", {}) == first
    seen = {first, bootstrap.fingerprint(tree, "2.14.0", {})}
    seen |= {bootstrap.fingerprint(tree, "2.13.0", {name: "1"}) for name in bootstrap.BUILD_SETTINGS}
    for name in ("setup.py", "csrc/se/params.h", "senet_fast/ids/_snowflake.pyx"):
        (tree / name).write_text("other")
        seen.add(bootstrap.fingerprint(tree, "2.13.0", {}))
    (tree / "csrc/new.cpp").write_text("")
    seen.add(bootstrap.fingerprint(tree, "2.13.0", {}))
    assert len(seen) == 2 + len(bootstrap.BUILD_SETTINGS) + 4


def test_builds_once(tree: Path) -> None:
    stamp = tree / "stamp"
    assert bootstrap.must_build(tree, stamp, "a", {})
    stamp.write_text("a")
    assert bootstrap.must_build(tree, stamp, "a", {})
    for module in bootstrap.modules(tree, {}):
        module.touch()
    assert not bootstrap.must_build(tree, stamp, "a", {})
    assert bootstrap.must_build(tree, stamp, "b", {})
    bootstrap.modules(tree, {})[1].unlink()
    assert bootstrap.must_build(tree, stamp, "a", {})
    assert not bootstrap.must_build(tree, stamp, "a", {"SENET_FAST_SE": "0"})


def test_problems_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(bootstrap.Problem, match=r"Python 3\.9 is too old: install 3\.11"):
        bootstrap.check_python((3, 9))
    bootstrap.check_python((3, 11))
    with pytest.raises(bootstrap.Problem, match="`no-such-compiler` is not on PATH; install"):
        bootstrap.check_compiler({"CXX": "no-such-compiler -m64"}, str(tmp_path))
    with pytest.raises(bootstrap.Problem, match=r"No Python\.h .* install"):
        bootstrap.check_compiler({"CXX": sys.executable}, str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(bootstrap.Problem, match="cannot make virtual environments: install"):
        bootstrap.check_venv()


def test_commands_name_this_interpreter_and_the_sources() -> None:
    assert bootstrap.expand(("{python}", "-m", "pytest"), ["-k", "x"]) == [sys.executable, "-m", "pytest", "-k", "x"]
    assert [bootstrap.workers(cores) for cores in (None, 1, 2, 64)] == [0, 0, 2, 2]
    assert bootstrap.expand(("{python}", "{workers}"), [])[1] in ("0", "2")
    formatted = bootstrap.expand(("clang-format", "{csrc}"), [])[1:]
    assert formatted
    assert all((ROOT / name).is_file() for name in formatted)


def test_what_is_installed_beside_the_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failing pip is said while the compiler still works, and once the build has failed nothing more is started."""
    commands: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "run", lambda command, **settings: commands.append(command) or 1)
    ended = threading.Event()
    with pytest.raises(bootstrap.Problem, match="could not install a, b"):
        bootstrap.install_rest(["a", "b"], ["c"], True, ended)
    assert "could not install a, b" in capsys.readouterr().err
    assert len(commands) == 1
    ended.set()
    bootstrap.install_rest(["a", "b"], ["c"], True, ended)
    assert len(commands) == 1

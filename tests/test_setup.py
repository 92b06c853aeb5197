"""The decisions of setup.py, without compiling: what it would build, with which flags, and its messages."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from setuptools import Distribution, Extension

Load = Callable[..., tuple[ModuleType, dict[str, Any]]]


@pytest.fixture
def load(root: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Runs setup.py with these settings of the environment; gives the module and what it hands to setuptools."""
    for name in ("SENET_FAST_SE", "SENET_FAST_CUDA", "SENET_FAST_NVCC", "SENET_FAST_SANITIZE", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MAX_JOBS", "1")

    def run(*arguments: str, **settings: str) -> tuple[ModuleType, dict[str, Any]]:
        asked: list[dict[str, Any]] = []
        monkeypatch.setattr(sys, "argv", ["setup.py", *(arguments or ["build_ext"])])
        monkeypatch.setattr("setuptools.setup", lambda **keywords: asked.append(keywords))
        monkeypatch.setattr("Cython.Build.cythonize", lambda extensions: extensions)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("setup_script", root / "setup.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (keywords,) = asked
        return module, keywords

    return run


def named(keywords: dict[str, Any]) -> dict[str, Extension]:
    return {extension.name: extension for extension in keywords["ext_modules"]}


def test_both_halves(load: Load, root: Path) -> None:
    extensions = named(load()[1])
    assert set(extensions) == {"senet_fast.se._C", "senet_fast.ids._snowflake"}
    assert all((root / source).is_file() for extension in extensions.values() for source in extension.sources)
    assert "csrc/se/cpu/avx2.cpp" in extensions["senet_fast.se._C"].sources


def test_without_torch(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert load("sdist")[1] == {}
    with pytest.raises(SystemExit, match=r"Install torch first(.|\n)*--no-build-isolation(.|\n)*SENET_FAST_SE=0"):
        load()
    assert set(named(load(SENET_FAST_SE="0")[1])) == {"senet_fast.ids._snowflake"}


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("SENET_FAST_SE", "yes", "SENET_FAST_SE='yes' is not understood; expected one of 0, 1"),
        (
            "SENET_FAST_SANITIZE",
            "address,leak",
            "SENET_FAST_SANITIZE names .'leak'.; expected address, undefined or thread",
        ),
    ],
)
def test_bad_settings(load: Load, setting: str, value: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        load(**{setting: value})


@pytest.mark.parametrize(
    ("info", "expected"), [("OpenMP not found", False), ("OpenMP 201511 (a.k.a. OpenMP 4.5)", True)]
)
def test_openmp_as_in_torch(load: Load, monkeypatch: pytest.MonkeyPatch, info: str, expected: bool) -> None:
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: info)
    op = named(load()[1])["senet_fast.se._C"]
    assert ("-fopenmp" in op.extra_compile_args) == ("-fopenmp" in op.extra_link_args) == expected


def test_sanitizers_reach_compiler_and_linker(load: Load) -> None:
    flag = "-fsanitize=address,undefined"
    for extension in named(load()[1]).values():
        assert not any("sanitize" in argument for argument in extension.extra_compile_args)
    for extension in named(load(SENET_FAST_SANITIZE="address,undefined")[1]).values():
        assert flag in extension.extra_compile_args
        assert flag in extension.extra_link_args


@pytest.fixture
def nvcc(tmp_path: Path) -> str:
    path = tmp_path / "nvcc"
    path.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.48'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "torch_cuda", "found", "chosen"),
    [
        ("auto", None, True, False),
        ("auto", "13.0", True, True),
        ("auto", "13.0", False, False),
        ("0", "13.0", True, False),
        ("1", None, True, True),
        ("1", "13.0", True, True),
    ],
)
def test_cuda(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    nvcc: str,
    mode: str,
    torch_cuda: str | None,
    found: bool,
    chosen: bool,
) -> None:
    module, _ = load(SENET_FAST_CUDA=mode, SENET_FAST_NVCC=nvcc)
    if not found:
        monkeypatch.setattr(module.Nvcc, "find", lambda: None)
    compiler = module.choose_nvcc(torch_cuda)
    assert (compiler is not None) == chosen
    if compiler:
        assert (compiler.path, compiler.release) == (nvcc, "13.0")


def test_cuda_is_auto_by_default(load: Load, nvcc: str) -> None:
    module, _ = load(SENET_FAST_NVCC=nvcc)
    assert module.choose_nvcc(None) is None
    assert module.choose_nvcc("13.0") is not None


def test_cuda_names_what_is_wrong(
    load: Load, monkeypatch: pytest.MonkeyPatch, nvcc: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _ = load(SENET_FAST_CUDA="1", SENET_FAST_NVCC=nvcc)
    module.choose_nvcc("13.2")
    assert capsys.readouterr().err == ""
    module.choose_nvcc("12.8")
    assert "nvcc 13.0 and torch's CUDA 12.8 differ" in capsys.readouterr().err
    monkeypatch.setattr(module.Nvcc, "find", lambda: None)
    with pytest.raises(SystemExit, match="SENET_FAST_CUDA=1, but no nvcc was found: set SENET_FAST_NVCC or CUDA_HOME"):
        module.choose_nvcc(None)
    monkeypatch.setenv("SENET_FAST_CUDA", "on")
    with pytest.raises(SystemExit, match="SENET_FAST_CUDA='on' is not understood; expected one of 0, 1, auto"):
        module.choose_nvcc(None)


@pytest.mark.parametrize("with_cuda", [False, True])
def test_cuda_files_join_the_op(load: Load, monkeypatch: pytest.MonkeyPatch, with_cuda: bool) -> None:
    class Compiler:
        release = "13.0"

        def compile(self, source: str, folder: Path) -> str:
            return f"{Path(source).stem}.o"

        def library_dirs(self) -> list[str]:
            return ["cuda/lib64"]

    module, keywords = load()
    monkeypatch.setattr(module, "choose_nvcc", lambda torch_cuda: Compiler() if with_cuda else None)
    command = keywords["cmdclass"]["build_ext"]
    monkeypatch.setattr(command.__base__, "build_extensions", lambda self: None)
    build = command(Distribution())
    build.build_temp = "build"
    build.build_extensions()
    op = named(keywords)["senet_fast.se._C"]
    assert op.extra_objects == (["backward.o", "device.o", "forward.o"] if with_cuda else [])
    assert (("SENET_FAST_CUDA", '"13.0"') in op.define_macros) == with_cuda
    assert ("cudart_static" in op.libraries) == with_cuda

"""The decisions of setup.py, without compiling: what it would build, with which flags, and its messages."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from setuptools import Distribution, Extension

LIBRARY = "senet_fast.se.libsenet_fast"
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
    assert list(extensions) == [LIBRARY, "senet_fast.se._C", "senet_fast.ids._snowflake"]  # the second needs the first
    compiled = [source for extension in extensions.values() for source in extension.sources if "csrc" in source]
    assert sorted(compiled) == sorted(str(path.relative_to(root)) for path in (root / "csrc").rglob("*.cpp"))
    assert extensions["senet_fast.se._C"].sources == ["csrc/bindings/module.cpp"]


def test_without_torch(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert load("sdist")[1] == {}
    with pytest.raises(SystemExit, match=r"Install torch first(.|\n)*--no-build-isolation(.|\n)*SENET_FAST_SE=0"):
        load()
    assert set(named(load(SENET_FAST_SE="0")[1])) == {"senet_fast.ids._snowflake"}
    assert load(SENET_FAST_BUILT="1")[1] == {}


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
    op = named(load()[1])[LIBRARY]
    assert (("SENET_FAST_OPENMP", None) in op.define_macros) == ("-lgomp" in op.extra_link_args) == expected
    assert not any("openmp" in argument for argument in [*op.extra_compile_args, *op.extra_link_args])


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


def test_where_nvcc_is_found(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvcc: str) -> None:
    """SENET_FAST_NVCC, CUDA_HOME, PATH, then pip's packages, the newest of them."""
    module, _ = load(PATH=str(tmp_path / "nowhere"))
    exists = module.os.path.exists
    monkeypatch.setattr(module.os.path, "exists", lambda path: not str(path).startswith("/usr/local") and exists(path))
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    assert module.Nvcc.find() is None

    def place(folder: str) -> str:
        path = tmp_path / folder / "nvcc"
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(nvcc, path))

    for name, folder in (("", "nvidia/cu12/bin"), ("", "nvidia/cu13/bin"), ("PATH", "bin"), ("CUDA_HOME", "home/bin")):
        expected = place(folder)
        if name:
            monkeypatch.setenv(name, str(Path(expected).parent if name == "PATH" else Path(expected).parents[1]))
        assert module.Nvcc.find().path == expected
    monkeypatch.setenv("SENET_FAST_NVCC", nvcc)
    assert module.Nvcc.find().path == nvcc
    monkeypatch.setenv("SENET_FAST_NVCC", f"{nvcc}-of-tomorrow")
    with pytest.raises(
        SystemExit, match=r"SENET_FAST_NVCC='.*-of-tomorrow' does not exist; expected the path of an nvcc"
    ):
        module.Nvcc.find()


@pytest.fixture
def toolkit(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An Nvcc whose program is a script: it knows sm_80 and sm_90, and writes its arguments where the object goes."""
    program = tmp_path / "bin/nvcc"
    program.parent.mkdir()
    program.write_text(
        """#!/bin/sh
        case "$*" in
          *--version*) echo "Cuda compilation tools, release 13.0, V13.0.48" ;;
          *--list-gpu-code*) echo sm_80; echo sm_90 ;;
          *--dryrun*) echo "#$ TOP=$(dirname $0)/.." >&2 ;;
          *broken*) echo "broken.cu(1): error: expected a ;" >&2; exit 2 ;;
          *) echo "ptxas info    : Used 40 registers" >&2; echo "warning: something" >&2
             while [ "$1" != -o ]; do shift; done; echo made >> "$2" ;;
        esac
        """
    )
    program.chmod(0o755)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    module, _ = load()
    return module.Nvcc(str(program))


def test_architectures(toolkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    assert toolkit.arch_flags() == [*both, "-gencode=arch=compute_90,code=compute_90"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert toolkit.arch_flags() == [both[0], "-gencode=arch=compute_80,code=compute_80"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    assert toolkit.arch_flags() == [both[1], "-gencode=arch=compute_90,code=compute_90"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;7.0")
    with pytest.raises(SystemExit, match=r"release 13\.0\) cannot compile for \['70'\]; it knows \['80', '90'\]"):
        toolkit.arch_flags()


def test_the_runtime_library(toolkit: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no libcudart_static\.a below .*: install the CUDA runtime"):
        toolkit.library_dirs()
    (tmp_path / "lib").mkdir()  # as pip's packages have it
    (tmp_path / "lib/libcudart_static.a").touch()
    assert [Path(folder).resolve() for folder in toolkit.library_dirs()] == [tmp_path / "lib"]


def test_cuda_files_are_compiled_once(toolkit: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "objects"
    first = toolkit.compile(["csrc/se/cuda/one.cu", "csrc/se/cuda/two.cu"], folder)
    assert first == [str(folder / "one.cuda.o"), str(folder / "two.cuda.o")]
    said = capfd.readouterr()
    assert "Used 40 registers" not in said.err
    assert said.err.count("warning: something") == 2
    assert "Used 40 registers" in (folder / "one.cuda.log").read_text()
    assert toolkit.compile(["csrc/se/cuda/one.cu", "csrc/se/cuda/two.cu"], folder) == first
    assert (folder / "one.cuda.o").read_text() == "made\n"
    toolkit.release = "13.1"
    toolkit.compile(["csrc/se/cuda/one.cu", "csrc/se/cuda/two.cu"], folder)
    assert (folder / "one.cuda.o").read_text() == "made\nmade\n"
    with pytest.raises(SystemExit, match=r"could not compile broken\.cu; its message is above"):
        toolkit.compile(["broken.cu"], folder)
    assert "expected a ;" in capfd.readouterr().err
    assert not (folder / "broken.cuda.o").exists()


def test_cpp_files_are_compiled_in_one_run(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What takes longest first, with a space and a dollar in a path; what failed is an error; only links remain."""
    module, _ = load()
    folder = tmp_path / "a $folder"
    (folder / "csrc/bindings").mkdir(parents=True)
    compiler = folder / "compiler"
    compiler.write_text(
        """#!/bin/sh
        case "$*" in *broken.cpp*) echo "broken.cpp:1: error" >&2; exit 1 ;; esac
        for word; do case "$word" in *.d|*.o) : > "$word" ;; esac; done
        echo "$*" >> "$(dirname "$0")/log"
        """
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(module, "ROOT", folder)
    sources = ["quick.cpp", "avx2.cpp", "csrc/bindings/a.cpp", "csrc/bindings/b.cpp", "baseline.cpp"]
    for name in (*sources, "broken.cpp"):
        (folder / name).touch()
    command = SimpleNamespace(compiler=SimpleNamespace(compiler_so_cxx=[str(compiler), "-fPIC"]), include_dirs=["in c"])
    monkeypatch.setenv("MAX_JOBS", "1")

    def compiled(*names: str) -> Extension:
        made = Extension("it", [*names], extra_compile_args=["-O3", "-DA=$b c"], define_macros=[("C", '"1"')])
        module.compile_all(command, [made], folder)
        return made

    made = compiled(*sources)
    assert made.sources == []
    assert [Path(path).name for path in made.extra_objects] == [
        *("a $folder-bindings.o", "a $folder-quick.o", "a $folder-avx2.o", "a $folder-baseline.o")
    ]
    assert all(Path(path).exists() for path in made.extra_objects)
    lines = (folder / "log").read_text().splitlines()
    assert [Path(line.split(" -c ")[1].split(".cpp")[0]).name for line in lines] == [
        *("baseline", "avx2", "bindings", "quick")
    ]
    assert all(line.startswith("-fPIC -MMD -MF ") and ' -DC="1" ' in line for line in lines)
    assert all("-DA=$b c" in line and f"-I{Path.cwd() / 'in c'}" in line for line in lines)
    unit = (folder / "bindings.cpp").read_text()
    assert unit == "".join(f'#include "{folder}/csrc/bindings/{name}.cpp"\n' for name in "ab")
    compiled(*sources)
    assert len((folder / "log").read_text().splitlines()) == len(lines)
    with pytest.raises(SystemExit, match="C\\+\\+ compiler failed; its message is above"):
        compiled("broken.cpp")


@pytest.mark.parametrize("with_cuda", [False, True])
def test_cuda_files_join_the_op(
    load: Load, monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path, with_cuda: bool
) -> None:
    class Compiler:
        release = "13.0"

        def compile(self, sources: list[str], folder: Path) -> list[str]:
            return [f"{Path(source).stem}.o" for source in sources]

        def library_dirs(self) -> list[str]:
            return ["cuda/lib64"]

    module, keywords = load()
    monkeypatch.setattr(module, "choose_nvcc", lambda torch_cuda: Compiler() if with_cuda else None)
    command = keywords["cmdclass"]["build_ext"]
    monkeypatch.setattr(command.__base__, "build_extensions", lambda self: None)
    monkeypatch.setattr(module.subprocess, "call", lambda command, cwd: 0)
    build = command(Distribution())
    build.extensions = list(named(keywords).values())
    build.compiler = SimpleNamespace(compiler_so_cxx=["c++", "-fPIC"])
    build.include_dirs = []
    build.build_temp = str(tmp_path)
    build.build_lib = str(tmp_path / "lib")
    build.build_extensions()
    op, told = named(keywords)[LIBRARY], named(keywords)["senet_fast.se._C"]
    linked = [f"{tmp_path}/senet_fast.se._C/bindings-module.o", f"{tmp_path}/lib/senet_fast/se/libsenet_fast.so"]
    assert told.extra_objects == told.depends == linked
    files = sorted(path.stem for path in (root / "csrc/se/cuda").glob("*.cu"))
    assert {"backward", "forward"} <= set(files)
    ours = [path for path in op.extra_objects if not path.startswith(str(tmp_path))]
    assert ours == ([f"{name}.o" for name in files] if with_cuda else [])
    settings = '#define SENET_FAST_CUDA "13.0"\n' if with_cuda else ""
    assert (tmp_path / "senet_fast_build.h").read_text() == settings
    assert str(tmp_path) in op.include_dirs
    assert str(tmp_path) in told.include_dirs
    monkeypatch.setattr(command.__base__, "copy_extensions_to_source", lambda self: None)
    monkeypatch.chdir(tmp_path)
    build.inplace = True
    (tmp_path / "senet_fast/se").mkdir(parents=True)
    build.copy_extensions_to_source()
    for told_in in ("lib/senet_fast/se", "senet_fast/se"):
        assert (tmp_path / told_in / "built_for_torch.txt").read_text() == f"{torch.__version__}\n"
    assert ("cudart_static" in op.libraries) == with_cuda


def test_what_is_installed_carries_the_op_sources(load: Load, tmp_path: Path) -> None:
    """And they build the op alone; what is only linked to the checkout (editable) carries nothing."""
    module, keywords = load()
    command = keywords["cmdclass"]["build_py"]
    assert load(SENET_FAST_SE="0")[1]["cmdclass"]["build_py"].__name__ == command.__name__
    for editable in (True, False):
        build = command(Distribution({"packages": []}))
        build.build_lib, build.editable_mode = str(tmp_path / str(editable)), editable
        build.finalize_options()
        build.run()
    assert not (tmp_path / "True/senet_fast").exists()
    carried = tmp_path / "False/senet_fast/_sources"
    assert {path.name for path in carried.iterdir()} == {"csrc", "setup.py"}
    assert (carried / "csrc/se/cpu/kernels.inl").exists()
    module.ROOT = carried
    assert module.ids_extension() == []

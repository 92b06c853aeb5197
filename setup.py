"""Build both halves: the torch op (C++, CUDA where asked) and Cython's `senet_fast.ids._snowflake`.

The op is a shared object without Python, `senet_fast/se/libsenet_fast.so`, which C++ programs can load too. The Python
module beside it, `senet_fast.se._C`, is linked to it and only tells about it.

Switches, all of them environment variables:
  SENET_FAST_SE=0          build the ID generator only; torch is not needed
  SENET_FAST_BUILT=1       install what the tree has compiled already (tools/bootstrap.py)
  SENET_FAST_CUDA=auto|0|1 auto: if nvcc is found and torch is a CUDA build; 1: always, also beside a CPU torch
  SENET_FAST_NVCC=path     the nvcc to use (else CUDA_HOME, PATH, /usr/local/cuda, pip's packages: the extra "nvcc")
  TORCH_CUDA_ARCH_LIST     GPU architectures (else the visible GPUs, else CUDA_ARCHS below)
  SENET_FAST_SANITIZE=list address, undefined, thread (comma separated)
  MAX_JOBS                 parallel compilations (default: one per core, 8 at most)
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARY = "libsenet_fast"  # the op library, beside the Python module
CUDA_ARCHS = ["75", "80", "86", "89", "90", "100", "120"]
# Longest first: the build ends with the file that ends last. "bindings" is all of csrc/bindings but the module.
SLOWEST = ("baseline", "avx2", "bindings", "avx512")
PTXAS_INFO = re.compile(r"ptxas info|\s+\d+ bytes stack frame|\s*$")  # what -Xptxas=-v says of a kernel
NO_BUILD = {"egg_info", "dist_info", "sdist", "clean", "--version", "--help"}

os.environ.setdefault("MAX_JOBS", str(min(8, os.cpu_count() or 1)))


def switch(name: str, allowed: set[str], default: str) -> str:
    value = os.environ.get(name, default).lower()
    if value not in allowed:
        raise SystemExit(f"{name}={value!r} is not understood; expected one of {', '.join(sorted(allowed))}")
    return value


def sanitizer_flags() -> list[str]:
    names = [name for name in os.environ.get("SENET_FAST_SANITIZE", "").split(",") if name]
    if unknown := set(names) - {"address", "undefined", "thread"}:
        raise SystemExit(f"SENET_FAST_SANITIZE names {sorted(unknown)}; expected address, undefined or thread")
    if not names:
        return []
    return [f"-fsanitize={','.join(names)}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", "-g", "-O1"]


def sources(folder: str, pattern: str = "*.cpp") -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).glob(pattern))]


def write_if_changed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


class Nvcc:
    """The CUDA compiler: called by us, so that torch-free .cu files need no CUDA build of torch."""

    def __init__(self, path: str) -> None:
        self.path = path
        text = subprocess.check_output([path, "--version"], text=True)
        self.release = text.split("release ")[1].split(",")[0]

    @staticmethod
    def find() -> "Nvcc | None":
        named, home = os.environ.get("SENET_FAST_NVCC"), os.environ.get("CUDA_HOME")
        if named and not os.path.exists(named):
            raise SystemExit(f"SENET_FAST_NVCC={named!r} does not exist; expected the path of an nvcc")
        of_pip = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"))
        found = [named, home and f"{home}/bin/nvcc", shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc", *of_pip[-1:]]
        return next((Nvcc(str(path)) for path in found if path and os.path.exists(path)), None)

    def library_dirs(self) -> list[str]:
        # nvcc may be a wrapper script, so the toolkit's root is asked of nvcc itself
        dry = subprocess.run(
            [self.path, "--dryrun", "-x", "cu", os.devnull, "-o", "x"], capture_output=True, text=True
        ).stderr
        top = next(Path(line.split("TOP=")[1].strip()) for line in dry.splitlines() if "TOP=" in line)
        folders = [top / "lib64", top / "lib", top / f"targets/{platform.machine()}-linux/lib"]
        found = [str(folder) for folder in folders if (folder / "libcudart_static.a").exists()]
        if not found:
            raise SystemExit(f"no libcudart_static.a below {top}: install the CUDA runtime's development files")
        return found

    def arch_flags(self) -> list[str]:
        import torch

        known = {
            code.split("_")[1] for code in subprocess.check_output([self.path, "--list-gpu-code"], text=True).split()
        }
        if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
            archs = [arch.replace(".", "").removesuffix("+PTX") for arch in listed.replace(";", " ").split()]
        elif torch.cuda.is_available():
            archs = sorted(
                {"{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
            )
        else:
            archs = [arch for arch in CUDA_ARCHS if arch in known]
        if unknown := [arch for arch in archs if arch not in known]:
            raise SystemExit(
                f"{self.path} (release {self.release}) cannot compile for {unknown}; it knows {sorted(known)}"
            )
        newest = max(archs, key=lambda arch: int(arch.rstrip("af")))
        flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]

    def compile(self, sources: Sequence[str], folder: Path) -> list[str]:
        """The objects, each beside what nvcc said (.log), which tests/csrc/cuda/gates.py reads.

        What is as new as all of csrc/se and was made by the same command stays.
        """
        folder.mkdir(parents=True, exist_ok=True)
        jobs = int(os.environ["MAX_JOBS"])
        flags = ["-O3", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", f"-I{ROOT / 'csrc'}"]
        flags += ["--threads", str(max(1, jobs // len(sources))), *self.arch_flags()]
        newest = max(path.stat().st_mtime for path in (ROOT / "csrc/se").rglob("*"))

        def make(source: str) -> str:
            out = folder / f"{Path(source).stem}.cuda.o"
            log = out.with_suffix(".log")
            command = [self.path, *flags, "-c", source, "-o", str(out)]
            added = os.environ.get("NVCC_APPEND_FLAGS", "")  # nvcc reads it itself
            head = f"{self.release} {' '.join(command)} {added}\n"
            if out.exists() and log.exists() and out.stat().st_mtime >= newest and log.read_text().startswith(head):
                return str(out)
            print(head, end="", flush=True)
            done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
            log.write_text(head + done.stderr)
            sys.stderr.writelines(line for line in done.stderr.splitlines(True) if not PTXAS_INFO.match(line))
            if done.returncode:
                out.unlink(missing_ok=True)
                raise SystemExit(f"{self.path} could not compile {source}; its message is above")
            return str(out)

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(make, sources))


def compile_all(command: build_ext, extensions: Sequence[Extension], folder: Path) -> None:
    """Compile the C++ files of all extensions in one run of ninja; what is left of them is to link the objects."""
    try:
        from ninja import BIN_DIR

        program: str | None = os.path.join(BIN_DIR, "ninja")
    except ImportError:
        program = shutil.which("ninja")
    if program is None:
        raise SystemExit("no ninja was found, which runs the compiler: pip install ninja")

    def escape(path: object) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path))

    files = []  # source, object, flags
    for made in extensions:
        macros = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in made.define_macros]
        folders = [f"-I{os.path.abspath(path)}" for path in [*made.include_dirs, *command.include_dirs]]
        own = [ROOT / path for path in made.sources]
        if bindings := [path for path in own if path.parent == ROOT / "csrc/bindings" and path.stem != "module"]:
            unit = folder / "bindings.cpp"  # each alone would spend most of its time on torch's headers
            write_if_changed(unit, "".join(f'#include "{path}"\n' for path in bindings))
            own = [unit, *(path for path in own if path not in bindings)]
        objects = [folder / made.name / f"{path.parent.name}-{path.stem}.o" for path in own]
        flags = [*macros, *folders, *made.extra_compile_args]
        files += [(path, out, flags) for path, out in zip(own, objects, strict=True)]
        made.extra_objects = [*map(str, objects), *made.extra_objects]
        made.depends = made.extra_objects  # of setuptools' question whether to link
        made.sources = []
    files.sort(key=lambda file: SLOWEST.index(file[0].stem) if file[0].stem in SLOWEST else len(SLOWEST))
    # Before setuptools 72 there was one command for C and C++; `python -m senet_fast build` meets what is installed.
    made_by = command.compiler
    words = getattr(made_by, "compiler_so_cxx", None) or [*made_by.compiler_cxx[:1], *made_by.compiler_so[1:]]
    compiler = shlex.join(words).replace("$", "$$")
    lines = [
        "rule compile",
        f"  command = {compiler} -MMD -MF $out.d $flags -c $in -o $out",
        *("  depfile = $out.d", "  deps = gcc", "  description = $in"),
    ]
    for path, out, flags in files:
        lines += [f"build {escape(out)}: compile {escape(path)}", f"  flags = {shlex.join(flags).replace('$', '$$')}"]
    manifest = folder / "build.ninja"
    write_if_changed(manifest, "\n".join(lines) + "\n")
    if subprocess.call([program, "-j", os.environ["MAX_JOBS"]], cwd=folder) != 0:
        raise SystemExit("the C++ compiler failed; its message is above")


def choose_nvcc(torch_cuda: str | None) -> Nvcc | None:
    mode = switch("SENET_FAST_CUDA", {"auto", "0", "1"}, "auto")
    if mode == "0" or (mode == "auto" and torch_cuda is None):
        return None
    nvcc = Nvcc.find()
    if nvcc is None and mode == "1":
        raise SystemExit(
            "SENET_FAST_CUDA=1, but no nvcc was found: set SENET_FAST_NVCC or CUDA_HOME, or put nvcc on PATH"
        )
    if nvcc and torch_cuda and torch_cuda.split(".")[0] != nvcc.release.split(".")[0]:
        print(
            f"warning: nvcc {nvcc.release} and torch's CUDA {torch_cuda} differ; the driver must support both",
            file=sys.stderr,
        )
    return nvcc


CARRIED = ("setup.py", "csrc/system.h", "csrc/bindings", "csrc/se")  # what the op is compiled from


class BuildPy(build_py):
    """What is installed, unless from where it lies, has the op's sources, for `python -m senet_fast build`."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            to = Path(self.build_lib, "senet_fast/_sources")
            shutil.rmtree(to, ignore_errors=True)
            for name in CARRIED:
                at = ROOT / name
                files = [at] if at.is_file() else [path for path in at.rglob("*") if path.is_file()]
                for path in files:
                    (to / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to / path.relative_to(ROOT))


def ids_extension() -> list[Extension]:
    """Empty among the sources that an installed package carries: they are the op's."""
    source = "senet_fast/ids/_snowflake.pyx"
    if not (ROOT / source).exists():
        return []
    from Cython.Build import cythonize

    extension = Extension(
        "senet_fast.ids._snowflake",
        [source],
        include_dirs=[str(ROOT / "csrc")],
        depends=[*sources("csrc/ids", "*.*"), *sources("csrc", "*.h")],
        language="c++",
        extra_compile_args=["-O3", "-std=c++17", "-g0", "-pthread", *sanitizer_flags()],
        extra_link_args=["-pthread", *sanitizer_flags()],
    )
    return cythonize([extension])


def se_extensions(torch) -> tuple[list[Extension], type]:
    """The op library and the module that tells about it, and the command that builds them in this order."""
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    # libgomp, which csrc/bindings/team.h calls itself. Without -fopenmp at::parallel_for would be a serial loop.
    openmp = [] if "OpenMP not found" in torch.__config__.parallel_info() else ["-lgomp"]

    def extension(name: str, sources: list[str], libraries: list[str], *link_args: str) -> Extension:
        made = CppExtension(
            f"senet_fast.se.{name}",
            sources,
            include_dirs=[str(ROOT / "csrc")],
            depends=headers,
            # No contraction: every ISA then rounds alike. No trapping maths: comparisons vectorise; NaN and Inf stay.
            extra_compile_args=[
                *["-O3", "-std=c++20", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"],
                # clang says of each loop that SENET_NO_OVERLAP did not vectorise; some activations call functions.
                *["-Wno-pass-failed", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", *sanitizer_flags()],
            ],
            extra_link_args=[*openmp, *sanitizer_flags(), *link_args],
        )
        made.libraries = libraries  # in the place of torch's, among them torch_python
        made.define_macros.append(("SENET_FAST_TORCH", f'"{torch.__version__}"'))
        if openmp:
            made.define_macros.append(("SENET_FAST_OPENMP", None))
        return made

    folders = ("csrc/bindings", "csrc/se", "csrc/se/cpu", "csrc/se/cuda")
    headers = [path for folder in ("csrc", *folders) for path in sources(folder, "*.[hi]*")]
    files = [path for folder in folders for path in sources(folder)]
    module = "csrc/bindings/module.cpp"
    # The soname is what the module asks for; it finds it where it lies itself. -z defs: a symbol of Python is an error.
    library_args = (f"-Wl,-soname,{LIBRARY}.so", "-Wl,-z,defs")
    library = extension(LIBRARY, [path for path in files if path != module], ["torch_cpu", "c10"], *library_args)
    told = extension("_C", [module], [], "-Wl,-rpath,$ORIGIN")

    class Build(BuildExtension.with_options(use_ninja=False)):  # torch's use of it has one set of flags for all files
        def get_ext_filename(self, name: str) -> str:
            *folders, last = name.split(".")
            return os.path.join(*folders, f"{LIBRARY}.so") if last == LIBRARY else super().get_ext_filename(name)

        def build_extensions(self) -> None:
            folder = Path(self.build_temp).resolve()
            settings = ""
            if nvcc := choose_nvcc(torch.version.cuda):
                settings = f'#define SENET_FAST_CUDA "{nvcc.release}"\n'
                library.extra_objects += nvcc.compile(sources("csrc/se/cuda", "*.cu"), folder)
                library.library_dirs += nvcc.library_dirs()
                library.libraries += ["cudart_static", "rt", "dl", "pthread"]
            # A header, not a macro on the command line: with and without CUDA only what includes it is compiled again.
            write_if_changed(folder / "senet_fast_build.h", settings)
            for made in (library, told):
                made.include_dirs.append(str(folder))
            compile_all(self, self.extensions, folder)
            op = Path(self.get_ext_fullpath(library.name))
            told.extra_objects.append(str(op))
            super().build_extensions()
            self.tell_torch()

        def copy_extensions_to_source(self) -> None:  # with --inplace, when self.inplace is set again
            super().copy_extensions_to_source()
            self.tell_torch()

        def tell_torch(self) -> None:
            op = Path(self.get_ext_fullpath(library.name))
            write_if_changed(op.with_name("built_for_torch.txt"), f"{torch.__version__}\n")

    return [library, told], Build


def main() -> None:
    if not NO_BUILD.isdisjoint(sys.argv) or switch("SENET_FAST_BUILT", {"0", "1"}, "0") == "1":
        return setup()
    if switch("SENET_FAST_SE", {"0", "1"}, "1") == "0":
        return setup(ext_modules=ids_extension(), cmdclass={"build_py": BuildPy})
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit(
            "senet_fast compiles its op against your PyTorch, and torch is not importable in this build environment.\n"
            "Install torch first and build without isolation:\n"
            "    pip install torch==2.13.0 setuptools cython ninja\n"
            "    pip install --no-build-isolation .\n"
            "For the ID generator alone, without torch, set SENET_FAST_SE=0."
        ) from None
    extensions, build = se_extensions(torch)
    setup(ext_modules=[*extensions, *ids_extension()], cmdclass={"build_ext": build, "build_py": BuildPy})


main()

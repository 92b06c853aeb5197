"""Build both halves: the torch op `senet_fast.se._C` (C++, CUDA where asked) and Cython's `senet_fast.ids._snowflake`.

Switches, all of them environment variables:
  SENET_FAST_SE=0          build the ID generator only; torch is not needed
  SENET_FAST_CUDA=auto|0|1 auto: if nvcc is found and torch is a CUDA build; 1: always, also beside a CPU torch
  SENET_FAST_NVCC=path     the nvcc to use (else CUDA_HOME, PATH, /usr/local/cuda)
  TORCH_CUDA_ARCH_LIST     GPU architectures (else the visible GPUs, else CUDA_ARCHS below)
  SENET_FAST_SANITIZE=list address, undefined, thread (comma separated)
  MAX_JOBS                 parallel compilations (default: one per core, 8 at most)
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
CUDA_ARCHS = ["80", "86", "89", "90", "100", "120"]
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


class Nvcc:
    """The CUDA compiler: called by us, so that torch-free .cu files need no CUDA build of torch."""

    def __init__(self, path: str) -> None:
        self.path = path
        text = subprocess.check_output([path, "--version"], text=True)
        self.release = text.split("release ")[1].split(",")[0]

    @staticmethod
    def find() -> "Nvcc | None":
        home = os.environ.get("CUDA_HOME")
        found = [
            os.environ.get("SENET_FAST_NVCC"),
            home and f"{home}/bin/nvcc",
            shutil.which("nvcc"),
            "/usr/local/cuda/bin/nvcc",
        ]
        return next((Nvcc(path) for path in found if path and os.path.exists(path)), None)

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

    def compile(self, source: str, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        out = str(folder / f"{Path(source).stem}.cuda.o")
        flags = ["-O3", "-std=c++20", "-lineinfo", "-Xcompiler=-fPIC", "--threads", "2", f"-I{ROOT / 'csrc'}"]
        command = [self.path, *flags, *self.arch_flags(), "-c", source, "-o", out]
        print(" ".join(command), flush=True)
        subprocess.check_call(command, cwd=ROOT)
        return out


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


def ids_extension() -> list[Extension]:
    from Cython.Build import cythonize

    extension = Extension(
        "senet_fast.ids._snowflake",
        ["senet_fast/ids/_snowflake.pyx"],
        include_dirs=[str(ROOT / "csrc")],
        depends=sources("csrc/ids", "*.*"),
        language="c++",
        extra_compile_args=["-O3", "-std=c++17", "-g0", "-pthread", *sanitizer_flags()],
        extra_link_args=["-pthread", *sanitizer_flags()],
    )
    return cythonize([extension])


def se_extension(torch) -> tuple[Extension, type]:
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    # Without -fopenmp at::parallel_for compiles to a serial loop and says nothing.
    openmp = [] if "OpenMP not found" in torch.__config__.parallel_info() else ["-fopenmp"]
    extension = CppExtension(
        "senet_fast.se._C",
        sources("csrc/bindings") + sources("csrc/se/cpu"),
        include_dirs=[str(ROOT / "csrc")],
        depends=[
            path
            for folder in ("csrc/se", "csrc/se/cpu", "csrc/se/cuda", "csrc/bindings")
            for path in sources(folder, "*.[hi]*")
        ],
        # No contraction: every ISA then rounds alike. No trapping maths: comparisons vectorise; NaN and Inf stay.
        extra_compile_args=[
            *["-O3", "-std=c++20", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-Wno-unknown-pragmas"],
            *["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", *openmp, *sanitizer_flags()],
        ],
        extra_link_args=[*openmp, *sanitizer_flags()],
    )
    extension.libraries = [name for name in extension.libraries if name != "torch_python"]
    extension.define_macros.append(("SENET_FAST_TORCH", f'"{torch.__version__}"'))

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            if nvcc := choose_nvcc(torch.version.cuda):
                folder = Path(self.build_temp).resolve()
                extension.extra_objects += [nvcc.compile(source, folder) for source in sources("csrc/se/cuda", "*.cu")]
                extension.define_macros.append(("SENET_FAST_CUDA", f'"{nvcc.release}"'))
                extension.library_dirs += nvcc.library_dirs()
                extension.libraries += ["cudart_static", "rt", "dl", "pthread"]
            super().build_extensions()

    return extension, Build


def main() -> None:
    if not NO_BUILD.isdisjoint(sys.argv):
        return setup()
    if switch("SENET_FAST_SE", {"0", "1"}, "1") == "0":
        return setup(ext_modules=ids_extension())
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
    extension, build = se_extension(torch)
    setup(ext_modules=[extension, *ids_extension()], cmdclass={"build_ext": build})


main()

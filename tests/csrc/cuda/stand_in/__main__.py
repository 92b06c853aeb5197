"""Build the stand-in for a CUDA device and run tests on it: `python tests/csrc/cuda/stand_in [arguments of pytest]`.
Without the name of a file among the arguments, all of its tests.

The op library with CUDA: the binding as it is, csrc/se/cuda/*.cu compiled for the host by the C++ compiler, a CUDA
runtime over the emulator (runtime.cpp), and the device type CUDA of a torch without it (torch_device.cpp). No nvcc. The
CPU's kernels are the objects of the last build, so `make stand-in` builds first. Everything goes to build/stand_in.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
BUILD = ROOT / "build/stand_in"
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
OWN = tuple(f"tests/csrc/cuda/stand_in/{name}_tests.py" for name in ("binding", "graph_trees"))
TESTS = ("tests/se/test_cuda.py", "tests/se/test_cuda_ways.py", *OWN)


def write_if_changed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def objects_of_the_build() -> list[Path]:
    """The op library's objects but the binding, which is compiled anew, with CUDA."""
    found = (ROOT / "build").glob(f"temp*{sys.implementation.cache_tag}/senet_fast.se.libsenet_fast/*.o")
    kernels = sorted(path for path in found if not path.name.endswith("bindings.o"))
    if not kernels:
        raise SystemExit("no objects of the op library below build/: run make clean build first")
    return kernels


def manifest() -> str:
    """Of ninja: what is compiled with which flags, and what is linked of it."""
    import torch
    from torch.utils.cpp_extension import include_paths

    libraries = Path(torch.__file__).parent / "lib"
    plain = f"-std=c++20 -fPIC -Wall -Wno-unknown-pragmas -I{HERE} -I{HERE.parent} -I{ROOT}/csrc -I{BUILD}"
    with_torch = (
        f"{plain} -O0 -Wno-psabi -ffp-contract=off -I{sysconfig.get_path('include')} "
        f"-DTORCH_API_INCLUDE_EXTENSION_H '-DSENET_FAST_TORCH=\"{torch.__version__}\"' "
        + " ".join(f"-isystem {path}" for path in include_paths())
    )
    hidden = f"{with_torch} -fvisibility=hidden"
    lines = [
        f"rule compile\n  command = {os.environ.get('CXX', 'c++')} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc\n  description = $in",
        f"rule link\n  command = {os.environ.get('CXX', 'c++')} -shared -o $out $in $flags\n  description = $out",
    ]

    def compiled(source: Path, flags: str) -> str:
        out = f"{source.stem}.o"
        lines.append(f"build {out}: compile {source}\n  flags = {flags}")
        return out

    def link(out: str, objects: list[str], flags: str) -> None:
        own = f"'-Wl,-rpath,$$ORIGIN' -Wl,-rpath,{libraries} -L. -L{libraries} {flags}"
        lines.append(f"build {out}: link {' '.join(objects)}{after(out)}\n  flags = {own}")

    def after(out: str) -> str:
        needs = {"libsenet_fast.so": "libstand_in.so", "_stand_in": "libstand_in.so", "_C": "libsenet_fast.so"}
        return f" | {needs[out.removesuffix(SUFFIX)]}" if out.removesuffix(SUFFIX) in needs else ""

    bindings = BUILD / "bindings.cpp"
    sources = sorted(path for path in (ROOT / "csrc/bindings").glob("*.cpp") if path.stem != "module")
    write_if_changed(bindings, "".join(f'#include "{path}"\n' for path in sources))
    write_if_changed(BUILD / "senet_fast_build.h", '#define SENET_FAST_CUDA "none: the stand-in"\n')
    # the longest first
    op = [compiled(bindings, f"{hidden} -fopenmp")]
    op += [
        compiled(path, f"-x c++ {plain} -O1 -fvisibility=hidden")
        for path in sorted((ROOT / "csrc/se/cuda").glob("*.cu"))
    ]
    device = [
        compiled(HERE / f"torch_{name}.cpp", f"{with_torch} -DTORCH_EXTENSION_NAME=_stand_in")
        for name in ("ops", "device")
    ]
    module = [compiled(ROOT / "csrc/bindings/module.cpp", f"{hidden} -DTORCH_EXTENSION_NAME=_C")]
    runtime = [compiled(HERE.parent / f"{name}.cpp", f"{plain} -O2") for name in ("emulator", "emulator_cluster")]
    runtime += [compiled(HERE / f"{name}.cpp", f"{plain} -O1") for name in ("memory", "runtime", "streams")]
    link("libstand_in.so", runtime, "-Wl,-soname,libstand_in.so -Wl,-z,defs")
    link(f"_stand_in{SUFFIX}", device, "-lstand_in -lc10 -ltorch_cpu -ltorch")
    cpu = [str(path) for path in objects_of_the_build()]
    link("libsenet_fast.so", [*op, *cpu], "-Wl,-soname,libsenet_fast.so -lstand_in -fopenmp -lc10 -ltorch_cpu")
    link(f"_C{SUFFIX}", module, "-lsenet_fast")
    return "\n".join(lines) + "\n"


def build() -> None:
    from ninja import BIN_DIR

    write_if_changed(BUILD / "build.ninja", manifest())
    if subprocess.call([os.path.join(BIN_DIR, "ninja"), "-C", str(BUILD), "--quiet"]) != 0:
        raise SystemExit("the stand-in could not be compiled; the compiler's message is above")


def main() -> int:
    build()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    named = any(".py" in argument for argument in sys.argv[1:])
    command = [sys.executable, "-m", "pytest", "-p", "cuda_stand_in", *sys.argv[1:], *(() if named else TESTS)]
    return subprocess.call(command, cwd=ROOT, env=environment)


if __name__ == "__main__":
    sys.exit(main())

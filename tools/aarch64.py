"""The package on an emulated aarch64: `python tools/aarch64.py [pytest's arguments]`, or `make aarch64`.

Python and libc come from this Debian's own packages for arm64, unpacked into build/aarch64 and not installed; torch is
PyPI's wheel. That one is a CUDA build, whose libraries of CUDA are 3 GB: but for the runtime, empty ones stand in for
them. The emulated Python runs setup.py, and the compiler that it calls is this machine's cross-compiler.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bootstrap import ROOT, TORCH, Problem, requirements

HERE = ROOT / "build" / "aarch64"
SYSROOT, SITE, STUBS, BUILT = HERE / "sysroot", HERE / "site", HERE / "stubs", HERE / "built"
LAUNCHER = HERE / "python"
PREFIX = "aarch64-linux-gnu-"
PROGRAMS = {
    "qemu-aarch64": "qemu-user",
    f"{PREFIX}g++": f"g++-{PREFIX.rstrip('-')}",
    f"{PREFIX}readelf": f"binutils-{PREFIX.rstrip('-')}",
    "apt-get": "apt",
    "dpkg": "dpkg",
}
# What the emulated kernel would tell: torch reads these, and ends with a fault at those of another architecture.
CPU = "neoverse-n1"
CPUINFO = """\
processor\t: {core}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
CORES = 2
DEBIAN = ("python3", "libpython3-dev", "libc6-dev", "libstdc++6", "libgomp1")
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)]
# Loaded where a GPU is used. One of them needs the driver's library, of which the runtime must not find an empty one.
LAZY = ("libcaffe2_nvrtc", "libtorch_cuda_linalg")
CUDA_RUNTIME = "nvidia-cuda-runtime"
# Lock files are not among them: qemu-user refuses mremap() of size 0, by which a file's word is taken away. Nor is what
# Inductor compiles.
TESTED = ("op", "activations", "errors", "into", "conv_op", "norm", "prologue", "module")
TESTS = (*(f"tests/se/test_{name}.py" for name in TESTED), "tests/ids/test_snowflake.py")
# Unversioned names that torch's libraries take the addresses of, by the library that has them.
UNVERSIONED = {
    "libnccl": "nccl",
    "libcufile": "cuFile",
    "libcusparseLt": "cusparseLt",
    "libcurand": "curand",
    "libnvshmem_host": "nvshmem",
}


# ---- decisions, tested in tests/test_aarch64.py ----------------------------------------------------------------------


def lacking(has: "dict[str, str | None]") -> str | None:
    """What to install for the programs that are not there."""
    packages = sorted({PROGRAMS[name] for name, path in has.items() if path is None})
    return f"apt-get install {' '.join(packages)}" if packages else None


def plain_requirements(metadata: str) -> list[str]:
    """What a wheel needs whatever the platform: the lines without a condition."""
    return [line.strip() for line in re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.MULTILINE)]


def runtime_requirement(metadata: str) -> str:
    """CUDA's runtime, of the release that torch's wheel names."""
    found = re.search(r"^Requires-Dist: cuda-toolkit\[[^]]*\bcudart\b[^]]*\]==(\d+\.\d+)", metadata, re.MULTILINE)
    return f"{CUDA_RUNTIME}=={found[1]}.*" if found else ""


class Symbol(NamedTuple):
    name: str
    version: str  # "" for none


class Stub(NamedTuple):
    """A shared library that has these symbols, and none of the code."""

    soname: str
    symbols: tuple[Symbol, ...]

    def source(self) -> str:
        names = sorted({symbol.name for symbol in self.symbols})
        return "void abort(void);\n" + "".join(f"void {name}(void) {{ abort(); }}\n" for name in names)

    def script(self) -> str:
        """For the linker: which version each symbol has."""
        versions: dict[str, list[str]] = {}
        for name, version in self.symbols:
            versions.setdefault(version, []).append(name)
        plain = versions.pop("", [])
        if not versions:
            return ""
        nodes = [
            f"{version} {{ global: {' '.join(f'{n};' for n in sorted(of))} }};" for version, of in versions.items()
        ]
        return "\n".join(nodes) + ("\n" if not plain else f"\nunversioned {{ global: {'; '.join(plain)}; }};\n")


def stubs(there: "Iterable[str]", read: "Iterable[str]") -> list[Stub]:
    """Libraries for what `there` is not, from what readelf -dVW --dyn-syms says of all that is loaded."""
    absent: dict[str, set[Symbol]] = {}
    there = set(there)
    for text in read:
        for soname in re.findall(r"\(NEEDED\).*\[(.+)\]", text):
            if soname not in there:
                absent.setdefault(soname, set())
        file, of_version = "", {}
        for line in text.splitlines():
            if found := re.search(r"Version: 1\s+File: (\S+)", line):
                file = found[1]
            elif found := re.search(r"Name: (\S+)\s+Flags: \S+\s+Version: (\d+)", line):
                of_version[found[2]] = file, found[1]
        for name, version in re.findall(r" UND (\w+)(?:@\S+ \((\d+)\))?$", text, re.MULTILINE):
            if version:
                file, named = of_version.get(version, ("", ""))
                if file in absent:
                    absent[file].add(Symbol(name, named))
            else:
                for soname, symbols in absent.items():
                    begins = UNVERSIONED.get(soname.partition(".so")[0])
                    if begins and name.startswith(begins):
                        symbols.add(Symbol(name, ""))
    return [Stub(soname, tuple(sorted(symbols))) for soname, symbols in sorted(absent.items())]


def launcher(python: Path, paths: "Sequence[Path]", libraries: "Sequence[Path]") -> str:
    """The emulated Python as a program; its children by sys.executable are emulated, too (sitecustomize.py)."""
    settings = {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONSAFEPATH": "1",
    }
    words = [f"-E {shlex.quote(f'{name}={value}')}" for name, value in settings.items()]
    # Variables for the emulated process alone: this machine's programs must not look into aarch64's libraries.
    # What is compiled to bytecode once takes half of the time of importing torch.
    command = f"exec qemu-aarch64 -cpu {CPU} -L {shlex.quote(str(SYSROOT))} -U PYTHONDONTWRITEBYTECODE"
    return f'#!/bin/sh\n{command} {" ".join(words)} {shlex.quote(str(python))} "$@"\n'


# ---- actions ---------------------------------------------------------------------------------------------------------


def run(*command: object, cwd: Path = ROOT, **settings: str) -> str:
    print("+", shlex.join(map(str, command))[:200], file=sys.stderr, flush=True)
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise Problem(f"{command[0]} failed; its message is above")
    return done.stdout


def unpack_debian() -> None:
    """Debian's packages for arm64, by an apt of its own state: nothing of the machine's is changed."""
    apt = HERE / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache::archives": apt / "archives",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", "-qq", *words, "update")
    run("apt-get", "-qq", *words, "-y", "--no-install-recommends", "--download-only", "install", *DEBIAN)
    for package in sorted((apt / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, SYSROOT], check=True)


def include(python: str) -> str:
    """Python's headers for the cross-compiler, which has its own of libc."""
    folder = HERE / "include"
    for name in (f"python{python}", f"aarch64-linux-gnu/python{python}"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(SYSROOT / "usr" / "include" / name)
    return os.pathsep.join([str(folder), str(folder / f"python{python}")])


def describe_cpu() -> None:
    """qemu takes what is below the sysroot for what has the same path on the machine."""
    (SYSROOT / "proc").mkdir(exist_ok=True)
    (SYSROOT / "proc/cpuinfo").write_text("".join(CPUINFO.format(core=core) for core in range(CORES)))
    for core in range(CORES):
        folder = SYSROOT / f"sys/devices/system/cpu/cpu{core}/regs/identification"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "midr_el1").write_text("0x00000000413fd0c1\n")


def pip(python: str, *what: str) -> None:
    platforms = [f"--platform={name}" for name in PLATFORMS]
    options = ["--quiet", "--only-binary=:all:", "--no-warn-conflicts", "--upgrade", *platforms]
    run(sys.executable, "-m", "pip", "install", *options, f"--python-version={python}", f"--target={SITE}", *what)


def install(python: str) -> None:
    pip(python, "--no-deps", TORCH)
    metadata = next(SITE.glob("torch-*.dist-info")).joinpath("METADATA").read_text()
    listed = requirements(ROOT / "pyproject.toml", "test-core")
    wanted = [line for line in listed if line != "ninja"]  # it runs on this machine, as the compiler does
    pip(python, *plain_requirements(metadata), *wanted)
    if runtime := runtime_requirement(metadata):
        pip(python, "--no-deps", runtime)


def libraries() -> list[Path]:
    return [STUBS, *sorted({path.parent for path in SITE.glob("nvidia/**/*.so*")}), SITE / "torch" / "lib"]


def make_stubs() -> None:
    STUBS.mkdir(exist_ok=True)
    mine = [path for folder in libraries()[1:] for path in folder.glob("*.so*") if not path.name.startswith(LAZY)]
    there = {path.name for path in mine} | {path.name for path in SYSROOT.rglob("*.so*")}
    read = [run(f"{PREFIX}readelf", "-dVW", "--dyn-syms", path) for path in mine]
    for stub in stubs(there, read):
        script = STUBS / f"{stub.soname}.map"
        script.write_text(stub.script())
        versions = [f"-Wl,--version-script={script}"] if script.read_text() else []
        source = STUBS / f"{stub.soname}.c"
        source.write_text(stub.source())
        out = STUBS / stub.soname
        run(f"{PREFIX}gcc", "-shared", "-fPIC", "-w", source, "-o", out, f"-Wl,-soname,{stub.soname}", *versions)


def main() -> int:
    if how := lacking({name: shutil.which(name) for name in PROGRAMS}):
        raise Problem(f"the emulated aarch64 needs more programs: {how}")
    done = HERE / "ready"
    if not done.exists():
        unpack_debian()
        describe_cpu()
    python = max(SYSROOT.glob("usr/bin/python3.*[0-9]"), key=lambda path: int(path.name.partition(".")[2]))
    version = python.name.removeprefix("python")
    if not done.exists():
        install(version)
        make_stubs()
    LAUNCHER.write_text(launcher(python, [HERE, BUILT, SITE], libraries()))
    LAUNCHER.chmod(0o755)
    (HERE / "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(LAUNCHER)!r}\n")
    said = run(
        LAUNCHER,
        "-c",
        "import platform, torch; print(platform.machine(), platform.python_version(), torch.__version__)",
    )
    done.touch()
    print(said, end="", flush=True)
    compilers = {"CXX": f"{PREFIX}g++", "CC": f"{PREFIX}gcc", "CPATH": include(version)}
    run(
        LAUNCHER,
        "setup.py",
        "-q",
        "build",
        f"--build-base={HERE}/temp",
        f"--build-lib={BUILT}",
        SENET_FAST_CUDA="0",
        **compilers,
    )
    command = [
        str(LAUNCHER),
        "-m",
        "pytest",
        "-p",
        "no:faulthandler",
        f"--basetemp={HERE}/tmp",
        "--quick",
        *(sys.argv[1:] or TESTS),
    ]
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    return subprocess.call(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        sys.exit(f"error: {problem}")

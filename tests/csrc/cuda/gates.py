"""What the compiled kernels must be, read from the objects of `make cuda`: `python gates.py [--plant]`.

Registers that leave room for the blocks a processor is to hold, no spills (`ptxas -v`, and no local memory in the
SASS), 16-byte accesses, several of them under way at once in every loop (in_flight.py), and fences only where the
design has them. A row of ROWS for each kind of kernel; a kernel without a row is a failure, and so is a row without a
kernel. Needs cuobjdump and nvdisasm: the toolkit's, or pip's (`make gates`). --plant compiles copies with a bug in them
and shows that each is noticed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import in_flight

ROOT = Path(__file__).resolve().parents[3]
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
REGISTERS = 65536  # of a processor
SHARED = 99 << 10  # bytes that every processor since sm_80 has for its blocks, but for 1 kB of each block

# Opcodes, as regular expressions that match from the beginning.
LOADS, LAST_LOADS, STORES = r"LDG\.E\.128", r"LDG\.E\.EF\.128", r"STG\.E\.128"
FENCES, BULK_COPIES = r"MEMBAR\.\w+\.(GPU|SYS)", r"UBLKCP"  # a fence of a block's memory costs little
LOCAL, FLOAT_ATOMICS = r"LDL|STL", r"(ATOM|RED)\w*\..*(F16|F32|F64|BF16)"


class Row(NamedTuple):
    """One kind of kernel. The first row whose pattern fits a kernel's whole name is the kernel's."""

    kernels: str
    resident: int  # blocks a processor
    needs: Mapping[str, int]  # opcode: how many there are at least
    most: Mapping[str, int]  # opcode: how many there are at most
    spills: int = 0  # bytes of spill stores and loads: what is known and allowed, not to grow
    threads: int = 256
    archs: tuple[str, ...] = ARCHS
    # 16-byte loads before the first use of one of them, loop by loop, the most first: at least so many, and in loops
    # that are not foreseen at least as many as in the last.
    in_flight: tuple[int, ...] = ()


# The last tile of an image publishes with a fence; each tile that arrives and each block that leaves has one.
TICKETS = {FENCES: 3}
# As many as the loops are unrolled: what is lost to scalar accesses is missing in each copy.
FORWARD = {LOADS: 40, LAST_LOADS: 8, STORES: 4}
BACKWARD = {LOADS: 28, LAST_LOADS: 8, STORES: 8}
# Scale (x and residual), the product by rows, three by columns; the three ways to sum.
FORWARD_LOADS = (8, 8, 8, 8, 8, 4, 4, 4)
# The three ways to sum terms of three tensors, four times or twice; products; grad_x.
BACKWARD_LOADS = (12, 12, 12, 8, 8, 8, 8, 4)
GENERAL_BACKWARD_LOADS = (8, 8, 8, 8, 6, 6, 6, 4)
HALF = r"(__half|__nv_bfloat16), \w+"
# Where clusters are: x by bulk copies, vectors by stores that a barrier counts, nothing through global memory. Older
# GPUs get an empty kernel.
CLUSTER_ARCHS = ("sm_90", "sm_100", "sm_120")
CLUSTER = {BULK_COPIES: 2, r"STAS\.128": 3, r"LDS\.128": 2, STORES: 1}
NO_GLOBAL_FENCES = {r"MEMBAR\.\w+\.(GPU|SYS)": 0, r"ATOM|RED": 0}
# Spills are allowed to float64, whose speed does not matter. Its loads are not counted either: its additions are slow,
# and nvcc begins with them early.
ROWS = [
    Row(f"forward_kernel<({HALF}|float, float), (false|true)>", 2, FORWARD, TICKETS, in_flight=FORWARD_LOADS),
    Row("forward_kernel<double, .*>", 2, {STORES: 2}, TICKETS, spills=48),
    Row(f"backward_kernel<({HALF}|float, float), false>", 2, BACKWARD, TICKETS, in_flight=BACKWARD_LOADS),
    Row(f"backward_kernel<({HALF}|float, float), true>", 2, BACKWARD, TICKETS, in_flight=GENERAL_BACKWARD_LOADS),
    Row("backward_kernel<double, .*>", 2, {STORES: 4}, TICKETS, spills=48),
    # x comes by bulk copies: the product by rows, two ways to sum in it, the residual
    # (512 threads, but on sm_120 256)
    Row("cluster_forward_kernel<.*, 1>", 1, CLUSTER, NO_GLOBAL_FENCES, archs=CLUSTER_ARCHS, in_flight=(8, 8, 4)),
    Row("cluster_forward_kernel<.*>", 1, CLUSTER, NO_GLOBAL_FENCES, archs=CLUSTER_ARCHS, in_flight=(4, 4, 4)),
    # grad_y comes by bulk copies: x and the residual
    Row("cluster_backward_kernel<.*>", 1, CLUSTER, NO_GLOBAL_FENCES, archs=CLUSTER_ARCHS, in_flight=(8, 8, 8)),
    Row("weights_kernel<.*>", 3, {}, {FENCES: 0}),
]


class Kernel(NamedTuple):
    """A kernel of one architecture, as the tools show it."""

    name: str
    arch: str
    registers: int
    stack: int
    shared: int
    opcodes: Counter[str]
    spilled: int = 0  # bytes of stores and loads
    in_flight: tuple[int, ...] = ()  # as in Row

    def count(self, opcode: str) -> int:
        return sum(n for name, n in self.opcodes.items() if re.match(opcode, name))


# ---- judging -------------------------------------------------------------------------------------------------------


def faults(kernel: Kernel, row: Row) -> list[str]:
    found = []
    registers = REGISTERS // (row.threads * row.resident) // 8 * 8
    if kernel.registers > registers:
        found.append(f"{kernel.registers} registers; {row.resident} blocks a processor leave {registers}")
    if (kernel.shared + 1024) * row.resident > SHARED + 1024:
        found.append(f"{kernel.shared} bytes of shared memory; too many for {row.resident} blocks a processor")
    if max(kernel.stack, kernel.spilled) > row.spills:
        found.append(f"{kernel.stack} bytes of stack, {kernel.spilled} of spills; expected {row.spills} at the most")
    most = {FLOAT_ATOMICS: 0, **({} if row.spills else {LOCAL: 0}), **row.most}
    for opcode, limit in most.items():
        if (count := kernel.count(opcode)) > limit:
            found.append(f"{count} of {opcode}; expected {limit} at the most")
    for opcode, least in row.needs.items():
        if (count := kernel.count(opcode)) < least:
            found.append(f"{count} of {opcode}; expected {least} at least")
    if len(kernel.in_flight) < len(row.in_flight):
        found.append(f"loads in flight {kernel.in_flight}; expected {row.in_flight} or more")
    for i, loads in enumerate(kernel.in_flight if row.in_flight else ()):
        if loads < row.in_flight[min(i, len(row.in_flight) - 1)]:
            found.append(f"loads in flight {kernel.in_flight}; expected {row.in_flight} or more")
            break
    return [f"{kernel.arch} {kernel.name}: {fault}" for fault in found]


def judge(kernels: Iterable[Kernel], rows: Iterable[Row] = ROWS, archs: Iterable[str] = ARCHS) -> list[str]:
    """What is wrong, a line each."""
    rows, archs, wrong, seen = list(rows), set(archs), [], set()
    for kernel in kernels:
        row = next((row for row in rows if re.fullmatch(row.kernels, kernel.name)), None)
        if row is None:
            wrong.append(f"{kernel.arch} {kernel.name}: has no row in {Path(__file__).name}")
        elif kernel.arch in row.archs:
            seen.add((row.kernels, kernel.arch))
            wrong += faults(kernel, row)
    for row in rows:
        missing = [arch for arch in row.archs if arch in archs and (row.kernels, arch) not in seen]
        wrong += [f"{arch} {row.kernels}: no such kernel was compiled" for arch in missing]
    return wrong


# ---- reading -------------------------------------------------------------------------------------------------------


def short(names: Iterable[str]) -> dict[str, str]:
    """forward_kernel<float, float, true> for the mangled name of that."""
    mangled = sorted(set(names))
    said = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    return {
        name: re.sub(r"^void |\(anonymous namespace\)::|senet::cuda::|\((?!anonymous).*\)$", "", plain)
        for name, plain in zip(mangled, said.splitlines(), strict=True)
    }


def usages(text: str) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(architecture, mangled name): registers, stack and shared memory, of `cuobjdump -res-usage`."""
    found, arch, name = {}, "", ""
    for line in text.splitlines():
        if line.startswith("arch = "):
            arch = line.split()[2]
        elif named := re.match(r"\s*Function (\w+):", line):
            name = named[1]
        elif numbers := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            found[arch, name] = (int(numbers[1]), int(numbers[2]), int(numbers[3]))
    return found


def machine_code(text: str) -> dict[tuple[str, str], list[in_flight.Instruction]]:
    """(architecture, mangled name): its instructions, of `cuobjdump -sass`."""
    found: dict[tuple[str, str], list[in_flight.Instruction]] = {}
    arch, code = "", list[in_flight.Instruction]()
    for line in text.splitlines():
        if line.startswith("arch = "):
            arch = line.split()[2]
        elif "Function : " in line:
            code = found.setdefault((arch, line.split(" : ")[1].strip()), [])
        elif line.startswith("        /*") and (instruction := in_flight.instruction(line)):
            code.append(instruction)
    return found


def spills(text: str) -> dict[tuple[str, str], int]:
    """(architecture, mangled name): bytes of spill stores and loads, of `ptxas -v`."""
    found: dict[tuple[str, str], int] = {}
    archs: dict[str, str] = {}
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'|"
        r"Function properties for (\w+)\n\s*\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    )
    for entry, arch, name, stores, loads in pattern.findall(text):
        if entry:
            archs[entry] = arch
        elif name in archs:  # not a function that a kernel calls
            found[archs[name], name] = int(stores) + int(loads)
    return found


def tool(name: str) -> str:
    """A program of the toolkit: on PATH, beside nvcc, or in pip's packages."""
    of_pip = [str(path) for path in Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin")]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin", *of_pip])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"no {name}: install the CUDA toolkit's, or pip's nvidia-cuda-{name} (make gates does)")
    return found


def dump(what: str, path: Path) -> str:
    folders = [str(Path(tool(name)).parent) for name in ("cuobjdump", "nvdisasm")]  # the former calls the latter
    environment = os.environ | {"PATH": os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])}
    command = [tool("cuobjdump"), what, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def read(path: Path) -> list[Kernel]:
    """The kernels of an object, with what nvcc said of them in the log beside it."""
    used, code = usages(dump("-res-usage", path)), machine_code(dump("-sass", path))
    spilled = spills(path.with_suffix(".log").read_text())
    names = short(name for _, name in used)
    return [
        Kernel(
            names[name],
            arch,
            *numbers,
            Counter(instruction.opcode for instruction in code[arch, name]),
            spilled[arch, name],
            tuple(sorted((batch.loads for batch in in_flight.batches(code[arch, name])), reverse=True)),
        )
        for (arch, name), numbers in used.items()
        if names[name].split("<")[0].endswith("_kernel")
    ]


# ---- planted bugs --------------------------------------------------------------------------------------------------


class Plant(NamedTuple):
    name: str
    file: str  # of csrc/se/cuda
    old: str
    new: str
    said: str  # by judge()


PLANTS = [
    Plant("as it is", "forward.cu", "", "", ""),
    Plant(
        "more blocks a processor than registers allow", "plan.h", "kResident = 2;", "kResident = 4;", "bytes of stack"
    ),
    Plant(
        "loads one by one",
        "tile.cuh",
        "    return {kLast ? load_streaming(held) : load_vector(held)};",
        "    Held<T, n> v;\n"
        "    for (int j = 0; j < n; ++j) v.words.items[j] = static_cast<const volatile T*>(p)[j];\n"
        "    return v;",
        "of LDG",
    ),
    Plant(
        "a squeeze that waits for each load",
        "forward_parts.cuh",
        "  struct Squeezed {\n    static constexpr int kAhead = 4;",
        "  struct Squeezed {\n    static constexpr int kAhead = 1;",
        "loads in flight (9, 8, 8, 8, 8, 1, 1, 1)",
    ),
    Plant(
        "a scale that waits for every second load",
        "forward_parts.cuh",
        "kAhead = 4;\n    struct Near",
        "kAhead = 2;\n    struct Near",
        "loads in flight (9, 8, 8, 8, 4,",
    ),
    Plant(
        "a fence more",
        "tickets.cuh",
        "  __syncthreads();\n  return words.last;",
        "  __threadfence();\n  __syncthreads();\n  return words.last;",
        "of MEMBAR",
    ),
]


def plant() -> int:
    """Compiles forward.cu, once as it is and once with each bug, for one type and one architecture."""
    escaped = 0
    for bug in PLANTS:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "csrc"
            shutil.copytree(ROOT / "csrc", source)
            types = source / "se/cuda/instances.cuh"
            text = types.read_text()
            begin = text.index("  switch (p.dtype)")
            end = text.index("  return nullptr;", begin)
            types.write_text(f"{text[:begin]}  return Kernels::template of<float, float>(variant...);\n{text[end:]}")
            path = source / "se/cuda" / bug.file
            text = path.read_text()
            if bug.old and text.count(bug.old) != 1:
                raise SystemExit(f"{bug.name}: {text.count(bug.old)} places in {bug.file}; expected 1")
            path.write_text(text.replace(bug.old, bug.new) if bug.old else text)
            out = Path(folder) / "forward.cuda.o"
            flags = ["-O3", "-std=c++20", "-Xptxas=-v", f"-I{source}", "-arch=sm_90"]
            command = [tool("nvcc"), *flags, "-c", str(source / "se/cuda/forward.cu"), "-o", str(out)]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                raise SystemExit(made.stderr)
            out.with_suffix(".log").write_text(made.stderr)
            kernels = read(out)
            rows = [row for row in ROWS if any(re.fullmatch(row.kernels, kernel.name) for kernel in kernels)]
            wrong = judge(kernels, rows, ["sm_90"])
        noticed = any(bug.said in line for line in wrong) if bug.said else not wrong
        escaped += not noticed
        print(f"{bug.name:50} {wrong[0] if wrong else 'nothing is wrong'}{'' if noticed else '  NOT AS EXPECTED'}")
    return 1 if escaped else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plant", action="store_true", help="plant bugs instead, and show that each is noticed")
    parser.add_argument("--table", action="store_true", help="print what each kernel needs")
    given = parser.parse_args()
    if given.plant:
        return plant()
    objects = sorted((ROOT / "build").glob(f"temp*{sys.implementation.cache_tag}/*.cuda.o"))
    if not objects:
        raise SystemExit("no objects with kernels below build/: run make cuda first")
    kernels = [kernel for path in objects for kernel in read(path)]
    if given.table:
        for k in sorted(kernels, key=lambda k: (k.name, int(k.arch[3:]))):
            counts = [f"{k.count(what):3}" for what in (LOADS, LAST_LOADS, STORES, BULK_COPIES, FENCES, LOCAL)]
            print(
                f"{k.name:60} {k.arch:7} {k.registers:4} {k.stack:4} {k.spilled:4} {k.shared:6}", *counts, k.in_flight
            )
    wrong = judge(kernels)
    print("\n".join(wrong) if wrong else f"{len(kernels)} kernels, nothing wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

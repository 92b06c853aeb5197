"""The machine code of the matrix products, whose faults no result shows: on AVX2 a copy by way of the stack, where each
load waited for stores of half its size, once made them four times slower.
"""

import re
import subprocess
from pathlib import Path

import needs
import pytest

from senet_fast.se import _C

LIBRARY = Path(_C.__file__).with_name("libsenet_fast.so")
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16")
MULTIPLIES = re.compile(r"\t(vfmadd|vdpbf16ps|tdpbf16ps|mulps)")
STORES = re.compile(r"\tv?mov\S* +%[^,]*,[^,]*\([^)]*\)")  # AT&T's order: what is written comes last
BACK = re.compile(r"\tj\w+ +([0-9a-f]+)")


def products(isa: str) -> list[list[str]]:
    """The instructions of each function that multiplies; clang writes out `columns` in `multiply`."""
    symbols = subprocess.run(
        [needs.program("nm"), "-C", "-S", str(LIBRARY)], check=True, capture_output=True, text=True
    ).stdout
    name = rf"(?:void )?senet::{isa}::.*::(?:Product<.*>|Registers<.*>|Tiles)::(?:columns<\d>|multiply)\("
    found = re.findall(rf"^(\w+) (\w+) \w {name}", symbols, re.MULTILINE)
    return [disassembled(int(begin, 16), int(size, 16)) for begin, size in found]


def disassembled(begin: int, size: int) -> list[str]:
    where = [f"--start-address={begin}", f"--stop-address={begin + size}"]
    command = [needs.program("objdump"), "-d", "--no-show-raw-insn", *where, str(LIBRARY)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if re.match(r" *[0-9a-f]+:\t", line)]


def loops(code: list[str]) -> list[list[str]]:
    """From the targets of jumps back to the jumps, those with no other loop inside."""
    at = {int(line.split(":")[0], 16): i for i, line in enumerate(code)}
    found = []
    for i, line in enumerate(code):
        if (jump := BACK.search(line)) and at.get(int(jump[1], 16), i) < i:
            found.append((at[int(jump[1], 16)], i))
    inner = [(a, b) for a, b in found if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in found)]
    return [code[a : b + 1] for a, b in inner]


@pytest.mark.parametrize("isa", ISAS)
def test_sums_stay_in_registers(isa: str) -> None:
    functions = products(isa)
    if not functions:
        assert isa not in _C.isas()  # of another machine's processors
        return
    inner = [loop for code in functions for loop in loops(code)]
    multiplying = [loop for loop in inner if any(MULTIPLIES.search(line) for line in loop)]
    assert multiplying
    assert not [line for loop in multiplying for line in loop if STORES.search(line)]

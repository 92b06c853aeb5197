"""How many 16-byte loads from global memory are under way at once, read from a kernel's SASS (`gates.py`).

A batch is what is loaded before the first instruction that reads any of it: so long as nobody reads, the loads are in
flight together, and their latency is paid once. A loop with one load to a batch pays it in every turn, however far it
is unrolled: counting opcodes does not show that. nvcc lays out a loop's code in the order of its execution, but for
branches that are rarely taken; these are not followed.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
LOAD = re.compile(r"LDG\.E\.(\w+\.)*128")
REGISTER = re.compile(r"\bR(\d+)\b")
TARGET = re.compile(r"(?:^|[\s,])0x([0-9a-f]+)\s*$")


class Instruction(NamedTuple):
    address: int
    opcode: str
    operands: str

    def reads(self) -> set[int]:
        """The registers that it names as sources; of a vector's the first, which is the first that a load wrote."""
        named = [int(number) for number in REGISTER.findall(self.operands)]
        stores = self.opcode.startswith(("ST", "RED", "BRA"))
        return set(named if stores or not REGISTER.match(self.operands) else named[1:])


class Batch(NamedTuple):
    """Loads before the first use of one of them; at: the address of the first."""

    at: int
    loads: int


def instruction(line: str) -> Instruction | None:
    """Of a line of `cuobjdump -sass`."""
    found = LINE.match(line)
    return Instruction(int(found[1], 16), found[2], found[3].strip()) if found else None


def batches(code: Iterable[Instruction]) -> list[Batch]:
    """Of a kernel, in the order of addresses. A branch back to before the first load ends a batch, too."""
    found = []
    waiting: set[int] = set()  # registers
    first, loads = 0, 0
    for one in code:
        target = TARGET.search(one.operands) if one.opcode.startswith("BRA") else None
        if loads and (one.reads() & waiting or (target and int(target[1], 16) <= first)):
            found.append(Batch(first, loads))
            waiting, loads = set(), 0
        if LOAD.match(one.opcode) and (to := REGISTER.match(one.operands)):
            first = first if loads else one.address
            loads += 1
            waiting |= set(range(int(to[1]), int(to[1]) + 4))
    return found

"""The gates on compiled GPU kernels (tests/csrc/cuda/gates.py): the tools' words are read right, and each gate fails.

`make gates` holds the real kernels to them, `make gates ARGS=--plant` compiles kernels with bugs.
"""

import importlib.util
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import needs
import pytest


@pytest.fixture(scope="module")
def gates(root: Path) -> ModuleType:
    if (folder := str(root / "tests/csrc/cuda")) not in sys.path:
        sys.path.append(folder)  # where it finds in_flight
    spec = importlib.util.spec_from_file_location("gates", root / "tests/csrc/cuda/gates.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def good(gates: ModuleType, **changed: Any) -> Any:
    opcodes = Counter({"LDG.E.128": 4, "LDG.E.128.CONSTANT": 4, "LDG.E.EF.128": 8, "STG.E.128": 4, "MEMBAR.ALL.GPU": 3})
    fields = {
        "name": "some_kernel",
        "arch": "sm_90",
        "registers": 80,
        "stack": 0,
        "shared": 9000,
        "in_flight": (8, 4, 4),
    }
    return gates.Kernel(**(fields | {"opcodes": opcodes} | changed))


def faults(gates: ModuleType, **changed: Any) -> str:
    kernel = good(gates, **changed)
    needs = {gates.LOADS: 4, gates.LAST_LOADS: 8, gates.STORES: 4}
    row = gates.Row("some_kernel", 3, needs, {gates.FENCES: 3}, in_flight=(8, 4))
    return "\n".join(gates.judge([kernel], [row], ["sm_90"]))


def test_a_good_kernel_passes(gates: ModuleType) -> None:
    assert faults(gates) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"registers": 88}, "88 registers; 3 blocks a processor leave 80"),
        ({"stack": 8}, "8 bytes of stack, 0 of spills; expected 0 at the most"),
        ({"spilled": 4}, "0 bytes of stack, 4 of spills; expected 0 at the most"),
        ({"shared": 40_000}, "40000 bytes of shared memory; too many for 3 blocks a processor"),
        ({"in_flight": (8, 3, 3)}, "loads in flight (8, 3, 3); expected (8, 4) or more"),
        ({"in_flight": (7, 4)}, "loads in flight (7, 4)"),
        ({"in_flight": (8, 4, 1)}, "loads in flight (8, 4, 1)"),
        ({"in_flight": (8,)}, "loads in flight (8,)"),
        ({"name": "other_kernel"}, "sm_90 other_kernel: has no row in gates.py"),
        ({"arch": "sm_80"}, "sm_90 some_kernel: no such kernel was compiled"),
    ],
)
def test_each_gate_fails(gates: ModuleType, changed: dict[str, Any], said: str) -> None:
    assert said in faults(gates, **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"LDG.E.128": 0, "LDG.E.128.CONSTANT": 3}, r"3 of LDG\.E\.128; expected 4 at least"),
        ({"LDG.E.EF.128": 7}, "7 of"),
        ({"STG.E.128": 0, "STG.E": 32}, "0 of"),
        ({"MEMBAR.ALL.GPU": 4}, r"4 of MEMBAR\.\w+\.(GPU|SYS); expected 3 at the most"),
        ({"STL.64": 1}, "1 of LDL|STL; expected 0 at the most"),
        ({"LDL": 1}, "1 of LDL|STL"),
        ({"RED.E.ADD.F32.FTZ.RN.STRONG.GPU": 1}, "1 of (ATOM|RED)"),
    ],
)
def test_each_opcode_is_counted(gates: ModuleType, changed: dict[str, int], said: str) -> None:
    assert said in faults(gates, opcodes=Counter(dict(good(gates).opcodes) | changed))


MANGLED = (
    "_ZN5senet4cuda44_GLOBAL__N__7f5784b1_11_backward_cu_0963d3d515backward_kernelI6__halffLb1EEEvNS0_14BackwardLaunchE"
)
USAGE = f"""
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {MANGLED}:
  REG:124 STACK:8 SHARED:16464 LOCAL:0 CONSTANT[0]:824 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = f"""
arch = sm_80
\t\tFunction : {MANGLED}
\t.headerflags\t@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;        /* 0x00000a00ff017624 */
                                                                                  /* 0x000fe200078e00ff */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;               /* 0x0000000402047981 */
                                                                                  /* 0x000ea8000c1e9d00 */
        /*12340*/            @!UP0 STG.E.128 [R2.64], R4 ;                        /* 0x0000000402007986 */
arch = sm_90
\t\tFunction : {MANGLED}
        /*0000*/                   EXIT ;                                         /* 0x000000000000794d */
"""
PTXAS = f"""ptxas info    : Compiling entry function '{MANGLED}' for 'sm_80'
ptxas info    : Function properties for {MANGLED}
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 124 registers, used 1 barriers, 8 bytes cumulative stack size, 16464 bytes smem
ptxas info    : Function properties for called
    0 bytes stack frame, 8 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '{MANGLED}' for 'sm_90'
ptxas info    : Function properties for {MANGLED}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def test_reads_what_the_tools_print(gates: ModuleType) -> None:
    assert gates.usages(USAGE) == {("sm_80", MANGLED): (124, 8, 16464)}
    opcodes = {kernel: [one.opcode for one in code] for kernel, code in gates.machine_code(SASS).items()}
    assert opcodes == {
        ("sm_80", MANGLED): ["IMAD.MOV.U32", "LDG.E.128.CONSTANT", "STG.E.128"],
        ("sm_90", MANGLED): ["EXIT"],
    }
    assert gates.spills(PTXAS) == {("sm_80", MANGLED): 16, ("sm_90", MANGLED): 0}


# Two loops of four copies each: the first uses what it loads at once, the second when all is under way.
LOOPS = """
        /*0100*/                   LDG.E.128 R4, desc[UR10][R20.64] ;
        /*0110*/                   HADD2.F32 R30, -RZ, R4.H0_H0 ;
        /*0120*/                   LDG.E.128 R4, desc[UR10][R20.64+0x10] ;
        /*0130*/                   IADD3 R22, P0, R22, 0x4, RZ ;
        /*0140*/                   STS.128 [R40], R4 ;
        /*0150*/              @!P0 BRA 0x100 ;
        /*0160*/                   LDG.E.EF.128 R4, desc[UR10][R4.64] ;
        /*0170*/               @P1 LDG.E.EF.128 R8, desc[UR10][R20.64] ;
        /*0180*/               @P2 BRA 0x1b0 ;
        /*0190*/                   LDG.E.128.CONSTANT R12, desc[UR10][R20.64+0x20] ;
        /*01a0*/                   LDG.E R50, desc[UR10][R20.64+0x40] ;
        /*01b0*/                   LDG.E.128 R16, desc[UR10][R20.64+0x30] ;
        /*01c0*/                   FADD R30, R30, R15 ;
        /*01d0*/                   LDG.E.128 R4, desc[UR10][R24.64] ;
        /*01e0*/               @P3 BRA P4, 0x160 ;
        /*01f0*/                   FADD R30, R30, R4 ;
"""


def test_counts_loads_before_their_first_use(gates: ModuleType) -> None:
    code = [one for line in LOOPS.splitlines() if (one := gates.in_flight.instruction(line))]
    assert len(code) == 16
    assert [tuple(batch) for batch in gates.in_flight.batches(code)] == [
        (0x100, 1),
        (0x120, 1),
        (0x160, 4),
        (0x1D0, 1),
    ]


def test_names(gates: ModuleType) -> None:
    needs.program("c++filt")
    assert gates.short([MANGLED]) == {MANGLED: "backward_kernel<__half, float, true>"}


def test_planted_bugs_are_in_the_sources(gates: ModuleType, root: Path) -> None:
    for bug in gates.PLANTS:
        assert not bug.old or (root / "csrc/se/cuda" / bug.file).read_text().count(bug.old) == 1, bug.name


def test_names_the_tool_that_is_missing(gates: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    with pytest.raises(SystemExit, match=r"no cuobjdump: install .* nvidia-cuda-cuobjdump \(make gates does\)"):
        gates.tool("cuobjdump")
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gates.py"])
    with pytest.raises(SystemExit, match="run make cuda first"):
        gates.main()

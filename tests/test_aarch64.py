"""The decisions of tools/aarch64.py: what is missing, what a wheel needs, and which libraries are stood in for."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def aarch64(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("aarch64")


METADATA = """\
Name: torch
Requires-Dist: filelock
Requires-Dist: sympy>=1.13.3
Requires-Dist: cuda-toolkit[cublas,cudart,cufft]==13.0.3; platform_system == "Linux"
Requires-Dist: pyyaml; extra == "pyyaml"
"""


def test_what_torch_needs(aarch64: ModuleType) -> None:
    assert aarch64.plain_requirements(METADATA) == ["filelock", "sympy>=1.13.3"]
    assert aarch64.runtime_requirement(METADATA) == "nvidia-cuda-runtime==13.0.*"
    assert aarch64.runtime_requirement("Requires-Dist: filelock\n") == ""  # a build for the CPU alone


def test_missing_programs_are_named_by_their_packages(aarch64: ModuleType) -> None:
    have = dict.fromkeys(aarch64.PROGRAMS, "/usr/bin/x")
    assert aarch64.lacking(have) is None
    lacks = {**have, "qemu-aarch64": None, "aarch64-linux-gnu-g++": None}
    assert aarch64.lacking(lacks) == "apt-get install g++-aarch64-linux-gnu qemu-user"


# As readelf -dVW --dyn-syms prints it.
READ = """\
 0x0000000000000001 (NEEDED)             Shared library: [libcublas.so.13]
 0x0000000000000001 (NEEDED)             Shared library: [libnccl.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
     5: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cublasCreate_v2@libcublas.so.13 (4)
     6: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.17 (2)
     7: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND ncclSend
     8: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND THPVariable_Wrap
     9: 0000000000001234    16 FUNC    GLOBAL DEFAULT   12 ncclMine
Version needs section '.gnu.version_r' contains 2 entries:
  000000: Version: 1  File: libcublas.so.13  Cnt: 1
  0x0010:   Name: libcublas.so.13  Flags: none  Version: 4
  0x0020: Version: 1  File: libc.so.6  Cnt: 1
  0x0030:   Name: GLIBC_2.17  Flags: none  Version: 2
"""


def test_stubs_have_the_symbols_that_are_asked_for(aarch64: ModuleType) -> None:
    cublas, nccl = aarch64.stubs(["libc.so.6"], [READ])
    assert (cublas.soname, nccl.soname) == ("libcublas.so.13", "libnccl.so.2")
    assert [symbol.name for symbol in cublas.symbols] == ["cublasCreate_v2"]
    assert "void cublasCreate_v2(void) { abort(); }" in cublas.source()
    assert cublas.script() == "libcublas.so.13 { global: cublasCreate_v2; };\n"
    assert [symbol.name for symbol in nccl.symbols] == ["ncclSend"]
    assert nccl.script() == ""
    assert aarch64.stubs(["libc.so.6", "libcublas.so.13", "libnccl.so.2"], [READ]) == []


def test_the_launcher_sets_variables_for_the_emulated_process_alone(aarch64: ModuleType) -> None:
    text = aarch64.launcher(Path("/s r/python3.11"), [Path("/a"), Path("/b")], [Path("/l")])
    assert text.startswith("#!/bin/sh\nexec qemu-aarch64 ")
    assert "-E PYTHONPATH=/a:/b " in text
    assert "-E LD_LIBRARY_PATH=/l " in text
    assert text.endswith("'/s r/python3.11' \"$@\"\n")

"""The rules that keep the parts apart: who may import or include whom, and tables that must agree."""

import re
import subprocess
import sys
from pathlib import Path

import needs
import pytest

FORBIDDEN_IN_KERNELS = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|aten|pybind11|Python\.h|bindings)')
SUFFIXES = {".py", ".pyx", ".pxd", ".pxi", ".pyi", ".cpp", ".cu", ".h", ".cuh", ".inl"}
MAX_LINES = 400


def sources(root: Path, *folders: str, suffixes: set[str] = SUFFIXES) -> list[Path]:
    """Source files below the folders, without what a build leaves there."""
    found = [path for folder in folders for path in (root / folder).rglob("*") if path.suffix in suffixes]
    generated = {path for path in found if path.suffix == ".cpp" and path.with_suffix(".pyx").exists()}
    return sorted(set(found) - generated)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("senet_fast", ("torch", "numpy", "senet_fast.se", "senet_fast.ids")),
        ("senet_fast.ids", ("torch", "numpy", "senet_fast.se")),
        pytest.param("senet_fast.fusion", ("torch._dynamo", "torch._inductor.config"), marks=pytest.mark.slow),
        ("senet_fast.cli", ("torch", "numpy", "matplotlib", "sklearn")),
    ],
)
def test_import_stays_light(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_halves_are_attributes() -> None:
    program = """
import sys, senet_fast
assert {"ids", "se"} <= set(dir(senet_fast))
assert senet_fast.ids.TWITTER.worker.width == 10 and "torch" not in sys.modules
assert senet_fast.se.FusedSE is senet_fast.FusedSE
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_kernels_know_no_torch_and_no_python(root: Path) -> None:
    files = [*sources(root, "csrc/se", "csrc/ids"), root / "csrc/system.h"]
    assert len(files) > 10
    for path in files:
        assert not FORBIDDEN_IN_KERNELS.search(path.read_text()), path


LINUX_ALONE = re.compile(
    r"""__linux__|\bmremap|\bMADV_|_COARSE\b|["']/(proc|sys)\b|\bO_PATH\b|\bF_OFD_|\bLINUX =|sys\.platform"""
)


def test_what_is_linux_alone_lies_behind_one_file(root: Path) -> None:
    """In each language; docs/design/ids.md says what stands in for it elsewhere."""
    folders = ("csrc/se/cpu", "csrc/ids", "csrc/bindings", "senet_fast/ids")
    found = {path.name for path in sources(root, *folders) if LINUX_ALONE.search(path.read_text())}
    assert found == {"_system.py"}
    assert LINUX_ALONE.search((root / "csrc/system.h").read_text())


def test_only_bindings_include_torch(root: Path) -> None:
    everywhere = {path for path in sources(root, "csrc") if re.search(r"#include <(torch|ATen|c10)/", path.read_text())}
    assert everywhere
    assert all((root / "csrc/bindings") in path.parents for path in everywhere)


@pytest.mark.parametrize(
    "name",
    ["guards", "inductor", "ops", "conv", "kept", "beside", "module", "reference", "activations", "decomposition"],
)
def test_core_imports_no_outer_layers(root: Path, name: str) -> None:
    text = (root / f"senet_fast/se/{name}.py").read_text()
    imports = re.findall(r"^\s*(?:from|import)\s+(senet_fast[\w.]*)(?:\s+import\s+(.*))?$", text, re.MULTILINE)
    allowed = {
        "ops": {"senet_fast.se.decomposition"},  # for TorchScript's exporter to ONNX
        # The first likewise; the second tells Inductor of the op where Dynamo traces a call.
        "conv": {"senet_fast.se.decomposition", "senet_fast.se.inductor"},
        "kept": {"senet_fast.se.conv"},
        "beside": {"senet_fast.se", *(f"senet_fast.se.{name}" for name in ("conv", "guards", "inductor", "kept"))},
        "inductor": {"senet_fast.se.guards"},
        "decomposition": {"senet_fast.se.reference"},  # what other exporters know no op for
        "guards": set(),
        "activations": set(),
        "reference": {"senet_fast.se.activations"},
        "module": {f"senet_fast.se.{name}" for name in ("activations", "guards", "ops", "reference")},
    }
    assert {module for module, _ in imports} <= allowed[name]
    assert not re.search(r"\b(fusion|adapters|models|demo)\b\s*import|import .*\b(fusion|adapters|models|demo)\b", text)


ROOMS = ("graph", "recognise", "verify", "run", "install")  # of fusion; each may import those in front of it


def test_rooms_of_fusion_import_one_way(root: Path) -> None:
    fusion = root / "senet_fast/fusion"
    assert {path.name for path in fusion.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*ROOMS}
    for at, room in enumerate(ROOMS):
        files = [*(fusion / room).rglob("*.py")]
        assert len(files) > 1
        for path in files:
            found = set(
                re.findall(r"^\s*(?:from|import)\s+senet_fast\.fusion\b\.?(\w*)", path.read_text(), re.MULTILINE)
            )
            assert found <= {*ROOMS[: at + 1]}, path


def test_ids_stand_alone(root: Path) -> None:
    for path in sources(root, "senet_fast/ids", suffixes={".py", ".pyx", ".pxd", ".pxi"}):
        text = path.read_text()
        assert not re.search(r"^\s*(?:from|import|cimport)\s+(torch|senet_fast\.se)\b", text, re.MULTILINE), path
        assert not re.search(r"^(?:from|import|cimport)\s+numpy\b", text, re.MULTILINE), (
            path
        )  # for annotations, or lazily


def test_package_and_benchmarks_import_no_tests(root: Path) -> None:
    files = sources(root, "senet_fast", "benchmarks", suffixes={".py", ".pyx"})
    for path in files:
        assert not re.search(r"^\s*(?:from|import)\s+\w*(tests|_testing|conftest)\b", path.read_text(), re.MULTILINE), (
            path
        )


def _rows(header: str) -> list[tuple[str, int, str]]:
    """name, number of arguments and default of each X( row of activations.h."""
    table = header[header.index("#define SENET_ACTIVATIONS") : header.index("namespace senet")]
    return [(name, int(n), d) for name, n, d in re.findall(r"^\s*X\((\w+), (\d+), ([\w.]+),", table, re.MULTILINE)]


def test_activation_tables_agree(root: Path) -> None:
    """C++ and Python have the same rows in the same order, with the same numbers of arguments and defaults."""
    needs.library("torch")
    from senet_fast.se.activations import ACTIVATIONS

    rows = _rows((root / "csrc/se/activations.h").read_text())
    python = []
    for row in ACTIVATIONS.values():
        defaults = list(row.arguments.values())
        python.append((row.name, len(defaults), defaults[0] if len(defaults) == 1 else None))
    assert [(name, n, None if d == "kRequired" else float(d)) for name, n, d in rows] == python


def test_composite_has_every_activation(root: Path) -> None:
    rows = _rows((root / "csrc/se/activations.h").read_text())
    cases = re.findall(r"case ActivationKind::(\w+):", (root / "csrc/bindings/composite.cpp").read_text())
    assert cases == [name for name, _, _ in rows]


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_wide_objects_share_no_functions(root: Path, tmp_path: Path, isa: str) -> None:
    """A weak function compiled for a wide instruction set could be linked into code that runs without it. At -O0
    more of them are left uninlined, and seen, than in the build.
    """
    compiler, nm = needs.program("g++"), needs.program("nm")
    built = tmp_path / f"{isa}.o"
    source = root / f"csrc/se/cpu/{isa}.cpp"
    flags = ["-std=c++20", "-O0", "-fPIC", "-Wno-psabi", f"-I{root / 'csrc'}"]
    subprocess.run([compiler, *flags, "-c", str(source), "-o", str(built)], check=True, capture_output=True)
    symbols = subprocess.run([nm, "-C", str(built)], check=True, capture_output=True, text=True).stdout
    assert f"senet::{isa}::" in symbols
    shared = re.findall(r"^[0-9a-f]+ [WVu] (.*)", symbols, re.MULTILINE)
    assert set(shared) <= {"DW.ref.__gxx_personality_v0"}  # a pointer


def test_files_stay_readable(root: Path) -> None:
    folders = ("csrc", "senet_fast", "benchmarks", "tools", "examples", "tests/se", "tests/ids", "tests/models")
    files = [*sources(root, *folders), root / "setup.py", *(root / "tests").glob("*.py")]
    lengths = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}

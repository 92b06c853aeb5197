"""The op in processes that only load what others saved: of Python, with one line or the library alone, and of C++."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import needs
import pytest
import torch
from torch import nn

from senet_fast import FusedSE
from senet_fast.commands import info

LIBRARY = str(info.library())
LOADERS = {
    "export": "torch.export.load('program.pt2').module()",
    "inductor": "torch._inductor.aoti_load_package('package.pt2')",
    "jit": "torch.jit.load('trace.pt')",
}
LINES = {"import": "import senet_fast.se", "library": f"torch.ops.load_library({LIBRARY!r})"}
TORCH_LIBRARIES = str(Path(torch.__file__).parent / "lib")


def python(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process, in the folder."""
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network in each form, an input of another batch than it was saved with, and eager's output."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), FusedSE(16, reduction=4, post_activation="relu"), nn.Flatten()).eval()
    x, other = torch.randn(2, 3, 6, 6), torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / "program.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "package.pt2"))
        torch.jit.trace(model, (x,)).save(folder / "trace.pt")
        torch.save((other, model(other)), folder / "tensors.pt")
    return folder


LOAD_AND_COMPARE = """
import sys, torch
{line}
x, expected = torch.load("tensors.pt")
with torch.no_grad():
    torch.testing.assert_close({loader}(x), expected)
print("senet_fast" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("line", LINES)
def test_one_line_is_enough(saved: Path, loader: str, line: str) -> None:
    done = python(LOAD_AND_COMPARE.format(line=LINES[line], loader=LOADERS[loader]), saved)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(line == "import")]


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS)
def test_without_it_torch_names_the_op(saved: Path, loader: str) -> None:
    done = python(LOAD_AND_COMPARE.format(line="import senet_fast", loader=LOADERS[loader]), saved)
    assert done.returncode != 0
    assert re.search(r"senet_fast(::|\.)squeeze_excite", done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", [("import", "library"), ("library", "import"), ("library", "library")])
def test_the_library_is_loaded_once(tmp_path: Path, order: tuple[str, str]) -> None:
    program = f"""
import torch
{LINES[order[0]]}
{LINES[order[1]]}
from senet_fast.se import _C
_C.select_isa(_C.isas()[0])  # of the library that has the ops
print(*{{line.split()[-1] for line in open("/proc/self/maps") if "libsenet_fast" in line}})
"""
    done = python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [LIBRARY]


@pytest.mark.slow
def test_the_library_may_be_preloaded(saved: Path) -> None:
    """As servers are told to; torch's libraries must be where the linker looks."""
    program = LOAD_AND_COMPARE.format(line="", loader=LOADERS["inductor"])
    done = python(program, saved, LD_PRELOAD=LIBRARY, LD_LIBRARY_PATH=TORCH_LIBRARIES)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_higher_derivatives_with_the_library_alone(tmp_path: Path) -> None:
    """Torch's engine refuses to run under Python's lock, which tracing holds; the library knows no Python."""
    program = f"""
import torch
{LINES["library"]}
ops, x, weight = torch.ops.senet_fast, torch.randn(2, 4, 3, requires_grad=True), torch.randn(4, 4)
y, saved = ops.squeeze_excite_forward(x.detach(), weight, excitation="one_fc")
arguments = y, saved, [True] + 5 * [False], x, weight
options = {{"excitation": "one_fc"}}
torch.library.opcheck(
    ops.squeeze_excite_backward.default, arguments, options, test_utils="test_aot_dispatch_dynamic"
)
"""
    done = python(program, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_library_has_no_python() -> None:
    nm = needs.program("nm")

    def undefined(path: str) -> list[str]:
        listed = subprocess.run([nm, "-D", "--undefined-only", path], capture_output=True, text=True, check=True)
        return re.findall(r"\b(_?Py\w+|\w*pybind11\w*|\w*THPVariable\w*)", listed.stdout)

    assert undefined(LIBRARY) == []
    assert undefined(sys.modules["senet_fast.se._C"].__file__ or "")


def test_the_path_is_told_without_torch(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from senet_fast.cli import main; main(['info', '--library'])"
    assert python(program, tmp_path).stdout == f"{root}/senet_fast/se/libsenet_fast.so\n"
    monkeypatch.setattr(info, "__file__", str(tmp_path / "senet_fast/commands/info.py"))
    with pytest.raises(FileNotFoundError, match=r"no .*senet_fast/se/libsenet_fast\.so: .* without its op"):
        info.library()


# ---- C++: examples/serve_cpp -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The program, built, and a model for it."""
    cmake = needs.program("cmake")
    folder, source = tmp_path_factory.mktemp("serve"), root / "examples/serve_cpp"
    commands = [
        [cmake, "-S", source, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"],
        [cmake, "--build", folder / "build"],
        [sys.executable, source / "export.py", folder],
    ]
    for command in commands:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=280
        )
        if "uses CUDA but I cannot find the CUDA" in done.stderr:
            pytest.skip("torch's CMake files ask for CUDA's toolkit")
        assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(program=folder / "build/serve", package=folder / "network.pt2", images=folder / "images.pt")


def serve(example: SimpleNamespace, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([example.program, *map(str, words)], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_cpp_computes_the_same(example: SimpleNamespace, tmp_path: Path) -> None:
    network = torch._inductor.aoti_load_package(str(example.package))
    torch.save(torch.randn(5, 1, 8, 8), tmp_path / "five.pt")
    for path, count in ((example.images, 3), (tmp_path / "five.pt", 5)):
        done = serve(example, LIBRARY, example.package, path)
        assert done.returncode == 0, done.stderr
        found = torch.tensor([[float(word) for word in line.split()] for line in done.stdout.splitlines()])
        assert found.shape == (count, 10)
        torch.testing.assert_close(found, network(torch.load(path)))


@pytest.mark.slow
def test_cpp_says_what_is_wrong(example: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    cases = [
        ((), 2, "usage: serve LIBRARY PACKAGE INPUT"),
        (
            (tmp_path / "none.so", example.package, example.images),
            1,
            "error: cannot load the op library: .*none.so: .*; expected what",
        ),
        ((tmp_path / "text.so", example.package, example.images), 1, "error: cannot load the op library: .*text.so: "),
        ((LIBRARY, tmp_path / "none.pt2", example.images), 1, "error: cannot read the package .*none.pt2; export.py"),
        ((LIBRARY, example.package, tmp_path / "none.pt"), 1, "error: cannot read the input .*none.pt; export.py"),
        # an op library that has not the op
        (("libm.so.6", example.package, example.images), 1, "error: the library 'libm.so.6' has no senet_fast op; "),
        ((LIBRARY, example.package, tmp_path / "larger.pt"), 1, r"(?s).*error: .*expected: 8, but got: 16"),
    ]
    torch.save(torch.randn(3, 1, 16, 16), tmp_path / "larger.pt")
    for words, code, message in cases:
        done = serve(example, *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert re.match(message, done.stderr), done.stderr
        assert "frame #" not in done.stderr

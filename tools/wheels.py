"""Build the wheels, and try each in a fresh environment where no compiler is on PATH: `make wheels`.

dist/torch-2.13 gets the wheel with the op, for the torch that runs this; dist/ids the one of the ID generators alone,
which compiles the op where it is wanted. Both are built from the source distribution, dist/*.tar.gz, and so try that.
`repair WHEEL FOLDER` and `smoke ids|op` are two steps of that by themselves, for what builds wheels elsewhere (cibuildwheel).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What torch and its compiler's runtime bring: a second copy would be a second team of threads.
NOT_BUNDLED = ("libtorch*.so*", "libc10*.so*", "libgomp.so.1", "libsenet_fast.so")

IDS = """
import senet_fast
from senet_fast import Snowflake
from senet_fast.ids import PythonSnowflake, TWITTER
ids = Snowflake(7)
drawn = [ids.next_id() for _ in range(10000)]
assert drawn == sorted(set(drawn)) and ids.decode(drawn[0]).worker_id == 7
assert "site-packages" in senet_fast.__file__, senet_fast.__file__
print("IDs work:", drawn[-1])
"""
OP = """
import torch
from senet_fast import FusedSE, SEBlock, fuse
block, x = SEBlock(16), torch.randn(2, 16, 7, 7, requires_grad=True)
fused = FusedSE.from_block(block)
torch.testing.assert_close(fused(x), block(x))
fused(x).sum().backward()
assert len(fuse(torch.nn.Sequential(block)).fused) == 1
assert len([line for line in open("/proc/self/maps") if "libgomp" in line and " r-xp " in line]) == 1
print("the op works, for torch", torch.__version__)
"""
OP_ALONE = "import senet_fast.se"


class Failure(Exception):
    """What was expected, and what was there."""


def run(command: Sequence[object], **settings: str) -> None:
    words = [str(word) for word in command]
    print("+", " ".join(words), file=sys.stderr, flush=True)
    subprocess.run(words, cwd=ROOT, env={**os.environ, **settings}, check=True)


class Environment:
    """A fresh virtual environment with a wheel; with torch, it sees the one of this interpreter, and its NumPy."""

    def __init__(self, folder: Path, wheel: Path, with_torch: bool) -> None:
        self.python = folder / "bin" / "python"
        venv.create(folder, with_pip=True)
        # not by `pip --python`: a new environment has to do with its own pip
        run([self.python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel])
        self.packages = next((folder / "lib").glob("python*/site-packages"))
        if with_torch:
            import torch

            (self.packages / "torch_of_the_builder.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")

    def start(self, *words: object, path: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.python), "-P", *map(str, words)]
        return subprocess.run(command, env={**environment, "PATH": path}, cwd="/", capture_output=True, text=True)

    def works(self, *words: object, path: str = "/nowhere") -> None:
        done = self.start(*words, path=path)
        if done.returncode != 0:
            raise Failure(f"{words} failed:\n{done.stdout}{done.stderr}")
        print(done.stdout, end="", flush=True)

    def refuses(self, *words: object, saying: Sequence[str]) -> None:
        done = self.start(*words, path="/nowhere")
        last = (done.stderr.splitlines() or [""])[-1]
        if done.returncode == 0 or not all(text in last for text in saying):
            raise Failure(f"{words} should fail with {saying}:\n{done.stdout}{done.stderr}")
        print("as it should:", last, flush=True)


def build(source: Path, to: Path, **settings: str) -> Path:
    """The repaired wheel, as the only one in `to`."""
    shutil.rmtree(to, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        run(
            [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source],
            **settings,
        )
        (raw,) = Path(folder).glob("*.whl")
        repair(raw, to)
    (wheel,) = to.glob("*.whl")
    return wheel


def repair(raw: Path, to: Path) -> None:
    excluded = [word for name in NOT_BUNDLED for word in ("--exclude", name)]
    run([sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "-w", to, raw])


def try_out(ids: Path, op: Path, release: str, rebuild: bool) -> None:
    """Each where it is to work, and where it is to say what is missing."""
    advice = "python -m senet_fast build"
    with tempfile.TemporaryDirectory() as folder:
        alone = Environment(Path(folder, "ids"), ids, with_torch=False)
        alone.works("-c", IDS)
        alone.refuses("-c", OP_ALONE, saying=["No module named 'torch'"])
        full = Environment(Path(folder, "op"), op, with_torch=True)
        full.works("-c", IDS)
        full.works("-c", OP)
        (full.packages / "senet_fast/se/built_for_torch.txt").write_text("1.13.0\n")
        full.refuses("-c", OP_ALONE, saying=["compiled for torch 1.13 ", f"this is torch {release}.", advice])
        full.refuses("-m", "senet_fast", "build", saying=["no C++ compiler"])
        beside = Environment(Path(folder, "ids-and-torch"), ids, with_torch=True)
        beside.refuses("-c", OP_ALONE, saying=["senet_fast.se._C", advice])
        if rebuild:
            full.works("-m", "senet_fast", "build", path=os.environ["PATH"])
            full.works("-c", OP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rebuild", action="store_true", help="also compile the op from an installed wheel's own sources"
    )
    steps = parser.add_subparsers(dest="step")
    step = steps.add_parser("repair", help="put a wheel that was built into a folder, with the tag of its platform")
    step.add_argument("wheel", type=Path)
    step.add_argument("folder", type=Path)
    step = steps.add_parser("smoke", help="use what is installed for the interpreter that runs this")
    step.add_argument("part", choices=("ids", "op"))
    options = parser.parse_args()
    if options.step == "repair":
        repair(options.wheel.resolve(), options.folder.resolve())
        return 0
    if options.step == "smoke":
        exec(IDS, {})
        if options.part == "op":
            exec(OP, {})
        return 0
    rebuild = options.rebuild
    import torch

    release = ".".join(torch.__version__.split(".")[:2])
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    pack = f"from setuptools import build_meta; build_meta.build_sdist({str(dist)!r})"
    run([sys.executable, "-c", pack])
    (source,) = dist.glob("*.tar.gz")
    ids = build(source, dist / "ids", SENET_FAST_SE="0")
    op = build(source, dist / f"torch-{release}")
    try_out(ids, op, release, rebuild)
    for wheel in (source, ids, op):
        print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: this command failed, its message is above: {' '.join(error.cmd)}")

"""One command on a machine with a GPU: `python tools/gpu_check.py`. Under 8 minutes, and nothing is downloaded.

It builds with CUDA for the GPUs it sees, runs the GPU's tests, runs every kernel under compute-sanitizer where there
is one, and measures: the table of `python -m benchmarks.gpu` in benchmarks/results grows with every case. A step that
fails does not stop the others; the last lines say what became of each, and the exit status is 1 if one failed or did
not begin for lack of time. `--resume` then leaves out what has passed, and the cases that are measured.
docs/gpu-checklist.md says what to tick. Needs torch with CUDA, nvcc, and the packages of the build and of the tests.

`--dry-run` is for machines without a GPU: it builds where nvcc is, collects the GPU's tests and rehearses the
measurements on the CPU with tiny tensors. Only launches are missing.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.sources import TESTED, fingerprint, may_be_kept  # noqa: E402

SECONDS = 460.0  # for all of it
MEASURED = 120.0  # of them for the measurements, at least
PASSED = ROOT / "build/gpu_check.json"  # the steps that have passed, for --resume
SANITIZERS = ("memcheck", "initcheck", "synccheck", "racecheck")
FILES = ("tests/se/test_cuda.py", "tests/se/test_cuda_ways.py")
TESTS = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES)


class Step(NamedTuple):
    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = MappingProxyType({})
    seconds: float = 600.0  # it is ended behind them
    beside: bool = False  # runs at the same time as the step before


def find(name: str) -> str | None:
    """A program of the CUDA toolkit, or of pip's packages of it, where setup.py finds nvcc too."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    of_pip = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"))
    folders = [os.environ.get("PATH", os.defpath), *(f"{home}/bin" for home in homes if home), *map(str, of_pip[-1:])]
    return shutil.which(name, path=os.pathsep.join(folders))


def steps(dry_run: bool, sanitizer: str | None, compiler: bool) -> list[Step]:
    """All but the measurements, which get the time that is left."""
    found = []
    if compiler:
        build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force")
        settings = {"SENET_FAST_CUDA": "1", "NVCC_APPEND_FLAGS": "-lineinfo"}  # source lines in the sanitizer's reports
        found.append(Step("build", build, settings))
    found.append(Step("tests", (*TESTS, "--collect-only") if dry_run else TESTS, seconds=240))
    if sanitizer and not dry_run:
        for place, tool in enumerate(SANITIZERS):
            command = (sanitizer, "--tool", tool, "--error-exitcode", "9", *TESTS, "-k", "variants")
            # without torch's cache every tensor is an allocation of its own, with ends that memcheck knows
            settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            found.append(Step(tool, command, settings, seconds=150, beside=place > 0))
    return found


def measurements(dry_run: bool, left: float, results: str | None, resume: bool) -> Step:
    command = [sys.executable, "-m", "benchmarks.gpu", "--seconds", f"{max(left - 60, 60):.0f}"]
    command += ["--dry-run"] if dry_run else []
    command += ["--resume"] if resume else []
    command += ["--results", results] if results else []
    return Step("measurements", tuple(command), seconds=max(left, MEASURED))


def end(process: "subprocess.Popen[str]") -> None:
    """With all that it has started: a grandchild would hold the pipe, and the GPU."""
    with contextlib.suppress(ProcessLookupError):  # all of it has ended already
        os.killpg(process.pid, signal.SIGKILL)


def run(together: Sequence[Step], left: float = SECONDS) -> list[str]:
    """Runs the steps at the same time, for `left` seconds at the most; what became of each. The words of one alone are
    shown as they come.
    """
    begin, running, outcomes = time.monotonic(), [], []
    kept, errors = (None, None) if len(together) == 1 else (subprocess.PIPE, subprocess.STDOUT)
    for step in together:
        print("+", " ".join(step.command), flush=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **step.environment}
        running.append(
            subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=environment,
                stdout=kept,
                stderr=errors,
                text=True,
                start_new_session=True,  # a process group of its own, for end()
            )
        )
    try:
        for step, process in zip(together, running, strict=True):
            limit = min(step.seconds, left)
            try:
                said, _ = process.communicate(timeout=max(1, limit - (time.monotonic() - begin)))
                outcome = "passed" if process.returncode == 0 else f"FAILED with status {process.returncode}"
            except subprocess.TimeoutExpired:
                end(process)
                said, _ = process.communicate()
                outcome = f"ENDED after {limit:.0f} s"
            if said:
                lines = said.splitlines()[-15 if outcome == "passed" else -200 :]
                print(f"---- {step.name}", *lines, sep="\n", flush=True)
            outcomes.append(f"{step.name:14} {outcome}, {time.monotonic() - begin:.0f} s")
    finally:
        for process in running:
            end(process)
    return outcomes


def passed_before(sources: str) -> list[str]:
    """The names of the steps that the last command passed; none, and said so, if the sources are others by now."""
    before = json.loads(PASSED.read_text()) if PASSED.exists() else {"sources": sources, "steps": []}
    return list(before["steps"]) if may_be_kept(before, sources, "every step runs") else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="everything but launches, on a machine without a GPU")
    parser.add_argument("--no-build", action="store_true", help="what is built already")
    parser.add_argument("--resume", action="store_true", help="what the last command has not done or not passed")
    parser.add_argument("--results", help="the folder of the table; default: benchmarks/results, or build of a dry run")
    given = parser.parse_args()
    begin = time.monotonic()

    def left() -> float:
        return SECONDS - (time.monotonic() - begin)

    sources = fingerprint(TESTED)
    passed = passed_before(sources) if given.resume else []
    sanitizer, compiler = find("compute-sanitizer"), bool(find("nvcc") or os.environ.get("SENET_FAST_NVCC"))
    outcomes = [f"{name:14} passed before" for name in passed]
    groups: list[list[Step]] = []
    for step in steps(given.dry_run, sanitizer, compiler and not given.no_build):
        groups += [] if step.beside else [[]]
        groups[-1] += [step] if step.name not in passed else []
    for group in filter(None, groups):
        if left() < MEASURED:
            outcomes += [f"{step.name:14} NOT BEGUN for lack of time: --resume" for step in group]
            continue
        said = run(group, left())
        outcomes += said
        passed += [step.name for step, line in zip(group, said, strict=True) if line[15:].startswith("passed")]
        if not given.dry_run:  # whose steps do less
            PASSED.parent.mkdir(exist_ok=True)
            PASSED.write_text(json.dumps({"sources": sources, "steps": passed}) + "\n")
    outcomes += run([measurements(given.dry_run, left(), given.results, given.resume)])
    if not compiler and not given.no_build:
        outcomes.append("build          not done: no nvcc")
    if sanitizer is None or given.dry_run:
        outcomes.append(f"{'sanitizer':14} not run: {'no compute-sanitizer' if sanitizer is None else 'a dry run'}")
    print(f"\n{time.monotonic() - begin:.0f} s", *outcomes, sep="\n")
    failed = any(word in outcome for outcome in outcomes for word in ("FAILED", "ENDED", "NOT BEGUN"))
    return 1 if failed or (not given.dry_run and not compiler and not given.no_build) else 0


if __name__ == "__main__":
    sys.exit(main())

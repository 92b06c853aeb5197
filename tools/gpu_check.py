"""One command on a machine with a GPU: `python tools/gpu_check.py`.

It builds with CUDA, runs the GPU's tests, runs part of them under compute-sanitizer where there is one, and prints
a table of times beside eager PyTorch and a copy. It works offline with torch, nvcc and the build's and tests' packages.
`--dry-run` does all but launch kernels: it builds, collects the tests, and runs the table's code on the CPU with small
shapes. docs/gpu-checklist.md says what to tick.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# name, B, K, H = W, R
SHAPES = [
    ("ResNet-50 stage 1", 32, 256, 56, 16),
    ("ResNet-50 stage 1", 256, 256, 56, 16),
    ("ResNet-50 stage 2", 32, 512, 28, 32),
    ("ResNet-50 stage 3", 32, 1024, 14, 64),
    ("ResNet-50 stage 4", 1, 2048, 7, 128),
    ("ResNet-50 stage 4", 32, 2048, 7, 128),
    ("ResNet-50 stage 4", 256, 2048, 7, 128),
    ("EfficientNet-B4", 32, 48, 190, 12),
]
COLD_BYTES = 300 << 20  # more than any L2


def run(*command: object, **environment: str) -> None:
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, **environment})


def check(dry_run: bool) -> None:
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force", SENET_FAST_CUDA="1")
    tests = [sys.executable, "-m", "pytest", "-q", "tests/se/test_cuda.py"]
    run(*tests, *(["--collect-only"] if dry_run else []), PYTHONPATH=str(ROOT))
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None or dry_run:
        print("compute-sanitizer was not run")
        return
    for tool in ("memcheck", "initcheck", "synccheck"):
        arguments = [sanitizer, "--tool", tool, "--error-exitcode", "1"]
        run(*arguments, *tests, "-k", "layouts_and_types and nchw and float16", PYTHONPATH=str(ROOT))


def microseconds(bodies: list[Callable[[], object]], gpu: bool) -> float:
    """The median time of a body, each with tensors of its own, replayed one behind the other from a CUDA graph."""
    import time

    import torch

    def all_of_them() -> None:
        for body in bodies:
            body()

    all_of_them()
    if not gpu:
        begin = time.perf_counter()
        all_of_them()
        return (time.perf_counter() - begin) / len(bodies) * 1e6
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # what is made at the first call is made outside of the graph
        all_of_them()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_of_them()
    times = []
    for _ in range(15):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(5):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / 5 / len(bodies))
    return statistics.median(times)


def table(dry_run: bool) -> None:
    import torch

    from senet_fast.se import reference, squeeze_excite

    device = "cpu" if dry_run else "cuda"
    print(f"torch {torch.__version__}, {device if dry_run else torch.cuda.get_device_name()}")
    print(
        f"{'shape':32} {'layout':14} {'what':18} {'us':>8} {'GB/s':>7} {'copy us':>8} {'eager us':>9} {'eager/us':>8}"
    )
    for name, B, K, side, R in SHAPES:
        if dry_run:
            B, K, side = 1, 8, 7
        for form in (torch.contiguous_format, torch.channels_last):
            for what, cold in (("cold", True), ("hot", False), ("epilogue, cold", True)):
                if dry_run and what == "cold":
                    continue
                tensor_bytes = B * K * side * side * 2
                sets = 1 if dry_run or not cold else max(2, COLD_BYTES // (3 * tensor_bytes))
                epilogue = what.startswith("epilogue")

                def made() -> torch.Tensor:
                    return (torch.randn(B, K, side, side, device=device) + 0.2).bfloat16().to(memory_format=form)  # noqa: B023

                xs = [made() for _ in range(sets)]
                options = [{"residual": made(), "post_activation": "relu"} if epilogue else {} for _ in range(sets)]
                weights = {
                    "fc1_weight": torch.randn(R, K, device=device).bfloat16() / K**0.5,
                    "fc2_weight": torch.randn(K, R, device=device).bfloat16() / R**0.5,
                }

                def bodies(function: Callable[..., object]) -> list[Callable[[], object]]:
                    return [lambda x=x, o=o: function(x, **weights, **o) for x, o in zip(xs, options, strict=True)]  # noqa: B023

                with torch.no_grad():
                    ours = microseconds(bodies(squeeze_excite), not dry_run)
                    eager = microseconds(bodies(reference.squeeze_excite), not dry_run)
                    copy = microseconds([lambda x=x: x.clone() for x in xs], not dry_run)
                passes = 3 if epilogue else 2
                shape = f"{name} {B}x{K}x{side}x{side}"
                layout = "channels_last" if form == torch.channels_last else "NCHW"
                gigabytes = passes * tensor_bytes / ours / 1e3
                print(
                    f"{shape:32} {layout:14} {what:18} {ours:8.1f} {gigabytes:7.0f} {copy:8.1f} {eager:9.1f} "
                    f"{eager / ours:8.2f}",
                    flush=True,
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="everything but launches, on a machine without a GPU")
    parser.add_argument("--table", action="store_true", help="the table alone, of what is built")
    given = parser.parse_args()
    if not given.table:
        check(given.dry_run)
    table(given.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Plant one bug at a time in the GPU's kernels and show what notices it: `python mutate.py [words of its name]`.

Each is looked for by the plain test, the thread sanitizer, then the address sanitizer. Exits 1 if one escapes all three.
"""
# ruff: noqa: E501

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
EVERY = "3"


class Mutation(NamedTuple):
    name: str
    file: str  # of csrc/se/cuda
    old: str
    new: str


MUTATIONS = [
    Mutation("no barrier after a job", "tickets.cuh", "    work(job_of(ticket, t));\n    __syncthreads();", "    work(job_of(ticket, t));"),
    Mutation("the next ticket in the place of this one", "tickets.cuh", "words.drawn[turn ^ 1] = add", "words.drawn[turn] = add"),
    Mutation("no barrier before a tile arrives", "tickets.cuh", "int image) {\n  __syncthreads();\n  if (threadIdx.x == 0) words.last", "int image) {\n  if (threadIdx.x == 0) words.last"),
    Mutation("the last tile is known without a barrier", "tickets.cuh", "== t.tiles - 1;\n  __syncthreads();", "== t.tiles - 1;"),
    Mutation("tiles arrive without order", "tickets.cuh", "words.last = add_acquire_release(t.counters + kHeaderCounters + image, 1)", "words.last = add_relaxed(t.counters + kHeaderCounters + image, 1)"),
    Mutation("published before all threads have joined", "tile.cuh", "out(from + c, sums[c]);\n    __syncthreads();", "out(from + c, sums[c]);"),
    Mutation("published without order", "tickets.cuh", "add_release(t.counters + kHeaderCounters + image, 1)", "add_relaxed(t.counters + kHeaderCounters + image, 1)"),
    Mutation("scale waits for the tiles, not for the join", "tickets.cuh", "+ image) <= t.tiles) pause();\n  }\n  __syncthreads();\n}\n\n// Begins", "+ image) < t.tiles) pause();\n  }\n  __syncthreads();\n}\n\n// Begins"),
    Mutation("scale does not wait", "tickets.cuh", "  if (threadIdx.x == 0) {\n    while", "  if (threadIdx.x == 1000) {\n    while"),
    Mutation("no barrier behind the wait", "tickets.cuh", "<= t.tiles) pause();\n  }\n  __syncthreads();\n}\n\n// Begins", "<= t.tiles) pause();\n  }\n}\n\n// Begins"),
    Mutation("scale before squeeze in the order of tickets", "tickets.cuh", "Phase::first, static_cast<int>(q) + t.lag", "Phase::first, static_cast<int>(q)"),
    Mutation("counters stay as they are", "tickets.cuh", "t.counters[kHeaderCounters + i] = 0;", ";"),
    Mutation("blocks leave without order", "tickets.cuh", "words.last = add_acquire_release(t.counters + 1, 1)", "words.last = add_relaxed(t.counters + 1, 1)"),
    Mutation("weights do not wait for the images", "tickets.cuh", "image < t.images; image += blockDim.x) {\n    while", "image < 0; image += blockDim.x) {\n    while"),
    Mutation("no barrier before groups of rows are added", "tile.cuh", "  if (groups == 1) return;\n  __syncthreads();", "  if (groups == 1) return;"),
    Mutation("no barrier before warps are added", "tile.cuh", "  if (warps <= 1) return;\n  __syncthreads();", "  if (warps <= 1) return;"),
    Mutation("the second channel of a vector gets the first's gate", "tile.cuh", "(rest + j >= columns)", "(rest + j > columns)"),
    Mutation("the elements behind the last vector are left out", "tile.cuh", "      one_by_one(head + vectors * n, tile.columns);\n", ""),
    Mutation("vectors begin too early", "tile.cuh", "(before - static_cast<int>(at)) & (n - 1)", "(before + static_cast<int>(at)) & (n - 1)"),
    Mutation("the last row is left out", "tile.cuh", "for (int row = 0; c < tile.channels && row < tile.rows; ++row)", "for (int row = 0; c < tile.channels && row < tile.rows - 1; ++row)"),
    Mutation("half of a warp's sum", "device.cuh", "for (int offset = lanes >> 1;", "for (int offset = lanes >> 2;"),
    Mutation("a row too many is read", "device.cuh", "weight[(r < rows ? r : 0) * stride + m]", "weight[r * stride + m]"),
    Mutation("no barrier between the squeezed and fc1", "forward.cuh", "two_fc) return;\n    __syncthreads();", "two_fc) return;"),
    Mutation("no barrier between the gates and scale", "forward.cuh", "      excite(job.image, tile);\n      __syncthreads();", "      excite(job.image, tile);"),
    Mutation("no barrier before the gates' bias", "forward.cuh", "[&](int c, A z) { channels[c] = z; });\n    }\n    __syncthreads();", "[&](int c, A z) { channels[c] = z; });\n    }"),
    Mutation("saved by every tile of a channel's", "forward.cuh", "l.p.saved && tile.part == 0 ?", "l.p.saved ?"),
    Mutation("no barrier between gradients of gates and fc2", "backward.cuh", "two_fc) return;\n    __syncthreads();", "two_fc) return;"),
    Mutation("gates without a barrier", "backward.cuh", "+ A(l.p.epilogue.add_one);\n    }\n    __syncthreads();", "+ A(l.p.epilogue.add_one);\n    }"),
    Mutation("taps reach past the last channel", "backward.cuh", "int t = last < K ? 0 : last - K + 1;", "int t = last < K ? 0 : last - K;"),
    Mutation("a row of weights too many", "backward.cuh", "i < kWeightRows && first + i < M; ++i", "i < kWeightRows && first + i <= M; ++i"),
]  # fmt: skip


def notices(tree: Path, kind: str) -> str:
    """What the test of this kind says: '' if nothing is wrong."""
    made = subprocess.run(
        ["make", f"build/emulate/kernels_test.{kind}", "CXX=g++ -DSENET_FEW_TYPES", "emulate_plain=-O1"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise SystemExit(made.stderr)
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    try:
        done = subprocess.run(
            [f"build/emulate/kernels_test.{kind}", EVERY],
            cwd=tree,
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
        )
    except subprocess.TimeoutExpired:
        return "never ends"
    if done.returncode == 0:
        return ""
    text = done.stdout + done.stderr
    known = ("data race", "heap-buffer-overflow", "deadlock", "different barriers", "not aligned", "other bits")
    return next((word for word in known if word in text), "wrong values" if "FAILED" in text else f"{done.returncode}")


def main() -> int:
    chosen = [m for m in MUTATIONS if all(word in m.name for word in sys.argv[1:])]
    escaped = 0
    for mutation in chosen:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder)
            for name in ("csrc", "tests/csrc"):
                shutil.copytree(ROOT / name, tree / name)
            shutil.copy(ROOT / "Makefile", tree)
            path = tree / "csrc/se/cuda" / mutation.file
            text = path.read_text()
            if text.count(mutation.old) != 1:
                raise SystemExit(f"{mutation.name}: {text.count(mutation.old)} places in {mutation.file}; expected 1")
            path.write_text(text.replace(mutation.old, mutation.new))
            found = next(
                ((kind, said) for kind in ("plain", "thread", "memory") if (said := notices(tree, kind))), None
            )
        escaped += found is None
        print(f"{mutation.name:55} {found[0] + ': ' + found[1] if found else 'ESCAPED'}", flush=True)
    print(f"{len(chosen) - escaped} of {len(chosen)} noticed")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())

"""Plant one bug at a time in the GPU's kernels and show what notices it: `python mutate.py [words of its name or test]`.

Each is looked for by the plain test, the thread sanitizer, then the address sanitizer; what is likely a race by the thread
sanitizer first. The first failure ends a test. As many at a time as there are processors. Then the bugs of the binding, by
the tests on the stand-in for a device, whose CPU kernels are those of the last build. Exits 1 if one escapes.
"""
# ruff: noqa: E501

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
EVERY = "3"
KINDS = ("plain", "thread", "memory")
RACES = ("barrier", "order", "wait", "complete", "before", "every")  # words in the names of what is likely a race
SECONDS = 1500  # also where other programs take the processors
STAND_IN = "stand_in"
UNCOMPILED = "the stand-in could not be compiled"  # which shows nothing about a bug
KNOWN = (
    *("data race", "heap-buffer-overflow", "deadlock", "different barriers", "not aligned", "other bits", "emulator:"),
    *("runtime error", "Sanitizer", "FAILED"),
)


class Mutation(NamedTuple):
    name: str
    file: str  # of csrc/se/cuda, or bindings/...
    old: str
    new: str
    where: str = ""  # the test, where the file does not say it

    @property
    def path(self) -> str:
        return f"csrc/{self.file}" if self.file.startswith("bindings/") else f"csrc/se/cuda/{self.file}"

    @property
    def test(self) -> str:
        if self.where:
            return self.where
        if self.file in ("bindings/cuda.cpp", "launch.cu", "counters.cu"):
            return STAND_IN
        return "clusters" if self.file.startswith("cluster") else "tickets"

    @property
    def kinds(self) -> tuple[str, ...]:
        race = any(word in self.name for word in RACES)
        return tuple(sorted(KINDS, key=lambda kind: kind != "thread")) if race else KINDS


MUTATIONS = [
    Mutation("no barrier after a job", "tickets.cuh", "      work(job_of(ticket, t));\n    }\n    __syncthreads();", "      work(job_of(ticket, t));\n    }"),
    Mutation("the next ticket in the place of this one", "tickets.cuh", "words.drawn[drawn == words.drawn] = next", "*drawn = next"),
    Mutation("no barrier before a tile arrives", "tickets.cuh", "int image) {\n  __syncthreads();\n  if (threadIdx.x == 0) words.last", "int image) {\n  if (threadIdx.x == 0) words.last"),
    Mutation("the last tile is known without a barrier", "tickets.cuh", "== t.tiles - 1;\n  __syncthreads();", "== t.tiles - 1;"),
    Mutation("tiles arrive without order", "tickets.cuh", "words.last = add_acquire_release(t.counters + kHeaderCounters + image, 1)", "words.last = add_relaxed(t.counters + kHeaderCounters + image, 1)"),
    Mutation("published before all threads have joined", "sums.cuh", "out(from + c, sums[c]);\n    __syncthreads();", "out(from + c, sums[c]);"),
    Mutation("published without order", "tickets.cuh", "add_release(t.counters + kHeaderCounters + image, 1)", "add_relaxed(t.counters + kHeaderCounters + image, 1)"),
    Mutation("scale waits for the tiles, not for the join", "tickets.cuh", "+ image) <= t.tiles) pause();\n  }\n  __syncthreads();\n}\n\n// Begins", "+ image) < t.tiles) pause();\n  }\n  __syncthreads();\n}\n\n// Begins"),
    Mutation("scale does not wait", "tickets.cuh", "  if (threadIdx.x == 0) {\n    while", "  if (threadIdx.x == 1000) {\n    while"),
    Mutation("no barrier behind the wait", "tickets.cuh", "<= t.tiles) pause();\n  }\n  __syncthreads();\n}\n\n// Begins", "<= t.tiles) pause();\n  }\n}\n\n// Begins"),
    Mutation("scale before squeeze in the order of tickets", "tickets.cuh", "Phase::first, static_cast<int>(q) + t.lag", "Phase::first, static_cast<int>(q)"),
    Mutation("counters stay as they are", "tickets.cuh", "t.counters[kHeaderCounters + i] = 0;", ";"),
    Mutation("blocks leave without order", "tickets.cuh", "words.last = add_acquire_release(t.counters + 1, 1)", "words.last = add_relaxed(t.counters + 1, 1)"),
    Mutation("weights do not wait for the images", "tickets.cuh", "image < t.images; image += blockDim.x) {\n    while", "image < 0; image += blockDim.x) {\n    while"),
    Mutation("no barrier before groups of rows are added", "sums.cuh", "  if (groups == 1) return;\n  __syncthreads();", "  if (groups == 1) return;"),
    Mutation("no barrier before warps are added", "sums.cuh", "  if (warps <= 1) return;\n  __syncthreads();", "  if (warps <= 1) return;"),
    Mutation("the second channel of a vector gets the first's gate", "tile.cuh", "(rest + j >= columns)", "(rest + j > columns)"),
    Mutation("the elements behind the last vector are left out", "sums.cuh", "      one_by_one(head + vectors * n, tile.columns);\n", ""),
    Mutation("vectors begin too early", "sums.cuh", "(before - static_cast<int>(at)) & (n - 1)", "(before + static_cast<int>(at)) & (n - 1)"),
    Mutation("the last row is left out", "sums.cuh", "for (int row = 0; c < tile.channels && row < tile.rows; ++row)", "for (int row = 0; c < tile.channels && row < tile.rows - 1; ++row)"),
    Mutation("rows behind the last are added", "sums.cuh", "        if (at[i] < rows) {", "        if (true) {"),
    Mutation("rows behind the last are read", "sums.cuh", "at[i] < rows ? at[i] : row, c", "at[i], c"),
    Mutation("one row of four is left out", "sums.cuh", "row += kAhead * groups", "row += (kAhead + 1) * groups"),
    Mutation("vectors behind the last are added", "sums.cuh", "          if (vector[i] < vectors) {", "          if (true) {"),
    Mutation("vectors behind the last are read", "sums.cuh", "(vector[i] < vectors ? vector[i] : v) * n", "vector[i] * n"),
    Mutation("factors of the row before", "sums.cuh", "factors ? factors[row] : A(1)", "factors ? factors[row > 0 ? row - 1 : 0] : A(1)"),
    Mutation("elements behind the last are read", "tile.cuh", "load<n>(inside[i] ? at[i] : at[0])", "load<n>(at[i])"),
    Mutation("half of a warp's sum", "device.cuh", "for (int offset = lanes >> 1;", "for (int offset = lanes >> 2;"),
    Mutation("a row too many is read", "device.cuh", "widen(weight[(r < rows ? r : 0) * stride + m])", "widen(weight[r * stride + m])"),
    Mutation("no barrier between the squeezed and fc1", "forward.cuh", "two_fc) return;\n    __syncthreads();", "two_fc) return;"),
    Mutation("no barrier between the gates and scale", "forward.cuh", "      excite(job.image, tile);\n      __syncthreads();", "      excite(job.image, tile);"),
    Mutation("no barrier before the gates' bias", "forward.cuh", "[&](int c, int, A z) { channels[c] = z; });\n    __syncthreads();", "[&](int c, int, A z) { channels[c] = z; });"),
    Mutation("saved by every tile of a channel's", "forward.cuh", "channels[c], tile.part == 0)", "channels[c], true)"),
    Mutation("no barrier between gradients of gates and fc2", "backward.cuh", "two_fc) return;\n    __syncthreads();", "two_fc) return;"),
    Mutation("gates without a barrier", "backward.cuh", "      parts.compute_gates(job.image, tile, gates);\n      __syncthreads();", "      parts.compute_gates(job.image, tile, gates);"),
    Mutation("taps reach past the last channel", "backward_parts.cuh", "int t = last < K ? 0 : last - K + 1;", "int t = last < K ? 0 : last - K;"),
    Mutation("y is added to x * s", "backward_parts.cuh", "b.call.p.from_y ? A(0) : u * gates[c[j]]", "u * gates[c[j]]"),
    Mutation("y is left out", "backward_parts.cuh", "if (residual) v += A(widen(loaded.residual[j]));", "if (residual && !b.call.p.from_y) v += A(widen(loaded.residual[j]));"),
    Mutation("a row of weights too many", "weights.cuh", "i < kWeightRows && first + i < M; ++i", "i < kWeightRows && first + i <= M; ++i"),
    Mutation("the sums of a vector's two channels are exchanged", "sums.cuh", "v * n >= low ? first[v] : second[v]", "v * n >= low ? second[v] : first[v]"),
    Mutation("the elements before the first vector are left out", "sums.cuh", "c == 0 && i < head; i += lanes", "c == 0 && i < 0; i += lanes"),
    Mutation("the elements behind the last are added to each channel", "sums.cuh", "c == channels - 1 && i < run - tail", "i < run - tail"),
    Mutation("no barrier between vectors and channels of a run", "sums.cuh", "      ends[end < head ? end : n + end - tail] = out[0];\n    }\n    __syncthreads();", "      ends[end < head ? end : n + end - tail] = out[0];\n    }"),
    Mutation("no barrier between rounds of a run", "sums.cuh", "    if (from + most < tile.channels) __syncthreads();\n", "", "clusters"),
    Mutation("gates of the round's first channel for all of a run", "sums.cuh", "for (int j = 0; j < n; ++j) channel[j] += from;", "for (int j = 0; j < n; ++j) channel[j] += 0;", "clusters"),
    Mutation("the room for a run is taken as larger than it is", "plan.h", "room.vectors = static_cast<int>((scratch - 2 * items) / 2);", "room.vectors = static_cast<int>(scratch);", "clusters"),
    Mutation("a run is summed before its last vectors are there", "sums.cuh", "ready(begin + head + ((last < vectors ? last : vectors - 1) + 1) * n);", "ready(begin + head + (v + 1) * n);", "clusters"),
    # the cluster kernels
    Mutation("barriers are not initialised before copies count on them", "cluster.cuh", "      publish_barriers();\n    }\n    __syncthreads();\n    cluster_arrive();", "      publish_barriers();\n    }\n    cluster_arrive();"),
    Mutation("nobody waits until its peers have started", "cluster.cuh", "    if (turn == 0) cluster_wait();", "    if (turn == 1000) cluster_wait();"),
    Mutation("a block with no slice leaves without the wait", "cluster.cuh", "if (rank >= members) return cluster_wait();", "if (rank >= members) return;"),
    Mutation("no barrier between two turns", "cluster.cuh", "      __syncthreads();\n      if (threadIdx.x == 0) {\n        expect(from_all_barrier()", "      if (threadIdx.x == 0) {\n        expect(from_all_barrier()"),
    Mutation("too few bytes of the shared vectors are counted", "cluster.cuh", "members * count * cut_.space.out_width * 4)", "(members - (members > 1)) * count * cut_.space.out_width * 4)"),
    Mutation("too many bytes of the shared vectors are counted", "cluster.cuh", "members * count * cut_.space.out_width * 4)", "(members + 1) * count * cut_.space.out_width * 4)"),
    Mutation("too few bytes from slices with the same channels", "cluster.cuh", "image_.parts * count * fours_of(owned) * 16", "count * fours_of(owned) * 16"),
    Mutation("too few bytes of the gates", "cluster.cuh", "count * fours_ * 16)", "count * fours_of(owned) * 16)"),
    Mutation("the wrong parity of what all share", "cluster.cuh", "from_all_barrier(), turn >> 1 & 1", "from_all_barrier(), turn & 1"),
    Mutation("one place for what all share, not two", "cluster.cuh", "(((turn & 1) * members + member)", "((0 * members + member)"),
    Mutation("one barrier for what all share, not two", "cluster.cuh", "return barrier(turn & 1); }", "return barrier(0); }"),
    Mutation("shared vectors are not waited for", "cluster.cuh", "    wait_for_peers(from_all_barrier(), turn >> 1 & 1);\n", ""),
    Mutation("sums of parts are not waited for", "cluster.cuh", "    wait_for_peers(parts_barrier(), turn & 1);\n", ""),
    Mutation("gates are not waited for", "cluster.cuh", "    wait_for_peers(spread_barrier(), turn & 1);\n", ""),
    Mutation("a sum begins before its chunk is there", "cluster.cuh", "      while (seen < end) {", "      while (seen + 64 < end) {"),
    Mutation("a chunk is awaited with the parity of the next turn", "cluster.cuh", "member.cut_.by_chunk)), member.turn & 1)", "member.cut_.by_chunk)), ~member.turn & 1)"),
    Mutation("a chunk is filled again before all have read it", "cluster.cuh", "      chunk(chunk_of(k), k * cut_.chunk);\n      __syncthreads();", "      chunk(chunk_of(k), k * cut_.chunk);"),
    Mutation("a chunk is filled again one too early", "cluster.cuh", "if (k > 0) load(i, next, k - 1);", "load(i, next, k);"),
    Mutation("the ends of a slice are filled before it is read", "cluster.cuh", "    for (int k = 0; k < chunks; ++k) {\n      wait(arrival(i, k), turn & 1);", "    if (next < cut_.images) load_ends(i, next);\n    for (int k = 0; k < chunks; ++k) {\n      wait(arrival(i, k), turn & 1);"),
    Mutation("the elements behind the last vector do not arrive", "cluster.cuh", "e < elements_; e += 32) to[e] = from[e];", "e < vectors.end; e += 32) to[e] = from[e];"),
    Mutation("a copy reads past the slice", "cluster.cuh", "return at < end ? at : end;", "return at;"),
    Mutation("the next images' chunk is that of the same place in this turn", "cluster.cuh", "next = next_ + i;", "next = next_;"),
    Mutation("no barrier behind the hidden layer", "cluster.cuh", "      all(i)[r] = made(i, r, sum);\n    }\n    __syncthreads();", "      all(i)[r] = made(i, r, sum);\n    }"),
    Mutation("channels of another owner", "cluster.cuh", "4 * (vectors * part / parts) + c", "4 * (vectors / parts * part) + c"),
    Mutation("the sum is not complete before parts are sent", "cluster_forward.cuh", "m.scratch(), m.ready(i));\n      __syncthreads();", "m.scratch(), m.ready(i));"),
    Mutation("the shares of the hidden layer are not complete before they are sent", "cluster_forward.cuh", "m.out(i)[r] = sum; });\n    __syncthreads();", "m.out(i)[r] = sum; });"),
    Mutation("no barrier between the gates and scale in a cluster", "cluster_forward.cuh", "m.gates(i))[c] = gate;\n    }\n    __syncthreads();", "m.gates(i))[c] = gate;\n    }"),
    Mutation("every block saves the hidden layer", "cluster_forward.cuh", "sum, m.rank == 0)", "sum, true)"),
    Mutation("gates of the chunk's first channel for all chunks", "cluster_forward.cuh", "m.gates(i) + chunk.channel - m.tile.channel", "m.gates(i)"),
    Mutation("gates without a barrier in a cluster", "cluster_backward.cuh", "m.gates(i));\n    __syncthreads();\n    for", "m.gates(i));\n    for"),
    Mutation("grad_v is not kept", "cluster_backward.cuh", "sum<true>(n, m.tile", "sum<false>(n, m.tile"),
    Mutation("every block writes the hidden layer's gradients", "cluster_backward.cuh", "if (m.rank == 0) {", "if (true) {"),
    Mutation("no barrier between the images of mixed sums", "cluster_backward.cuh", "out(c, i, mixed[c * kImages + i]);\n    }\n    __syncthreads();", "out(c, i, mixed[c * kImages + i]);\n    }"),
    # the binding
    Mutation("the guard is that of the first device", "bindings/cuda.cpp", "guard_(x.device())", "guard_(c10::Device(x.device().type(), 0))"),
    Mutation("the default stream", "bindings/cuda.cpp", "getStream(x_.device()).native_handle()", "getDefaultStream(x_.device()).native_handle()"),
    Mutation("half the scratch", "launch.cu", "plans.scratch_bytes = counted.bytes();", "plans.scratch_bytes = counted.bytes() / 2;"),
    Mutation("a failed question counts as an answer", "launch.cu", "  if (ask.answered()) known[key] = plan;", "  known[key] = plan;"),
    Mutation("counters are trusted after a launch that failed", "launch.cu", "  if (error && counters) distrust_counters(on);\n", ""),
    Mutation("an error is left behind", "launch.cu", "  cudaGetLastError();\n  return cudaGetErrorString(error);", "  return cudaGetErrorString(error);"),
    Mutation("streams share their counters", "counters.cu", "std::tie(device, stream, recording) < std::tie(other.device, other.stream, other.recording)", "std::tie(device, recording) < std::tie(other.device, other.recording)"),
    Mutation("devices share their counters", "counters.cu", "std::tie(device, stream, recording) < std::tie(other.device, other.stream, other.recording)", "std::tie(stream, recording) < std::tie(other.stream, other.recording)"),
    Mutation("graphs use their stream's counters", "counters.cu", "return recording_of(stream, user.recording, graph);", "const cudaError_t error = recording_of(stream, user.recording, graph);\n    user.recording = 0;\n    return error;"),
    Mutation("counters are not zero", "counters.cu", "cudaMemsetAsync(block.begin, 0, sizeof(unsigned)", "cudaMemsetAsync(block.begin, 0x55, sizeof(unsigned)"),
    Mutation("an allocation is part of the recording", "counters.cu", "    const Unrecorded unrecorded;\n", ""),
    Mutation("counters do not come back from a graph that ended", "counters.cu", "      unused_.push_back({loan.user.device, loan.block});\n      const auto", "      const auto"),
    Mutation("counters are not released at exit", "counters.cu", "    for (const Owned& owned : all_) cudaFree(owned.block.begin);\n", ""),
]  # fmt: skip


def make(tree: Path, *targets: str) -> None:
    """The emulator's objects are the same for all mutations: what is made once in a tree stays."""
    command = ["make", *targets, "CXX=g++ -DSENET_FEW_TYPES", "emulate_plain=-O1"]
    made = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(made.stderr)


def notices(tree: Path, test: str, kind: str) -> str:
    """What the test of this kind says first: '' if nothing is wrong."""
    if test == STAND_IN:
        tests = [f"tests/{name}.py" for name in ("csrc/cuda/stand_in/binding_tests", "se/test_cuda")]
        command = [sys.executable, "tests/csrc/cuda/stand_in", "-x", "-q", "-n", "0", *tests]
    else:
        command = [f"build/emulate/{test}_test.{kind}", EVERY]
        make(tree, command[0])
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    running = subprocess.Popen(
        command,
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    timer = threading.Timer(SECONDS, lambda: os.killpg(running.pid, signal.SIGKILL))
    timer.start()
    assert running.stdout
    said = ""
    for line in running.stdout:
        if UNCOMPILED in line:
            said = UNCOMPILED
        elif test == STAND_IN:
            said = line.split(" - ")[0].rpartition("::")[2].strip() if line.startswith(("FAILED ", "ERROR ")) else ""
        else:
            said = next((word for word in KNOWN if word in line), "")
        if said:
            said = "other bits" if "other bits" in line else "wrong values" if said == "FAILED" else said
            break
    timer.cancel()
    if said:
        os.killpg(running.pid, signal.SIGKILL)
    running.stdout.close()
    code = running.wait()
    if said == UNCOMPILED:
        raise SystemExit(said)
    return said or ("never ends" if code == -signal.SIGKILL else f"exit {code}" if code else "")


def found(tree: Path, mutation: Mutation) -> str:
    path = tree / mutation.path
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        kinds = (STAND_IN,) if mutation.test == STAND_IN else mutation.kinds
        return next((f"{kind}: {said}" for kind in kinds if (said := notices(tree, mutation.test, kind))), "")
    finally:
        path.write_text(text)


def main() -> int:
    chosen = [m for m in MUTATIONS if all(word in f"{m.name} ({m.test})" for word in sys.argv[1:])]
    for mutation in chosen:
        if (count := (ROOT / mutation.path).read_text().count(mutation.old)) != 1:
            raise SystemExit(f"{mutation.name}: {count} places in {mutation.file}; expected 1")
    escaped = 0

    def show(mutation: Mutation, said: str) -> None:
        nonlocal escaped
        escaped += not said
        print(f"{mutation.name:65} {said or 'ESCAPED'}", flush=True)

    of_kernels = [mutation for mutation in chosen if mutation.test != STAND_IN]
    of_binding = [mutation for mutation in chosen if mutation.test == STAND_IN]
    with tempfile.TemporaryDirectory() as folder:
        if of_kernels:
            trees: queue.Queue[Path] = queue.Queue()
            first = Path(folder) / "0"
            for name in ("csrc", "tests/csrc"):
                shutil.copytree(ROOT / name, first / name)
            shutil.copy(ROOT / "Makefile", first)
            make(
                first,
                *(f"build/emulate/{name}.{kind}.o" for name in ("emulator", "emulator_cluster") for kind in KINDS),
            )
            processors = len(os.sched_getaffinity(0))
            for i in range(processors):
                if i > 0:
                    shutil.copytree(first, Path(folder) / str(i))
                trees.put(Path(folder) / str(i))

            def run(mutation: Mutation) -> str:
                tree = trees.get()
                try:
                    return found(tree, mutation)
                finally:
                    trees.put(tree)

            with ThreadPoolExecutor(processors) as pool:
                for mutation, said in zip(of_kernels, pool.map(run, of_kernels), strict=True):
                    show(mutation, said)
        if of_binding:
            tree = Path(folder) / STAND_IN
            for name in ("csrc", "senet_fast", "tests"):
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", tree)
            (tree / "build").mkdir()
            for objects in (ROOT / "build").glob("temp*"):
                (tree / "build" / objects.name).symlink_to(objects)
            if said := notices(tree, STAND_IN, STAND_IN):
                raise SystemExit(f"without a bug the tests on the stand-in say: {said} (make stand-in shows more)")
            for mutation in of_binding:
                show(mutation, found(tree, mutation))
    print(f"{len(chosen) - escaped} of {len(chosen)} noticed")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())

"""50 million IDs of 4 processes of 4 threads, through one shared word or through leased workers: each one once."""

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from ids_testing import Program

from senet_fast.ids import WIDE

IDS = 50_000_000
PROCESSES = THREADS = 4

# Claims are runs of consecutive words, so that what a thread drew is a list of intervals, far smaller than its IDs.
DRAW = """
import sys, threading
import numpy as np
from senet_fast.ids import WIDE, Snowflake
from senet_fast.ids.leases import LockFile

how, path, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
generator = Snowflake(5, WIDE, file=path) if how == "shared" else Snowflake.acquire(LockFile(path), WIDE)
intervals, lock = [], threading.Lock()

def intervals_of(ids):
    words = (ids >> WIDE.timestamp.shift << WIDE.sequence.width) | ids & WIDE.sequence.max
    breaks = np.flatnonzero(np.diff(words) != 1)
    return np.stack([words[np.r_[0, breaks + 1]], words[np.r_[breaks, words.size - 1]]], axis=1)

def draw(n):
    own, last = [], -1
    def keep(ids):
        nonlocal last
        assert ids[0] > last and (np.diff(ids) > 0).all()
        assert ((ids >> WIDE.worker.shift & WIDE.worker.max) == generator.worker_id).all()
        last = int(ids[-1])
        own.append(intervals_of(ids))
    keep(np.array([generator.next_id() for _ in range(2000)]))
    left, out = n - 2000, np.empty(200_000, np.int64)
    while left:
        ids = out[: min(left, out.size)]
        generator.fill(ids)
        keep(ids)
        left -= ids.size
    with lock:
        intervals.extend(own)

sys.stdin.readline()
threads = [threading.Thread(target=draw, args=(n,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
np.save(sys.argv[4], np.concatenate(intervals))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
print(generator.worker_id, peak, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["shared", "leased"])
def test_fifty_million(how: str, tmp_path: Path) -> None:
    each = IDS // PROCESSES // THREADS
    path = tmp_path / "word"
    with ExitStack() as running:
        programs = [
            running.enter_context(Program(DRAW, how, path, each, tmp_path / f"{i}.npy")) for i in range(PROCESSES)
        ]
        for program in programs:
            program.go()
        said = [program.line().split() for program in programs]  # all of them live till the last one is done
        for program in programs:
            program.ended()
    workers = [int(worker) for worker, _ in said]
    megabytes = [int(peak) for _, peak in said]
    assert max(megabytes) < 95 or "libasan" in os.environ.get("LD_PRELOAD", "")  # what the IDs of one take
    assert sorted(workers) == ([5] * 4 if how == "shared" else [0, 1, 2, 3])
    drawn = 0
    for worker in set(workers):
        paths = [tmp_path / f"{i}.npy" for i in range(PROCESSES) if workers[i] == worker]
        intervals = np.concatenate([np.load(path) for path in paths])
        intervals = intervals[np.argsort(intervals[:, 0])]
        assert (intervals[1:, 0] > intervals[:-1, 1]).all()
        assert intervals[0, 0] >= 0
        drawn += int((intervals[:, 1] - intervals[:, 0] + 1).sum())
    assert drawn == each * PROCESSES * THREADS == IDS
    assert WIDE.worker.max >= max(workers)

"""What the demo does not time, in a process beside it: `python -m senet_fast.demo.untimed [--quick]`.

It trains the digits' networks and compiles the SE shapes, which the demo then finds in Inductor's cache. It prints the
trainings, pickled, and ends when its standard input does. torch is imported where it is used: the demo starts this
process first, and imports beside it.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def started(quick: bool) -> Iterator[subprocess.Popen[bytes]]:
    """This module in a process of its own, which ends with the block at the latest: after an error, say, or Ctrl-C. If
    this process is killed, its end of the other's standard input is closed, and the other ends as well.
    """
    command = [sys.executable, "-m", "senet_fast.demo.untimed", *(["--quick"] if quick else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def end_with_the_demo() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the demo has ended
    os._exit(130)


def main(quick: bool) -> None:
    threading.Thread(target=end_with_the_demo, daemon=True).start()
    try:
        import torch

        from senet_fast.demo import digits, network
    except ModuleNotFoundError:  # the demo lacks it as well, and says what is to be said
        sys.exit(130)
    sizes = network.Sizes.of(quick)
    trained = digits.train(1, torch.float64), digits.train(5, torch.float32)
    if sizes.compile:
        network.compile_stages(sizes.batch, sizes.pixels)
    pickle.dump(trained, sys.stdout.buffer)


if __name__ == "__main__":
    try:
        main("--quick" in sys.argv)
    except (KeyboardInterrupt, BrokenPipeError):  # the demo has ended
        sys.exit(130)

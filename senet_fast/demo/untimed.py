"""What the demo does not time, for a process beside it: `python -m senet_fast.demo.untimed BATCH PIXELS`.

It trains the digits' networks and compiles the SE shapes of so many images and pixels (0: none), which the demo then
finds in Inductor's cache. It prints the trainings, pickled.
"""

import pickle
import sys

import torch

from senet_fast.demo import digits, network


def main() -> None:
    batch, pixels = map(int, sys.argv[1:])
    trained = digits.train(1, torch.float64), digits.train(5, torch.float32)
    if pixels:
        network.compile_stages(batch, pixels)
    pickle.dump(trained, sys.stdout.buffer)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # the demo was stopped, and says so
        sys.exit(130)

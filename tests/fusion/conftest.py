"""Random examples of hypothesis are whole: what torch draws in one is the same when it is repeated."""

import torch
from hypothesis import register_random
from torch import Tensor


class TorchRandom:
    """torch's generator as hypothesis sets, reads and restores those that it knows."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> Tensor:
        return torch.get_rng_state()

    def setstate(self, state: Tensor) -> None:
        torch.set_rng_state(state)


TORCH = TorchRandom()  # hypothesis keeps no reference
register_random(TORCH)

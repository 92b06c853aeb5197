"""One thread, and random examples of hypothesis that are whole: what torch draws in one is drawn again with it."""

from collections.abc import Iterator

import pytest
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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Work this small is not worth two, and suffers most where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

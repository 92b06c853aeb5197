"""One training step of the SE-ResNet on digits, without SE as the floor. benchmarks/fusing.py has the large ones."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from senet_fast.models import se_resnet_digits
from senet_fast.models.layers import SE
from senet_fast.se import FusedSE, SEBlock

BLOCKS: dict[str, SE] = {"none": False, "eager": SEBlock, "ours": FusedSE}


@pytest.mark.parametrize("name", BLOCKS)
def bench_digits_step(benchmark: Any, name: str) -> None:
    torch.manual_seed(0)
    network = se_resnet_digits(se=BLOCKS[name])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()

    benchmark.group = "SE-ResNet on digits, training step, batch 64"
    benchmark.pedantic(step, rounds=40, warmup_rounds=3)

"""Train a small SE-ResNet on handwritten digits twice, with SEBlock and with FusedSE, in step with each other.

It runs on one thread: more gain little on maps of 8 x 8, and would wait for each other on a busy machine.
"""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from senet_fast.models import se_resnet_digits
from senet_fast.models.layers import SEFactory
from senet_fast.se import FusedSE, SEBlock

SEED = 0
BATCH = 64
RATE = 0.05
FACTORIES: dict[str, SEFactory] = {"SEBlock": SEBlock, "FusedSE": FusedSE}


@dataclass
class Data:
    """Images [N, 1, 8, 8] with mean 0 and deviation 1 over the training part, and labels [N]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass
class Training:
    """What one network went through."""

    losses: list[float] = field(default_factory=list)  # one per step
    seconds: float = 0.0  # of the processor
    accuracy: float = 0.0  # on the test part


class Comparison(NamedTuple):
    """Both trainings by the name of their SE block, and how far their losses are apart, at most."""

    trainings: dict[str, Training]
    same_weights: float  # FusedSE with the weights that SEBlock's network has at that step
    own_weights: (
        float  # each with its own: from the first ReLU input on that rounding puts on the other side of 0, more
    )


def load(dtype: torch.dtype) -> Data:
    """The 1,797 images that scikit-learn ships, a fifth of them held out."""
    pixels, digits = load_digits(return_X_y=True)
    parts = train_test_split(pixels.reshape(-1, 1, 8, 8), digits, test_size=0.2, stratify=digits, random_state=SEED)
    train, test = (torch.tensor(part, dtype=dtype) for part in parts[:2])
    mean, deviation = train.mean(), train.std()
    labels = [torch.tensor(part) for part in parts[2:]]
    return Data((train - mean) / deviation, labels[0], (test - mean) / deviation, labels[1])


class Learner:
    """A network with its optimizer and schedule."""

    def __init__(self, se: SEFactory, dtype: torch.dtype, steps: int) -> None:
        torch.manual_seed(SEED)
        self.network: nn.Module = se_resnet_digits(se=se).to(dtype)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, RATE, total_steps=steps)
        self.training = Training()

    def step(self, images: Tensor, labels: Tensor) -> None:
        start = time.process_time()
        loss = cross_entropy(self.network(images), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.training.losses.append(loss.item())
        self.training.seconds += time.process_time() - start

    @torch.inference_mode()
    def test(self, data: Data) -> None:
        self.network.eval()
        right = self.network(data.test).argmax(1) == data.test_labels
        self.training.accuracy = right.double().mean().item()


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def train(epochs: int, dtype: torch.dtype) -> Comparison:
    """Both networks from the same seed on the same batches, alternating step by step."""
    data = load(dtype)
    batches = len(data.train) // BATCH
    learners = {name: Learner(se, dtype, epochs * batches) for name, se in FACTORIES.items()}
    plain, fused = learners["SEBlock"], learners["FusedSE"]
    follower = copy.deepcopy(fused.network)
    order = torch.Generator().manual_seed(SEED)
    title = f"training, {str(dtype).removeprefix('torch.')}"
    same_weights = 0.0
    with tqdm(total=epochs * batches, desc=title, unit="step") as progress:
        for _ in range(epochs):
            shuffled = torch.randperm(len(data.train), generator=order)
            for batch in shuffled[: batches * BATCH].view(batches, BATCH):
                images, labels = data.train[batch], data.train_labels[batch]
                follower.load_state_dict(plain.network.state_dict())
                with torch.no_grad():
                    loss = cross_entropy(follower(images), labels).item()
                for learner in learners.values():
                    learner.step(images, labels)
                same_weights = max(same_weights, abs(loss - plain.training.losses[-1]))
                progress.update()
    for learner in learners.values():
        learner.test(data)
    trainings = {name: learner.training for name, learner in learners.items()}
    own = max(abs(a - b) for a, b in zip(plain.training.losses, fused.training.losses, strict=True))
    return Comparison(trainings, same_weights, own)

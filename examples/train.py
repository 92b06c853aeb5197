"""Train any network of senet_fast.models: `python examples/train.py --network resnet_digits --se --out runs/digits`.

Digits of scikit-learn by default, or an image folder (--data ROOT with train/CLASS/ and test/CLASS/). In --out:
checkpoint.pt, curve.png and log.json. Start the same command again and it goes on from the last checkpoint, with the
same weights in the end as if it had never been killed. In a checkout where senet_fast is not installed, set
PYTHONPATH=. first. With several processes, the same losses within rounding:

    torchrun --nproc-per-node=2 examples/train.py --network resnet_digits --se --out runs/digits --parallel fsdp
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from train_data import load
from train_parallel import Processes, distribute

from senet_fast.models import NETWORKS, create
from senet_fast.se import SEBlock

MAY_CHANGE = ("out", "stop_after", "checkpoint_every", "parallel", "device")  # between a run and its continuation


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="resnet_digits")
    parser.add_argument("--se", nargs="?", const="fused", choices=("fused", "reference"), help="SE blocks, and which")
    parser.add_argument("--data", default="digits", help='"digits" or a folder')
    parser.add_argument("--pixels", type=int, default=0, help="default: 8 for resnet_digits, else 224")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="images of a step, of all processes together")
    parser.add_argument("--rate", type=float, default=0.05, help="of SGD with momentum; the cosine goes from it to 0")
    parser.add_argument("--warmup", type=int, default=0, help="steps in which the rate grows to --rate")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the averaged weights that are tested")
    parser.add_argument("--amp", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--float64", action="store_true", help="for comparisons")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="under torchrun")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--stop-after", type=int, help="leave after this step; the same command goes on")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    options.pixels = options.pixels or (8 if options.network == "resnet_digits" else 224)
    return options


class Trainer:
    """One training: network, averaged weights, optimizer, schedule and what it went through."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.processes = Processes(options.device)
        if options.batch % self.processes.count:
            raise SystemExit(f"--batch is {options.batch}; expected a multiple of the {self.processes.count} processes")
        torch.set_default_dtype(torch.float64 if options.float64 else torch.float32)
        torch.manual_seed(options.seed)
        channels = 1 if options.network == "resnet_digits" else 3
        self.train, self.test, classes = load(options.data, options.pixels, channels)
        choice = {"se": {"fused": True, "reference": SEBlock}[options.se]} if options.se else {}
        network = create(options.network, classes, **choice).to(self.processes.device)
        self.format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.format)
        self.called = distribute(self.network, options.parallel, self.processes)
        self.optimizer = torch.optim.SGD(
            self.called.parameters(), options.rate, momentum=0.9, nesterov=True, weight_decay=options.weight_decay
        )
        self.per_epoch = len(self.train) // options.batch
        self.steps = options.epochs * self.per_epoch
        self.step = 0
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.ema = {name: value.detach().clone() for name, value in self._state().items()}

    def _state(self) -> dict[str, Tensor]:
        module = self.called.module if isinstance(self.called, nn.parallel.DistributedDataParallel) else self.called
        return module.state_dict()  # type: ignore[no-any-return]

    def rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.options.warmup))
        return self.options.rate * warm * (1 + math.cos(math.pi * step / self.steps)) / 2  # type: ignore[no-any-return]

    def run(self) -> None:
        self.resume()
        with tqdm(total=self.steps, initial=self.step, unit="step", disable=self.processes.rank > 0) as bar:
            while self.step < self.steps:
                loss = self.one_step()
                self.losses.append(loss)
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{self.accuracies[-1] if self.accuracies else 0:.1%}")
                bar.update()
                self.step += 1
                if self.step % self.per_epoch == 0:
                    self.accuracies.append(self.accuracy())
                last = self.step in (self.steps, self.options.stop_after)
                if last or self.step % self.options.checkpoint_every == 0:
                    self.save()
                if last:
                    break
        if self.processes.rank == 0:
            self.report()

    def one_step(self) -> float:
        """Forward, backward, SGD, average. Returns the loss over the images of all processes."""
        seed = self.options.seed * 1_000_003 + self.step  # nothing random is carried from step to step
        epoch, place = divmod(self.step, self.per_epoch)
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.options.seed + epoch))
        mine = self.options.batch // self.processes.count
        start = place * self.options.batch + self.processes.rank * mine
        indices = order[start : start + mine]
        torch.manual_seed(seed)
        images = self.to_device(self.train.batch(indices, seed * self.processes.count + self.processes.rank))
        labels = self.train.labels[indices].to(self.processes.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.options.amp):
            loss = cross_entropy(self.called(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        decay = min(self.options.ema, (self.step + 1) / (self.step + 10))  # short runs forget where they started
        for name, value in self._state().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value.detach(), 1 - decay)
            else:
                self.ema[name].copy_(value)
        return self.processes.mean(loss)

    def to_device(self, images: Tensor) -> Tensor:
        return images.to(self.processes.device).contiguous(memory_format=self.format)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Of the averaged weights on the test part; each process does all of it."""
        kept = {name: value.detach().clone() for name, value in self._state().items()}
        self._copy_state(self.ema)
        self.called.eval()
        right = 0
        for start in range(0, len(self.test), 256):
            indices = torch.arange(start, min(start + 256, len(self.test)))
            logits = self.called(self.to_device(self.test.batch(indices)))
            right += int((logits.argmax(1).cpu() == self.test.labels[indices]).sum())
        self.called.train()
        self._copy_state(kept)
        return right / len(self.test)

    def _copy_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(state[name])

    # ---- checkpoints: one file with whole tensors, whatever the processes and their number

    @property
    def _file(self) -> Path:
        return Path(self.options.out) / "checkpoint.pt"

    def _fixed(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.options).items() if name not in MAY_CHANGE}

    def save(self) -> None:
        """The new file takes the old one's place in one step: a kill leaves the one or the other."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        network, optimizer = get_state_dict(self.called, self.optimizer, options=whole)
        ema = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in self.ema.items()}
        if self.processes.rank > 0:
            return
        progress = {"step": self.step, "losses": self.losses, "accuracies": self.accuracies}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".part")
        tensors = {"network": network, "optimizer": optimizer, "ema": ema}
        with partial.open("wb") as file:
            torch.save({"arguments": self._fixed(), **progress, **tensors}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._file)

    def resume(self) -> None:
        if not self._file.exists():
            return
        saved = torch.load(self._file, map_location="cpu", weights_only=True)
        for name, value in self._fixed().items():
            if saved["arguments"][name] != value:
                was = saved["arguments"][name]
                raise SystemExit(f"{self._file} was written with {name} = {was!r}, not {value!r}; use another --out")
        whole = StateDictOptions(full_state_dict=True)
        state: dict[str, Any] = {"model_state_dict": saved["ema"], "optim_state_dict": saved["optimizer"]}
        set_state_dict(self.called, self.optimizer, **state, options=whole)
        self.ema = {name: value.detach().clone() for name, value in self._state().items()}
        state["model_state_dict"] = saved["network"]
        set_state_dict(self.called, self.optimizer, **state, options=whole)
        self.step, self.losses, self.accuracies = saved["step"], saved["losses"], saved["accuracies"]

    def report(self) -> None:
        """log.json and curve.png."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        log = {"arguments": self._fixed(), "losses": self.losses, "accuracies": self.accuracies}
        Path(self.options.out).mkdir(parents=True, exist_ok=True)
        (Path(self.options.out) / "log.json").write_text(json.dumps(log, indent=1) + "\n")
        figure, left = pyplot.subplots(figsize=(8, 4.5))
        left.plot(range(1, len(self.losses) + 1), self.losses, linewidth=0.8, label="loss")
        left.set(xlabel="step", ylabel="training loss", yscale="log")
        right = left.twinx()
        epochs = [self.per_epoch * (place + 1) for place in range(len(self.accuracies))]
        right.plot(epochs, self.accuracies, "o-", color="tab:orange", label="test accuracy")
        right.set(ylabel="test accuracy of the averaged weights", ylim=(0, 1))
        left.set_title(f"{self.options.network}, SE: {self.options.se or 'none'}")
        figure.tight_layout()
        figure.savefig(Path(self.options.out) / "curve.png", dpi=120)
        pyplot.close(figure)


if __name__ == "__main__":
    trainer = Trainer(arguments())
    trainer.run()
    trainer.processes.leave()

"""examples/train.py: resumes exactly, is the same with several processes, learns, and takes any network and images."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def train(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Run a training in this process, on one thread; returns its trainer."""
    monkeypatch.syspath_prepend(root / "examples")
    import train as example

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)

    def run(*arguments: object) -> Any:
        trainer = example.Trainer(example.arguments([str(word) for word in arguments]))
        trainer.run()
        return trainer

    yield run
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def command(root: Path, *arguments: object) -> list[str]:
    return [str(root / "examples" / "train.py"), *(str(word) for word in arguments)]


def checkpoint(out: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return saved


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(root: Path, train: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ("--se", "--epochs", 2, "--checkpoint-every", 3)
    with (tmp_path / "log").open("w") as log:
        killed = subprocess.Popen(
            [sys.executable, *command(root, *arguments, "--out", tmp_path / "killed")], env=ENVIRONMENT, stderr=log
        )
        end = time.monotonic() + 120
        while not (tmp_path / "killed" / "checkpoint.pt").exists() and killed.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    before = checkpoint(tmp_path / "killed")
    train(*arguments, "--out", tmp_path / "killed")
    train(*arguments, "--out", tmp_path / "whole")
    after, whole = checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole")
    assert before["step"] < after["step"] == whole["step"] == 2 * 22
    assert before["losses"] == whole["losses"][: before["step"]]
    assert after["losses"] == whole["losses"]
    assert after["accuracies"] == whole["accuracies"]
    for kind in ("network", "ema"):
        assert all(torch.equal(after[kind][name], value) for name, value in whole[kind].items())
    momenta = [value["momentum_buffer"] for value in whole["optimizer"]["state"].values()]
    again = [value["momentum_buffer"] for value in after["optimizer"]["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(momenta, again, strict=True))
    assert (tmp_path / "killed" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "killed" / "log.json").read_text())["losses"] == whole["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_as_one(root: Path, train: Callable[..., Any], tmp_path: Path, parallel: str) -> None:
    """And one process goes on from what two have written."""
    arguments = ("--se", "--epochs", 1, "--float64", "--ema", 0.5)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    out = tmp_path / "two"
    words = command(root, *arguments, "--parallel", parallel, "--stop-after", 3, "--out", out)
    done = subprocess.run([*run, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(*arguments, "--stop-after", 6, "--out", tmp_path / "one")
    two = checkpoint(out)
    assert two["step"] == 3
    assert two["losses"] == pytest.approx(one.losses[:3], rel=1e-12)
    on = train(*arguments, "--stop-after", 6, "--out", out)
    assert on.losses == pytest.approx(one.losses, rel=1e-10)
    for kind in ("network", "ema"):
        for name, value in checkpoint(tmp_path / "one")[kind].items():
            torch.testing.assert_close(checkpoint(out)[kind][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_fused_and_reference_learn_the_same(train: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ("--epochs", 1, "--float64", "--stop-after", 12)
    fused = train("--se", *arguments, "--out", tmp_path / "fused")
    reference = train("--se", "reference", *arguments, "--out", tmp_path / "reference")
    assert fused.losses == pytest.approx(reference.losses, rel=1e-9)
    plain = train(*arguments, "--out", tmp_path / "plain")
    assert plain.losses != pytest.approx(fused.losses, rel=1e-3)


@pytest.mark.slow
def test_se_converges_like_plain_over_five_seeds(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After three epochs, on the held out digits; the losses as well. Curves of ten trainings would take 5 s."""
    monkeypatch.setattr("train.Trainer.report", lambda trainer: None)
    accuracies: dict[str, list[float]] = {"plain": [], "se": []}
    for seed in range(5):
        for kind, words in (("plain", ()), ("se", ("--se",))):
            out = tmp_path / f"{kind}{seed}"
            trainer = train(*words, "--epochs", 3, "--ema", 0.9, "--seed", seed, "--out", out)
            accuracies[kind].append(trainer.accuracies[-1])
            assert sum(trainer.losses[-10:]) < 0.25 * sum(trainer.losses[:10])
    mean = {kind: sum(values) / 5 for kind, values in accuracies.items()}
    assert min(accuracies["se"]) > 0.93, accuracies
    assert mean["se"] > mean["plain"] - 0.02, accuracies


@pytest.mark.slow
def test_image_folder(train: Callable[..., Any], tmp_path: Path) -> None:
    """Two classes, red and blue, with AMP and channels_last."""
    image = needs.library("PIL.Image")
    for part, count in (("train", 8), ("test", 4)):
        for name, color in (("blue", (20, 30, 200)), ("red", (200, 40, 20))):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                image.new("RGB", (48 + index, 40), color).save(folder / f"{index}.png")
    words = ("--network", "shufflenet_v1", "--se", "--data", tmp_path / "data", "--pixels", 32, "--batch", 8)
    trainer = train(*words, "--epochs", 2, "--amp", "--channels-last", "--rate", 0.01, "--out", tmp_path / "out")
    assert len(trainer.losses) == 4
    assert len(trainer.accuracies) == 2
    assert trainer.network.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"--data is .*; expected images in .*/train/CLASS"):
        train("--data", tmp_path / "out", "--out", tmp_path / "none")


@pytest.mark.slow
def test_another_command_does_not_go_on(train: Callable[..., Any], tmp_path: Path) -> None:
    train("--epochs", 1, "--stop-after", 1, "--out", tmp_path)
    with pytest.raises(SystemExit, match=r"was written with rate = 0\.05, not 0\.1; use another --out"):
        train("--epochs", 1, "--rate", 0.1, "--out", tmp_path)


def test_every_network_is_offered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "examples")
    import train as example

    from senet_fast.models import NETWORKS

    for name in NETWORKS:
        options: argparse.Namespace = example.arguments(["--network", name, "--out", "x"])
        assert options.pixels == (8 if name == "resnet_digits" else 224)

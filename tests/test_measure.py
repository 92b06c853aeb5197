"""senet_fast/measure.py: turns, medians, and what makes networks with random weights comparable."""

import math

import torch
from torch import nn

from senet_fast import measure
from senet_fast.measure import Sample, _median, calibrate, interleave, relative_difference, wake


def test_interleave_takes_turns() -> None:
    calls: list[str] = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, rounds=2, calls=3)
    assert "".join(calls) == "ab" + "aaabbb" + "bbbaaa"
    assert set(times) == {"a", "b"}


def test_median_leaves_out_preempted_calls() -> None:
    samples = [Sample(1.0, False), Sample(2.0, False), Sample(3.0, False), *[Sample(100.0, True)] * 20]
    assert _median(samples) == 2.0
    assert _median([*samples, *[Sample(100.0, True)] * 20]) == 100.0


def test_slow_calls_alternate_one_by_one() -> None:
    calls: list[str] = []
    seconds = {"slow": 2 * measure.SLOW, "fast": measure.BLOCK_SECONDS / 4}

    def timed(call: object) -> float:
        calls.append(call())  # type: ignore[operator]
        return seconds[calls[-1]]

    times = interleave({"slow": lambda: "slow", "fast": lambda: "fast"}, 0.0, rounds=1, timed=timed)
    assert calls == ["slow", *["fast"] * 3, "slow", *["fast"] * 4]  # to find the sizes of the blocks, then a round
    assert times == seconds


def test_moved_times_the_call_alone() -> None:
    assert 0.0 <= measure.moved(lambda: None) < 1.0


def test_networks_with_random_weights_are_woken_and_calibrated() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4, affine=False), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))
    nn.init.zeros_(network[3].weight)
    nn.init.zeros_(network[2].weight[0])
    with torch.no_grad():
        network[2].weight.mul_(50.0)
    wake(network)
    assert torch.equal(network[3].weight, torch.ones(4))
    x = torch.randn(8, 2, 16)
    calibrate(network, x)
    assert not network.training
    assert [norm.momentum for norm in (network[1], network[3])] == [0.1, 0.1]
    y = network(x)[:, 1:]  # channel 0 has no variance
    assert torch.allclose(y.std((0, 2)), torch.ones(3), atol=0.05)
    partly = torch.tensor([0.0, 2.0])
    norm = nn.BatchNorm2d(2)
    norm.weight.data = partly.clone()
    wake(norm)
    assert torch.equal(norm.weight, partly)  # weights that somebody trained stay


def test_relative_difference() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert relative_difference(expected, torch.tensor([1.0, -5.0], requires_grad=True)) == 0.25
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0.0
    assert math.isnan(relative_difference(expected, torch.tensor([math.nan, -4.0])))

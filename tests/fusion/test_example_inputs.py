"""fuse(model, example_inputs=...): what code does that no symbol goes through."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import assert_same, counts_calls, randomize
from hosts import MBConv
from torch import Tensor, nn
from zoo import BTC, C, LinearExpand

from senet_fast import fuse, unfuse


class AsksForSizes(LinearExpand):
    """Large maps are pooled in two steps; small ones are not."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] > 64:
            return x * self.fc(F.max_pool2d(x, 2).mean((2, 3)))[:, :, None, None]
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class AsksForValues(LinearExpand):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 1e6 else x


def test_code_that_asks_for_sizes() -> None:
    plain = randomize(nn.Sequential(nn.Conv2d(3, C, 3), AsksForSizes()))
    fused = copy.deepcopy(plain)
    assert not fuse(fused).fused
    small, large = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 19, 9)
    assert [entry.path for entry in fuse(fused, example_inputs=small).fused] == ["1"]
    assert counts_calls(lambda: fused(small)) == counts_calls(lambda: fused(torch.cat([small] * 3))) == 1
    assert counts_calls(lambda: fused(large)) == counts_calls(lambda: fused(small[:, :, 1:])) == 0
    assert_same(plain, fused, small)
    assert_same(plain, fused, large)
    assert unfuse(fused) == 1
    assert not fuse(fused, example_inputs=(large,)).fused


def test_code_that_asks_for_values_is_left() -> None:
    assert not fuse(AsksForValues(), example_inputs=torch.randn(2, C, 5, 6)).fused


class Given(nn.Module):
    """A rate from a list of the caller's, which no graph shows, and an input whose shape no layer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.btc = MBConv(), BTC()

    def forward(self, x: Tensor, rates: list[float]) -> Tensor:
        for rate in sorted(rates):
            x = self.block(x, rate) if rate > 0 else x
        return self.btc(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("as_dict", [False, True])
def test_arguments_of_a_run(as_dict: bool) -> None:
    x, rates = torch.randn(2, C, 5, 6), [0.25, 0.0, 0.5]
    plain = randomize(Given()).eval()
    fused = copy.deepcopy(plain)
    assert fuse(copy.deepcopy(plain)).fused
    generator, norms = torch.get_rng_state(), plain.block._bn1.running_mean.clone()
    report = fuse(fused, example_inputs={"x": x, "rates": rates} if as_dict else (x, rates))
    assert {entry.path for entry in report.fused} == {"block", "btc"}
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(fused.block._bn1.running_mean, norms)
    assert counts_calls(lambda: fused(x, rates)) == 3
    torch.testing.assert_close(fused(x, rates), plain(x, rates), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError):
        fuse(fused, example_inputs=())

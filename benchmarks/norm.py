"""BatchNorm, SE, addition and ReLU in training, forward and backward: `python -m benchmarks.norm`.

relu(se(norm(x)) + shortcut): as eager modules, under torch.compile, with BatchNorm and the fused SE tail one after the
other, and by senet_fast.se.norm.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from benchmarks import rows
from benchmarks.contenders import agree
from benchmarks.modes import LAYOUTS, Case
from benchmarks.shapes import of
from senet_fast.measure import interleave
from senet_fast.se import FusedSE, SEBlock
from senet_fast.se.norm import norm_se_relu

CASES = [Case(layer, 8, layout) for layer in of("seresnet50") for layout in LAYOUTS]
CONTENDERS = ("eager", "compile", "modules", "ours")


def tails(channels: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    block, norm = SEBlock(channels), nn.BatchNorm2d(channels)
    se = FusedSE(channels, post_activation="relu")
    se.load_state_dict(block.state_dict())

    def eager(x: Tensor, shortcut: Tensor) -> Tensor:
        return relu(block(norm(x)).add_(shortcut), inplace=True)

    norms = [copy.deepcopy(norm) for _ in range(2)]
    return {
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
        "modules": lambda x, shortcut: se(norms[0](x), shortcut),
        "ours": lambda x, shortcut: norm_se_relu(x, norms[1], se, shortcut),
    }


def measure(case: Case, seconds: float) -> dict[str, Any]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    x, shortcut, grad = case.input().requires_grad_(), case.input().requires_grad_(), case.input()

    def step(tail: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(tail(x, shortcut), (x, shortcut), grad)

    made = tails(case.layer.channels)
    difference = agree(case.id, made["eager"](x, shortcut), made["ours"](x, shortcut))
    times = interleave({name: partial(step, tail) for name, tail in made.items()}, seconds)
    return {"seconds": times, "believable": times.believable, "difference": difference}


def markdown(results: rows.Results) -> str:
    ratios = [(name, "ours") for name in CONTENDERS[:-1]]
    return rows.comparison(results["rows"], CONTENDERS, ratios, first="forward and backward")


def main() -> None:
    options = rows.command("norm", __doc__, "8x256* nhwc", seconds=10.0).parse_args()
    rows.run(options, CASES, lambda case: measure(case, options.seconds), markdown)


if __name__ == "__main__":
    main()

"""A residual block's tail in training, forward and backward: `python -m benchmarks.norm`.

relu(se(norm(x)) + shortcut): as eager modules, under torch.compile, with BatchNorm and the fused SE tail one after the
other, and by senet_fast.se.norm.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from tqdm import tqdm

from benchmarks.report import add_options, place, publish, save
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.network import relative_difference
from senet_fast.demo.text import ratio, table
from senet_fast.se import FusedSE, SEBlock
from senet_fast.se.norm import norm_se_relu

MARK = "norm table: python -m benchmarks.norm"
SHAPES = [(8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7)]
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


def measure(shape: tuple[int, ...], layout: str, seconds: float) -> dict[str, Any]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    x, shortcut, grad = (t.contiguous(memory_format=memory_format) for t in torch.randn(3, *shape))
    x.requires_grad_()
    shortcut.requires_grad_()

    def step(tail: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(tail(x, shortcut), (x, shortcut), grad)

    made = tails(shape[1])
    difference = relative_difference(made["eager"](x, shortcut), made["ours"](x, shortcut))
    if not difference <= 1e-4:
        raise AssertionError(f"{shape} {layout}: outputs differ by {difference:.1e}")
    times = interleave({name: lambda tail=tail: step(tail) for name, tail in made.items()}, seconds)  # type: ignore[misc]
    shown = f"{'x'.join(map(str, shape))} {layout}"
    return {"shape": shown, "seconds": times, "believable": times.believable, "difference": difference}


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        times = [row["seconds"][name] for name in CONTENDERS]
        ratios = [ratio(one, times[-1]) if row["believable"] else "-" for one in times[:-1]]
        name = row["shape"] + ("" if row["believable"] else " (busy)")
        rows.append([name, *(f"{seconds * 1e3:.2f}" for seconds in times), *ratios])
    head = [
        "forward and backward",
        *(f"{name} ms" for name in CONTENDERS),
        *(f"{name}/ours" for name in CONTENDERS[:-1]),
    ]
    where = f"{results['date'][:10]}, {place(results)}; torch {results['versions']['torch']}, float32"
    return f"{where}.\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.norm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="timing per shape, shared by the contenders")
    add_options(parser, "norm")
    options = parser.parse_args()
    results: dict[str, Any] = {**surroundings(), "rows": []}
    for shape in tqdm(SHAPES):
        for layout in ("nchw", "nhwc"):
            results["rows"].append(measure(shape, layout, options.seconds))
            save(options, results)
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()

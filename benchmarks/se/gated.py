"""A 1x1 convolution with a gate beside it, at inference: `python -m benchmarks.se.gated`.

`op`: oneDNN's convolution with its weights reordered beforehand, as a frozen graph has it, and FusedSE behind or in
front of it. `ours`: senet_fast.se.conv, with its weights prepared. `no SE`: that convolution alone, with the addition
and ReLU that oneDNN fuses with it where the block has them.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import add_options, place, publish, save
from senet_fast.demo.measure import interleave, surroundings
from senet_fast.demo.network import relative_difference
from senet_fast.demo.text import microseconds, ratio, table
from senet_fast.se import FusedSE
from senet_fast.se.conv import prepare, squeeze_excite_conv

MARK = "gated table: python -m benchmarks.se.gated"
CONTENDERS = ("op", "ours", "no SE")


class Shape(NamedTuple):
    """C_in -> C_out on maps of side x side, R hidden channels; the gate is where there are more channels."""

    C_in: int
    C_out: int
    side: int
    R: int

    @property
    def on_output(self) -> bool:
        return self.C_out > self.C_in


SHAPES = [  # tails of SE-ResNet-50's blocks, then projections of EfficientNet-B0's
    *[Shape(64, 256, 56, 16), Shape(128, 512, 28, 32), Shape(256, 1024, 14, 64), Shape(512, 2048, 7, 128)],
    *[Shape(32, 16, 112, 8), Shape(96, 24, 56, 4), Shape(144, 40, 28, 6), Shape(240, 80, 14, 10)],
    *[Shape(672, 112, 14, 28), Shape(1152, 320, 7, 48)],
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}


def contenders(shape: Shape, batch: int, dtype: torch.dtype, layout: str) -> dict[str, Callable[[], Tensor]]:
    def made(channels: int) -> Tensor:
        x = torch.randn(batch, channels, shape.side, shape.side, dtype=dtype)
        return x.contiguous(memory_format=LAYOUTS[layout])

    x = made(shape.C_in)
    residual = made(shape.C_out) if shape.on_output else None
    weight = (torch.randn(shape.C_out, shape.C_in, 1, 1) / shape.C_in**0.5).to(dtype)
    bias = torch.randn(shape.C_out).to(dtype)
    activation, post = ("relu", "relu") if shape.on_output else ("silu", "identity")
    channels = shape.C_out if shape.on_output else shape.C_in
    se = FusedSE(channels, hidden_channels=shape.R, activation=activation, post_activation=post).to(dtype).eval()
    where = ([0, 0], [1, 1], [1, 1], 1)
    reordered = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *where, list(x.shape))

    def convolve(u: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(u, reordered, bias, *where, "none", [], "")  # type: ignore

    def without_se() -> Tensor:
        if residual is None:
            return convolve(x)
        return torch.ops.mkldnn._convolution_pointwise.binary(  # type: ignore[no-any-return]
            x, residual, reordered, bias, *where, "add", 1.0, "relu", [], ""
        )

    first = (weight, bias, se.fc1.weight, se.fc1.bias)
    side = "output" if shape.on_output else "input"
    prepared = prepare(*first, side=side, dtype=dtype, channels_last=layout == "nhwc")
    options = {"side": side, "activation": activation, "post_activation": post, "prepared": prepared}
    return {
        "op": (lambda: se(convolve(x), residual)) if shape.on_output else (lambda: convolve(se(x))),
        "ours": lambda: squeeze_excite_conv(x, *first, se.fc2.weight, se.fc2.bias, residual=residual, **options),
        "no SE": without_se,
    }


def measure(shape: Shape, batch: int, dtype: str, layout: str, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    made = contenders(shape, batch, DTYPES[dtype], layout)
    difference = relative_difference(made["op"]().float(), made["ours"]().float())
    shown = f"{batch}x {shape.C_in}->{shape.C_out}@{shape.side} {layout} {dtype}"
    if not difference <= (1e-5 if dtype == "fp32" else 2e-2):
        raise AssertionError(f"{shown}: outputs differ by {difference:.1e}")
    times = interleave(made, seconds)
    side = "output" if shape.on_output else "input"
    return {
        **{"case": shown, "side": side, "seconds": times},
        **{"believable": times.believable, "difference": difference},
    }


def markdown(results: dict[str, Any]) -> str:
    rows = []
    for row in results["rows"]:
        op, ours, least = (row["seconds"][name] for name in CONTENDERS)
        name = row["case"] if row["believable"] else f"{row['case']} (busy)"
        times = [microseconds(value) for value in (op, ours, least)]
        rows.append([name, row["side"], *times, ratio(op, ours), ratio(ours, least)])
    head = ("convolution", "gate on", "op us", "ours us", "no SE us", "op/ours", "ours/no SE")
    where = f"{results['date'][:10]}, {place(results)}; torch {results['versions']['torch']}"
    return f"{where}.\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.se.gated", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="timing per row, shared by the contenders")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images (default: 1 8)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: all")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=["nhwc"], help="default: nhwc")
    add_options(parser, "gated")
    options = parser.parse_args()
    results: dict[str, Any] = {**surroundings(), "rows": []}
    cases = list(itertools.product(SHAPES, options.batch, options.dtype, options.layout))
    with torch.inference_mode():
        for case in tqdm(cases):
            results["rows"].append(measure(*case, options.seconds))
            save(options, results)
    publish(options, results, MARK, markdown(results))


if __name__ == "__main__":
    main()

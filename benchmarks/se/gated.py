"""A 1x1 convolution with a gate beside it, at inference: `python -m benchmarks.se.gated`.

`op`: oneDNN's convolution with its weights reordered beforehand, as a frozen graph has it, and FusedSE behind or in
front of it. `ours`: senet_fast.se.conv, with its weights prepared. `no SE`: that convolution alone, with the addition
and ReLU that oneDNN fuses with it where the block has them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import rows
from benchmarks.contenders import agree
from benchmarks.modes import DTYPES, LAYOUTS
from senet_fast.measure import interleave
from senet_fast.se import FusedSE
from senet_fast.se.conv import prepare, squeeze_excite_conv

CONTENDERS = ("op", "ours", "no SE")
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
NOTE = """Gated are the output of the tails of SE-ResNet-50's blocks, the input of EfficientNet-B0's projections.
`op`: oneDNN's convolution, its weights reordered beforehand, and FusedSE; `ours`: `squeeze_excite_conv`, its weights
prepared; `no SE`: that convolution alone, with the addition and ReLU that oneDNN fuses with it. Rows near 1 swing by
some 5 % from run to run."""


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


class Case(NamedTuple):
    shape: Shape
    batch: int
    layout: str
    dtype: str

    @property
    def id(self) -> str:
        shape = f"{self.shape.C_in}->{self.shape.C_out}@{self.shape.side}"
        return f"{self.batch}x {shape} {self.layout} {self.dtype}"


CASES = [
    Case(shape, batch, layout, dtype)
    for shape in SHAPES
    for batch in (1, 8, 16)
    for dtype in TOLERANCE
    for layout in ("nhwc", "nchw")
]


def contenders(case: Case) -> dict[str, Callable[[], Tensor]]:
    shape, dtype = case.shape, DTYPES[case.dtype]

    def made(channels: int) -> Tensor:
        x = torch.randn(case.batch, channels, shape.side, shape.side, dtype=dtype)
        return x.contiguous(memory_format=LAYOUTS[case.layout])

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
    prepared = prepare(*first, side=side, dtype=dtype, channels_last=case.layout == "nhwc")
    options = {"side": side, "activation": activation, "post_activation": post, "prepared": prepared}
    return {
        "op": (lambda: se(convolve(x), residual)) if shape.on_output else (lambda: convolve(se(x))),
        "ours": lambda: squeeze_excite_conv(x, *first, se.fc2.weight, se.fc2.bias, residual=residual, **options),
        "no SE": without_se,
    }


@torch.inference_mode()
def measure(case: Case, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    made = contenders(case)
    difference = agree(case.id, made["op"](), made["ours"](), TOLERANCE[case.dtype])
    times = interleave(made, seconds)
    side = "output" if case.shape.on_output else "input"
    return {"side": side, "seconds": times, "believable": times.believable, "difference": difference}


def markdown(results: rows.Results) -> str:
    ratios = [("op", "ours"), ("ours", "no SE")]
    more = {"gate on": lambda row: row["side"]}
    return f"{NOTE}\n\n{rows.comparison(results['rows'], CONTENDERS, ratios, 'us', 'convolution', more)}"


def main() -> None:
    options = rows.command("gated", __doc__, "1x *@56 nhwc", seconds=1.0).parse_args()
    rows.run(options, CASES, lambda case: measure(case, options.seconds), markdown)


if __name__ == "__main__":
    main()

"""An activation behind the scale, at inference: `python -m benchmarks.se.activations`.

`eager`: the block as torch's own operators. `ours`: `squeeze_excite(..., post_activation=...)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import rows
from benchmarks.contenders import agree
from senet_fast.measure import interleave
from senet_fast.se import reference, squeeze_excite

CONTENDERS = ("eager", "ours")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp64": 1e-6}  # of torch's own hardsigmoid
ACTIVATIONS: dict[str, nn.Module] = {
    **{"relu": nn.ReLU(), "sigmoid": nn.Sigmoid(), "hardsigmoid": nn.Hardsigmoid(), "tanh": nn.Tanh()},
    **{"silu": nn.SiLU(), "hardswish": nn.Hardswish(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh")},
    **{"mish": nn.Mish(), "relu6": nn.ReLU6(), "leaky_relu": nn.LeakyReLU()},
}
SHAPES = [(1, 64, 28), (8, 256, 28)]  # B, C, side


class Case(NamedTuple):
    activation: str
    shape: tuple[int, int, int]
    dtype: str

    @property
    def id(self) -> str:
        B, C, side = self.shape
        return f"{self.activation} {B}x{C}x{side}x{side} {self.dtype}"


CASES = [Case(name, shape, dtype) for name in ACTIVATIONS for shape in SHAPES for dtype in DTYPES]


def contenders(case: Case) -> dict[str, Callable[[], Tensor]]:
    (B, C, side), dtype = case.shape, DTYPES[case.dtype]
    x = torch.randn(B, C, side, side, dtype=dtype)
    weights = [torch.randn(*sizes, dtype=dtype) / 8 for sizes in ((C // 16, C), (C // 16,), (C, C // 16), (C,))]
    activation = ACTIVATIONS[case.activation]
    return {
        "eager": lambda: activation(reference.squeeze_excite(x, *weights)),
        "ours": lambda: squeeze_excite(x, *weights, post_activation=case.activation),
    }


@torch.inference_mode()
def measure(case: Case, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    made = contenders(case)
    difference = agree(case.id, made["eager"](), made["ours"](), TOLERANCE[case.dtype])
    times = interleave(made, seconds)
    return {"seconds": times, "believable": times.believable, "difference": difference}


def markdown(results: rows.Results) -> str:
    return rows.comparison(results["rows"], CONTENDERS, [("eager", "ours")], "us", "activation, x, dtype")


def main() -> None:
    options = rows.command("activations", __doc__, "gelu fp32", seconds=1.0).parse_args()
    rows.run(options, CASES, lambda case: measure(case, options.seconds), markdown)


if __name__ == "__main__":
    main()

"""What the op's tests share: layouts, made-up arguments, and the comparison with the reference."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from senet_fast.se import reference, squeeze_excite

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EXCITATIONS = ["two_fc", "one_fc", "channel_conv"]
TENSORS = ("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "residual")

STAND_IN = "cuda_stand_in" in sys.modules  # the GPU is none, and slow: tests/csrc/cuda/stand_in

Arguments = dict[str, Any]  # keyword arguments of squeeze_excite
Function = Callable[..., Tensor]


class Layout(NamedTuple):
    """A way to hold x in memory: ``arrange`` turns a contiguous tensor into one of these strides, same values."""

    name: str
    dim: int
    shape: Callable[[int, int], Sequence[int]]  # of B and K
    arrange: Callable[[Tensor], Tensor] = lambda x: x
    dense: bool = True

    def make(self, B: int, K: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.arrange(torch.randn(*self.shape(B, K), dtype=dtype))


def _restride(*order: int) -> Callable[[Tensor], Tensor]:
    """Memory in this order of axes, the last one innermost."""
    back = [order.index(d) for d in range(len(order))]
    return lambda x: x.permute(order).contiguous().permute(back)


def _every_second(dim: int) -> Callable[[Tensor], Tensor]:
    """x as a slice with step 2 of something twice as long."""

    def arrange(x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[dim] *= 2
        larger = torch.full(shape, float("nan"), dtype=x.dtype)
        sliced = larger[(slice(None),) * dim + (slice(None, None, 2),)]
        return sliced.copy_(x)

    return arrange


LAYOUTS = [
    Layout("nchw", 1, lambda B, K: (B, K, 5, 13)),
    Layout("nchw_1x1", 1, lambda B, K: (B, K, 1, 1)),
    Layout("channels_last", 1, lambda B, K: (B, K, 7, 7), lambda x: x.contiguous(memory_format=torch.channels_last)),
    Layout("nct", 1, lambda B, K: (B, K, 11)),
    Layout("btc", -1, lambda B, K: (B, 11, K)),
    Layout("ncdhw", 1, lambda B, K: (B, K, 2, 3, 5)),
    Layout(
        "channels_last_3d",
        1,
        lambda B, K: (B, K, 2, 3, 5),
        lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    ),
    Layout("nct_transposed", 1, lambda B, K: (B, K, 11), _restride(0, 2, 1)),
    Layout("frequency", 2, lambda B, K: (B, 6, K, 7)),
    Layout("frequency_transposed", 2, lambda B, K: (B, 6, K, 7), _restride(0, 3, 1, 2)),
    Layout("matrix", 1, lambda B, K: (B, K)),
    Layout("batch_transposed", 1, lambda B, K: (B, K, 3, 4), _restride(1, 0, 2, 3)),
    Layout("sliced_batch", 1, lambda B, K: (B, K, 3, 5), _every_second(0), dense=False),
    Layout("sliced_channels", 1, lambda B, K: (B, K, 3, 5), _every_second(1), dense=False),
    Layout("sliced_width", 1, lambda B, K: (B, K, 3, 5), _every_second(3), dense=False),
    Layout("flipped_matrix", 1, lambda B, K: (B, K), _restride(1, 0)),
]
BY_NAME = {layout.name: layout for layout in LAYOUTS}


def weights(
    excitation: str, K: int, R: int, dtype: torch.dtype = torch.float32, *, bias: bool = True, taps: int = 3
) -> Arguments:
    """Weights whose excitation inputs spread over the interesting part of a gate."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    if excitation == "two_fc":
        made = {"fc1_weight": random(R, K), "fc1_bias": random(R), "fc2_weight": random(K, R), "fc2_bias": random(K)}
    elif excitation == "one_fc":
        made = {"fc1_weight": random(K, K, 1, 1), "fc1_bias": random(K)}
    else:
        made = {"fc1_weight": random(1, 1, taps), "fc1_bias": random(1)}
    return {name: tensor for name, tensor in made.items() if bias or not name.endswith("bias")}


def make_arguments(
    layout: Layout,
    dtype: torch.dtype = torch.float32,
    *,
    B: int = 3,
    K: int = 19,
    R: int = 5,
    excitation: str = "two_fc",
    weight_dtype: torch.dtype | None = None,
    bias: bool = True,
    taps: int = 3,
    residual: bool = False,
    **options: Any,
) -> Arguments:
    """Keyword arguments for squeeze_excite, its tensors drawn from torch's generator."""
    made: Arguments = {"x": layout.make(B, K, dtype)}
    made |= weights(excitation, K, R, weight_dtype or dtype, bias=bias, taps=taps)
    if residual:
        made["residual"] = layout.make(B, K, dtype)
    return made | {"excitation": excitation, "dim": layout.dim} | options


def convert(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """The same arguments in another type, each tensor a copy with the strides of the original where it is dense."""
    return {name: v.detach().to(dtype, copy=True) if isinstance(v, Tensor) else v for name, v in arguments.items()}


def exact(arguments: Arguments) -> Arguments:
    """Arguments that give the exact result with the reference: all in float64, and without torch's own hardsigmoid,
    whose slope is a float32 constant in every type.
    """
    same = {"hardsigmoid": f"affine_clamp({1 / 6!r}, 0.5, 0, 1)"}
    return {k: same.get(v, v) if isinstance(v, str) else v for k, v in convert(arguments, torch.float64).items()}


def value_and_grads(
    function: Function, arguments: Arguments, grad_y: Tensor, wanted: Sequence[str] = TENSORS
) -> dict[str, Tensor]:
    """``y`` and the gradient of each wanted tensor, by name."""
    given = {
        name: value.detach().requires_grad_(name in wanted) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    inputs = {name: given[name] for name in wanted if isinstance(given.get(name), Tensor)}
    y = function(**given)
    grads = torch.autograd.grad(y, list(inputs.values()), grad_y.to(y.dtype))
    return {"y": y.detach(), **dict(zip(inputs, grads, strict=True))}


# Errors allowed, in units of the type's epsilon relative to the largest value: in all, and beyond eager's own. A half
# result is rounded once; in float64 the reference itself is off by as much as the op.
_LIMITS = {
    torch.float32: (64, 8),
    torch.float64: (128, 128),
    torch.bfloat16: (1, 0.25),
    torch.float16: (1, 0.25),
}


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def assert_as_exact_as_eager(arguments: Arguments) -> None:
    """Value and gradients of the op against the reference in float64: within the limits of each result's type, and the
    error never larger than that of the reference evaluated in x's own type.
    """
    x = arguments["x"]
    grad_y = torch.randn_like(x)
    expected = value_and_grads(reference.squeeze_excite, exact(arguments), grad_y.double())
    eager = value_and_grads(reference.squeeze_excite, convert(arguments, x.dtype), grad_y)
    ours = value_and_grads(squeeze_excite, arguments, grad_y)
    assert ours.keys() == expected.keys()
    # the sum in a bias gradient may cancel to nothing: weights share one measure, with the size of what they sum
    largest = {name: value.abs().max().item() for name, value in expected.items()}
    of_weights = max(size for name, size in largest.items() if name == "x" or name.startswith("fc"))
    for name, value in ours.items():
        twin = x if name == "y" else arguments[name]
        assert value.shape == twin.shape, name
        assert value.dtype == twin.dtype, name
        unit = torch.finfo(value.dtype).eps * max(of_weights if name.startswith("fc") else largest[name], 1e-30)
        error = (value.double() - expected[name]).abs().max().item() / unit
        eager_error = (eager[name].double() - expected[name]).abs().max().item() / unit
        limit, beyond_eager = _LIMITS[value.dtype]
        assert error <= limit, f"{name} is off by {error:.2f} epsilon"
        assert error <= eager_error + beyond_eager, f"{name} is off by {error:.2f} epsilon, eager by {eager_error:.2f}"

"""The 1x1 convolution with a gate: values against the reference, over types, layouts, sides, excitations and sizes."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from conv_testing import assert_close_to_twin, conv_arguments, lay_out, with_prepared
from se_testing import EXCITATIONS, assert_same_bits

from senet_fast.se import _C, reference
from senet_fast.se.activations import ACTIVATIONS
from senet_fast.se.conv import prepare, squeeze_excite_conv

SIDES = ["input", "output"]
ALL = {"norm": True, "pre": True, "residual": True, "add_one": True, "post_activation": "leaky_relu(0.25)"}
KINDS = {
    "plain": {},
    "tail": {"norm": True, "residual": True, "post_activation": "relu"},
    "all": ALL,
    "pre_activation": {"pre_activation": "relu"},
    "no_bias": {"bias": False, "post_activation": "silu"},
    **{excitation: {"excitation": excitation, "residual": True} for excitation in EXCITATIONS[1:]},
    **{f"{excitation}_all": {"excitation": excitation, **ALL} for excitation in EXCITATIONS[1:]},
}
# B, C_in, C_out, sizes
SHAPES = [
    *[(1, 16, 32, (7, 9)), (2, 17, 1, (5, 13)), (3, 19, 70, (8, 8)), (1, 64, 256, (14, 14)), (33, 8, 24, (3, 3))],
    *[(2, 5, 130, (11,)), (2, 6, 9, (2, 3, 5)), (3, 32, 8, (1, 1)), (1, 129, 65, (1, 9)), (2, 1, 3, (4, 4))],
    *[(2, 3, 2, (1, 2)), (1, 256, 96, (15, 15)), (4, 48, 320, (7, 7))],
]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def fused() -> Iterator[None]:
    """The fused kernel wherever there is one, also where the planner would compose."""
    _C.force_plan_conv(fused=True)
    yield
    _C.force_plan_conv()


@pytest.fixture
def composed() -> Iterator[None]:
    _C.force_plan_conv(fused=False)
    yield
    _C.force_plan_conv()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(dtype: torch.dtype, isa: str, fused: None, kind: str, side: str, channels_last: bool) -> None:
    """With the weights prepared, and to the same bits without."""
    arguments = conv_arguments(dtype, side=side, channels_last=channels_last, **KINDS[kind])
    assert_close_to_twin(with_prepared(arguments))
    assert_same_bits(squeeze_excite_conv(**arguments), squeeze_excite_conv(**with_prepared(arguments)))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(dtype: torch.dtype, fused: None, shape: tuple, side: str, channels_last: bool) -> None:
    """tests/csrc/conv_test.h has them on every instruction set."""
    B, C_in, C_out, sizes = shape
    arguments = conv_arguments(
        dtype, B=B, C_in=C_in, C_out=C_out, sizes=sizes, side=side, channels_last=channels_last, **ALL
    )
    assert_close_to_twin(arguments)
    y = squeeze_excite_conv(**arguments)
    assert y.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(arguments["x"]))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["plain", "all", "channel_conv_all"])
@pytest.mark.parametrize("sizes", [(9,), (5, 13), (2, 3, 4), (1, 1)], ids=str)
def test_composed(
    dtype: torch.dtype, composed: None, kind: str, side: str, channels_last: bool, sizes: tuple[int, ...]
) -> None:
    """By the op and a convolution: what float64, other devices and very small maps get. Rounded at every step."""
    arguments = conv_arguments(dtype, sizes=sizes, side=side, channels_last=channels_last, **KINDS[kind])
    y = squeeze_excite_conv(**arguments)
    tolerance = {"rtol": 0.05, "atol": 0.05} if torch.finfo(dtype).bits == 16 else {}
    expected = reference.squeeze_excite_conv(
        **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    )
    torch.testing.assert_close(y, expected.to(dtype), **tolerance)
    assert y.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(arguments["x"]))


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
def test_float32_weights(dtype: torch.dtype, fused: None, side: str, channels_last: bool) -> None:
    """Beside any x, and as matrices without further axes; the squeeze's weights may have another type than the rest."""
    arguments = conv_arguments(
        dtype, side=side, channels_last=channels_last, weight_dtype=torch.float32, norm=True, excitation="two_fc"
    )
    arguments["weight"] = arguments["weight"].to(dtype).flatten(1)
    assert_close_to_twin(with_prepared(arguments))
    assert_close_to_twin(arguments | {"weight": arguments["weight"].t().contiguous().t()})


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "affine_clamp"])
def test_activations(dtype: torch.dtype, fused: None, side: str, activation: str) -> None:
    kinds = {"activation": activation, "gate": activation, "post_activation": activation}
    for channels_last in (True, False):
        assert_close_to_twin(conv_arguments(dtype, side=side, channels_last=channels_last, **kinds))


PLANS = [
    dict(zip(("threads", "images", "pixels", "across", "channels", "tiles_a_pass", "stream"), plan, strict=True))
    for plan in [
        *[(1, 1, 1, 1, 64, 1, False), (1, 5, 16, 1, 128, 40, True), (2, 2, 64, 1, 64, 3, False)],
        *[(2, 5, 16, 2, 256, 1, True), (3, 1, 64, 3, 64, 1, False), (3, 2, 16, 1, 128, 3, True)],
        *[(3, 5, 7, 2, 64, 40, False), (3, 5, 48, 1, 64, 1, True)],
    ]
]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plans_agree(restore_threads: None, dtype: torch.dtype, side: str, channels_last: bool) -> None:
    """Every cut of the work gives the same bits, with any number of threads, and in any batch."""
    arguments = conv_arguments(
        dtype, B=5, C_in=35, C_out=150, sizes=(9, 11), side=side, channels_last=channels_last, **ALL
    )
    torch.set_num_threads(1)
    expected = squeeze_excite_conv(**with_prepared(arguments))
    assert_close_to_twin(arguments, expected)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(squeeze_excite_conv(**with_prepared(arguments)), expected)
        for plan in PLANS:
            torch.set_num_threads(plan["threads"])
            _C.force_plan_conv(fused=True, **plan)
            assert_same_bits(squeeze_excite_conv(**arguments), expected)
    finally:
        _C.force_plan_conv()
    alone = {name: arguments[name][3:4] for name in ("x", "residual")}
    assert_same_bits(squeeze_excite_conv(**with_prepared(arguments | alone)), expected[3:4])


def test_same_bits_on_each_isa(fused: None) -> None:
    """Where multiplications and additions are fused; bfloat16 only where both multiply float32."""
    wide = [isa for isa in _C.isas() if isa != "baseline"]
    before = _C.isa()
    try:
        for dtype, side in itertools.product((torch.float32, torch.float16, torch.bfloat16), SIDES):
            arguments = conv_arguments(dtype, side=side, C_in=130, **ALL)
            results = []
            for isa in wide:
                if dtype == torch.bfloat16 and isa in ("avx512_bf16", "amx"):
                    continue
                _C.select_isa(isa)
                results.append(squeeze_excite_conv(**arguments))
            for y in results[1:]:
                assert_same_bits(y, results[0])
    finally:
        _C.select_isa(before)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(dtype: torch.dtype, fused: None, side: str, channels_last: bool, bad: float) -> None:
    """What is not finite goes where it goes in the reference, and images beside it see nothing of it. Behind the
    convolution an Inf of x is one of the gate's input here, and in the reference Infs of both signs, that is NaN.
    """
    arguments = conv_arguments(dtype, B=3, side=side, channels_last=channels_last, post_activation="relu", C_in=17)
    before = squeeze_excite_conv(**arguments)
    arguments["x"][1, 5, 2, 3] = bad
    expected = reference.squeeze_excite_conv(**arguments)
    y = squeeze_excite_conv(**arguments)
    assert not expected[1].isfinite().all()
    if side == "output" and bad == bad:
        assert not y[1].isfinite().all()
    else:
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.isinf(), expected.isinf())
    assert_same_bits(y[[0, 2]], before[[0, 2]])


@pytest.mark.filterwarnings("ignore:.*the images of x")
@pytest.mark.parametrize("side", SIDES)
def test_not_dense(dtype: torch.dtype, fused: None, side: str) -> None:
    arguments = conv_arguments(dtype, B=4, side=side, residual=True, channels_last=False)
    x, residual = arguments["x"], arguments["residual"]
    larger = torch.full((8, 38, 10, 13), float("nan"), dtype=dtype)
    for view in (larger[::2, :19, :5], larger[:4, ::2, ::2], larger.permute(3, 1, 2, 0)[:4, :19, :5, :1]):
        view = view.expand(-1, -1, -1, 1) if view.shape[3] == 1 else view
        given = arguments | {"x": view.copy_(x[..., : view.shape[3]]), "residual": residual[..., : view.shape[3]]}
        assert_close_to_twin(given)
    assert_close_to_twin(arguments | {"residual": lay_out(residual, True)})
    assert_close_to_twin(arguments | {"x": lay_out(x, True)})
    transposed = conv_arguments(dtype, side=side, sizes=(11,))
    transposed["x"] = transposed["x"].transpose(1, 2).contiguous().transpose(1, 2)
    assert_close_to_twin(transposed)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(0, 5, 4, 4), (2, 5, 0, 4)])
def test_empty(dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool) -> None:
    arguments = conv_arguments(dtype, C_in=5, C_out=7, channels_last=channels_last)
    arguments["x"] = lay_out(torch.empty(shape, dtype=dtype), channels_last)
    assert squeeze_excite_conv(**arguments).shape == (shape[0], 7, *shape[2:])


def test_prepared_for_another_layout(fused: None) -> None:
    """Is not used, and that is said."""
    arguments = conv_arguments(side="output", **ALL)
    given = {k: arguments[k] for k in ("weight", "bias", "fc1_weight", "fc1_bias", "side", "norm_scale", "norm_shift")}
    other = prepare(**given, channels_last=False)
    assert other.weight.shape == (37, 19)
    assert_close_to_twin(arguments | {"prepared": other})


def test_what_is_prepared() -> None:
    arguments = conv_arguments(side="output", norm=True, C_in=19, C_out=37)
    weight, bias, scale, shift = (arguments[k] for k in ("weight", "bias", "norm_scale", "norm_shift"))
    given = {"side": "output", "norm_scale": scale, "norm_shift": shift}
    made = prepare(weight, bias, arguments["fc1_weight"], arguments["fc1_bias"], **given)
    assert made.weight.shape == (3, 19, 16)
    back = made.weight.transpose(1, 2).flatten(0, 1)
    assert torch.equal(back[:37], weight.flatten(1))
    assert not back[37:].any()
    torch.testing.assert_close(made.scale, scale)
    torch.testing.assert_close(made.shift, bias * scale + shift)
    torch.testing.assert_close(made.fc1_weight, arguments["fc1_weight"] @ (weight.flatten(1) * scale[:, None]))
    torch.testing.assert_close(made.fc1_bias, arguments["fc1_weight"] @ made.shift + arguments["fc1_bias"])
    input_side = prepare(weight, bias, torch.randn(5, 19))
    assert input_side.fc1_weight.numel() == input_side.fc1_bias.numel() == 0
    assert made.weight.data_ptr() != weight.data_ptr()

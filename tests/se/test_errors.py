"""Bad input: a ValueError or TypeError that names the argument, its value and what was expected, from real, meta and
compiled calls alike; and nothing changes.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from senet_fast.se import _C, FusedSE, SEBlock, reference, squeeze_excite
from senet_fast.se.activations import ACTIVATIONS, parse

K, R = 6, 2
ONE_FC = {"excitation": "one_fc", "fc1_weight": torch.randn(K, K), "fc1_bias": None}
ONE_FC |= {"fc2_weight": None, "fc2_bias": None}
CONV = ONE_FC | {"excitation": "channel_conv", "fc1_weight": torch.randn(1, 1, 3)}


def good() -> dict[str, Any]:
    return {
        "x": torch.randn(2, K, 4, 5),
        "fc1_weight": torch.randn(R, K),
        "fc1_bias": torch.randn(R),
        "fc2_weight": torch.randn(K, R),
        "fc2_bias": torch.randn(K),
        "residual": torch.randn(2, K, 4, 5),
    }


# what is changed, the error, and the parts of its message: the argument, its value, what was expected
BAD: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "x_rank_0": ({"x": torch.randn(())}, ValueError, ["x has shape []", "at least 2-D"]),
    "x_rank_1": ({"x": torch.randn(K)}, ValueError, ["x has shape [6]", "at least 2-D"]),
    "x_no_channels": ({"x": torch.randn(2, 0, 3)}, ValueError, ["x has shape [2, 0, 3]", "at least 1 channel"]),
    "x_int": (
        {"x": torch.ones(2, K, 4, dtype=torch.int32)},
        TypeError,
        ["x is Int", "Float, Double, BFloat16 or Half"],
    ),
    "x_bool": ({"x": torch.ones(2, K, 4, dtype=torch.bool)}, TypeError, ["x is Bool", "Float, Double"]),
    "x_complex": (
        {"x": torch.randn(2, K, 4, dtype=torch.complex64)},
        TypeError,
        ["x is ComplexFloat", "Float, Double"],
    ),
    "x_float8": (
        {"x": torch.randn(2, K, 4).to(torch.float8_e4m3fn)},
        TypeError,
        ["x is Float8_e4m3fn", "Float, Double, BFloat16 or Half"],
    ),
    "wrong_channels": ({"x": torch.randn(2, 7, 4, 5)}, ValueError, ["fc1_weight has shape [2, 6]", "expected [2, 7]"]),
    "hidden_0": (
        {"fc1_weight": torch.randn(0, K), "fc1_bias": None},
        ValueError,
        ["fc1_weight has shape [0, 6]", "expected [R, 6] with R at least 1"],
    ),
    "fc1_rank_1": ({"fc1_weight": torch.randn(K)}, ValueError, ["fc1_weight has shape [6]", "expected [R, 6]"]),
    "fc1_kernel_3": (
        {"fc1_weight": torch.randn(R, K, 3, 3)},
        ValueError,
        ["fc1_weight has shape [2, 6, 3, 3]", "expected [2, 6] (or with further axes of size 1)"],
    ),
    "fc1_transposed": ({"fc1_weight": torch.randn(K, R)}, ValueError, ["fc1_weight has shape [6, 2]", "[6, 6]"]),
    "fc1_bias_shape": ({"fc1_bias": torch.randn(K)}, ValueError, ["fc1_bias has shape [6]", "expected [2]"]),
    "fc1_bias_rank": ({"fc1_bias": torch.randn(())}, ValueError, ["fc1_bias has shape []", "expected [2]"]),
    "fc2_shape": ({"fc2_weight": torch.randn(K, 3)}, ValueError, ["fc2_weight has shape [6, 3]", "expected [6, 2]"]),
    "fc2_missing": ({"fc2_weight": None}, ValueError, ["fc2_weight is None", "[K, R]", "two_fc"]),
    "fc2_bias_shape": ({"fc2_bias": torch.randn(R)}, ValueError, ["fc2_bias has shape [2]", "expected [6]"]),
    "one_fc_square": (
        ONE_FC | {"fc1_weight": torch.randn(R, K)},
        ValueError,
        ["fc1_weight has shape [2, 6]", "expected [6, 6]"],
    ),
    "one_fc_with_fc2": (
        ONE_FC | {"fc2_weight": torch.randn(K, R)},
        ValueError,
        ["fc2_weight was given", "expected None", "'one_fc'"],
    ),
    "conv_with_fc2_bias": (
        CONV | {"fc2_bias": torch.randn(K)},
        ValueError,
        ["fc2_bias was given", "expected None", "'channel_conv'"],
    ),
    "conv_even": (CONV | {"fc1_weight": torch.randn(1, 1, 4)}, ValueError, ["fc1_weight has shape [1, 1, 4]", "odd k"]),
    "conv_empty": (CONV | {"fc1_weight": torch.randn(0)}, ValueError, ["fc1_weight has shape [0]", "odd k"]),
    "conv_channels": (CONV | {"fc1_weight": torch.randn(2, 1, 3)}, ValueError, ["[2, 1, 3]", "[k] or [1, 1, k]"]),
    "conv_rank_0": (CONV | {"fc1_weight": torch.randn(())}, ValueError, ["fc1_weight has shape []", "odd k"]),
    "conv_bias": (CONV | {"fc1_bias": torch.randn(K)}, ValueError, ["fc1_bias has shape [6]", "expected [1]"]),
    "weight_int": ({"fc1_weight": torch.ones(R, K, dtype=torch.int64)}, TypeError, ["fc1_weight is Long", "Float"]),
    "weight_wider": (
        {"fc1_weight": torch.randn(R, K, dtype=torch.float64)},
        TypeError,
        ["fc1_weight is Double", "the dtype of x (Float) or Float"],
    ),
    "weights_mixed": (
        {"x": torch.randn(2, K, 4).bfloat16(), "residual": None, "fc2_weight": torch.randn(K, R).bfloat16()},
        TypeError,
        ["fc2_weight is BFloat16", "the dtype of fc1_weight (Float)"],
    ),
    "bias_half": (
        {"fc1_bias": torch.randn(R).half()},
        TypeError,
        ["fc1_bias is Half", "the dtype of x (Float)"],
    ),
    "residual_shape": (
        {"residual": torch.randn(2, K, 1, 1)},
        ValueError,
        ["residual has shape [2, 6, 1, 1]", "the shape of x [2, 6, 4, 5]"],
    ),
    "residual_dtype": (
        {"residual": torch.randn(2, K, 4, 5).double()},
        TypeError,
        ["residual is Double", "the dtype of x (Float)"],
    ),
    "dim_0": ({"dim": 0}, ValueError, ["dim is 0", "an axis of x (4-D) other than 0"]),
    "dim_batch_from_the_end": ({"dim": -4}, ValueError, ["dim is -4", "other than 0"]),
    "dim_too_large": ({"dim": 4}, ValueError, ["dim is 4", "an axis of x (4-D)"]),
    "dim_too_small": ({"dim": -5}, ValueError, ["dim is -5", "an axis of x (4-D)"]),
    "dim_of_others": ({"dim": 2}, ValueError, ["fc1_weight has shape [2, 6]", "expected [2, 4]"]),
    "excitation": ({"excitation": "fc"}, ValueError, ["excitation is 'fc'", "two_fc, one_fc or channel_conv"]),
}
for place in ("activation", "gate", "post_activation"):
    BAD[f"{place}_unknown"] = ({place: "swish"}, ValueError, [f"{place} is 'swish'", ", ".join(ACTIVATIONS)])
    BAD[f"{place}_arguments"] = ({place: "affine_clamp(1, 2)"}, ValueError, [f"{place} is 'affine_clamp(1, 2)'"])


def _as_given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def _assert_message(error: BaseException, parts: list[str]) -> None:
    for part in parts:
        assert part in str(error), f"{part!r} is not in {error}"


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("track", [False, True], ids=["plain", "requires_grad"])
def test_bad_arguments(case: str, track: bool) -> None:
    changed, kind, parts = BAD[case]
    arguments = good() | changed
    if track:
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                arguments[name] = value.clone().requires_grad_()
    before = _as_given(arguments)
    versions = {name: value._version for name, value in arguments.items() if isinstance(value, Tensor)}
    with pytest.raises(kind) as caught:
        squeeze_excite(**arguments)
    assert type(caught.value) is kind
    _assert_message(caught.value, parts)
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(arguments[name], value)
            assert arguments[name]._version == versions[name], name


@pytest.mark.parametrize("case", BAD)
def test_same_error_on_meta(case: str) -> None:
    changed, kind, parts = BAD[case]
    meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in (good() | changed).items()}
    with pytest.raises(kind) as caught:
        squeeze_excite(**meta)
    _assert_message(caught.value, parts)


@pytest.mark.parametrize("case", ["x_int", "wrong_channels", "residual_shape", "gate_unknown", "dim_0", "conv_even"])
@pytest.mark.usefixtures("fresh_dynamo")
def test_same_error_under_compile(case: str) -> None:
    """Dynamo wraps errors of fake tensors in its own: the message is still there, with the line of the caller."""
    changed, _, parts = BAD[case]
    arguments = good() | changed
    compiled = torch.compile(lambda a: squeeze_excite(**a), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=re.escape(parts[0])) as caught:
        compiled(arguments)
    _assert_message(caught.value, parts)


@pytest.mark.parametrize("name", ["fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "residual"])
def test_devices_must_agree(name: str) -> None:
    arguments = good()
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=re.escape(f"{name} is on meta; expected the device of x (cpu)")):
        squeeze_excite(**arguments)


def test_meta_x_beside_real_weights() -> None:
    arguments = good()
    arguments["x"] = arguments["x"].to("meta")
    with pytest.raises(ValueError, match=re.escape("fc1_weight is on cpu; expected the device of x (meta)")):
        squeeze_excite(**arguments)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        " ",
        "(",
        ")",
        "ReLU",
        "relu ",
        "relu(",
        "relu)",
        "relu()",
        "relu(1)",
        "leaky_relu(",
        "leaky_relu(0.2",
        "leaky_relu()",
        "leaky_relu(a)",
        "leaky_relu(0.2, 0.3)",
        "leaky_relu(0.2,)",
        "leaky_relu(0.2)x",
        "leaky_relu(0.2))",
        "leaky_relu(1_0)",
        "leaky_relu(0.1 0.2)",
        "affine_clamp",
        "affine_clamp(1,2,3)",
        "affine_clamp(1,2,3,4,5)",
    ],
)
@pytest.mark.parametrize("argument", ["activation", "gate", "post_activation"])
def test_bad_specs(spec: str, argument: str) -> None:
    """Refused in both languages: by the op, by the module's constructor and by the reference."""
    named = re.escape(f"{argument} is '{spec}'") + ".*(expected|must be)"
    with pytest.raises(ValueError, match=named):
        squeeze_excite(**good(), **{argument: spec})
    with pytest.raises(ValueError, match=named):
        FusedSE(8, 2, **{argument: spec})
    with pytest.raises(ValueError, match=named):
        reference.squeeze_excite(**good(), **{argument: spec})


@pytest.mark.parametrize("spec", ["leaky_relu(1e400)", "leaky_relu(+0.2)", "leaky_relu(.5e0)", "leaky_relu(-.5)"])
def test_both_languages_read_the_same_specs(spec: str) -> None:
    """A number that one side takes the other one takes, or both refuse it."""

    def takes(function: Any, *args: Any, **kwargs: Any) -> bool:
        try:
            function(*args, **kwargs)
        except ValueError:
            return False
        return True

    assert takes(parse, spec) == takes(squeeze_excite, **good(), activation=spec)


@pytest.mark.parametrize("block", [FusedSE, SEBlock])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": 0}, "channels is 0; expected at least 1"),
        ({"channels": -8}, "channels is -8; expected at least 1"),
        ({"channels": 16, "reduction": 0}, "reduction is 0; expected at least 1"),
        ({"channels": 16, "reduction": -4}, "reduction is -4; expected at least 1"),
        ({"channels": 8, "reduction": 16}, "channels // reduction is 8 // 16 = 0; expected at least 1"),
        ({"channels": 8, "hidden_channels": 0}, "hidden_channels is 0; expected at least 1"),
        ({"channels": 8, "hidden_channels": -1}, "hidden_channels is -1; expected at least 1"),
    ],
    ids=str,
)
def test_bad_sizes(block: type[nn.Module], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        block(**sizes)


@pytest.mark.parametrize("block", [FusedSE, SEBlock])
@pytest.mark.parametrize("argument", ["activation", "gate"])
@pytest.mark.parametrize("value", [nn.PReLU(), nn.PReLU, nn.Linear, torch.erf, 3, None])
def test_bad_activation_objects(block: type[nn.Module], argument: str, value: object) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{argument} is {value!r}; expected a name (identity, relu")):
        block(8, 2, **{argument: value})


def test_module_refuses_other_channels() -> None:
    with pytest.raises(ValueError, match=re.escape("fc1_weight has shape [2, 8, 1, 1]; expected [2, 6]")):
        FusedSE(8, 4)(torch.randn(1, 6, 3, 3))


def test_from_block_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match=re.escape("block is a Linear; expected senet_fast.SEBlock")):
        FusedSE.from_block(nn.Linear(3, 3))


def test_unknown_instruction_set() -> None:
    before = _C.isa()
    with pytest.raises(ValueError, match=re.escape("name is 'mmx'; expected one of " + ", ".join(_C.isas()))):
        _C.select_isa("mmx")
    assert _C.isa() == before


def test_bad_saved_state() -> None:
    """The backward op does not trust what it is given."""
    arguments = good()
    backward = torch.ops.senet_fast.squeeze_excite_backward
    _, saved = torch.ops.senet_fast.squeeze_excite_forward(**arguments)
    mask, x = [True] * 6, arguments["x"]
    for wrong in (saved[:, 1:], saved[:1], saved.double(), saved[0]):
        with pytest.raises(ValueError, match=r"saved is .*expected what squeeze_excite_forward returned"):
            backward(x, wrong, mask, **arguments)
    for wrong in (x[:1], x.double(), x[..., 0]):
        with pytest.raises(ValueError, match=r"grad_y is .*expected Float of \[2, 6, 4, 5\]"):
            backward(wrong, saved, mask, **arguments)

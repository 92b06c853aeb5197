"""squeeze_excite_conv as an op: opcheck, graphs, exports, autocast; and what it refuses, with the argument named."""

import io
import re
from typing import Any

import needs
import pytest
import torch
from conv_testing import assert_close_to_twin, conv_arguments, with_prepared
from torch import nn

from senet_fast.se import _C, reference
from senet_fast.se.conv import prepare, squeeze_excite_conv

SIDES = ["input", "output"]
OP = torch.ops.senet_fast.squeeze_excite_conv.default
NAMES = ("x", "weight", "bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "residual")


def split(arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The op's arguments by position and by name."""
    rest = {k: v for k, v in arguments.items() if k not in NAMES}
    return tuple(arguments.get(name) for name in NAMES), {"prepared": ()} | rest


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("with_weights_prepared", [True, False])
def test_opcheck(dtype: torch.dtype, side: str, channels_last: bool, with_weights_prepared: bool) -> None:
    arguments = conv_arguments(dtype, side=side, channels_last=channels_last, residual=True, norm=True, pre=True)
    if with_weights_prepared:
        arguments = with_prepared(arguments)
    args, kwargs = split(arguments)
    torch.library.opcheck(OP, args, kwargs)


@pytest.mark.parametrize("side", SIDES)
def test_opcheck_of_prepare(side: str) -> None:
    arguments = conv_arguments(side=side)
    args = tuple(arguments[name] for name in ("weight", "bias", "fc1_weight", "fc1_bias"))
    for dtype, channels_last in ((torch.float32, True), (torch.bfloat16, False)):
        torch.library.opcheck(
            torch.ops.senet_fast.squeeze_excite_conv_prepare.default,
            args,
            {"side": side, "dtype": dtype, "channels_last": channels_last},
        )


class Block(nn.Module):
    """A 1x1 convolution with a gate on one side; its weights prepared in the graph, or not at all."""

    def __init__(self, side: str, *, prepared: bool) -> None:
        super().__init__()
        made = conv_arguments(side=side, C_in=32, C_out=48, R=4)
        for name in ("weight", "bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
            setattr(self, name, nn.Parameter(made[name], requires_grad=False))
        self.side, self.prepared = side, prepared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = (self.weight, self.bias, self.fc1_weight, self.fc1_bias)
        made = prepare(*first, side=self.side) if self.prepared else None
        return squeeze_excite_conv(x, *first, self.fc2_weight, self.fc2_bias, side=self.side, prepared=made)


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("prepared", [True, False])
def test_compile_and_export(side: str, prepared: bool) -> None:
    block = Block(side, prepared=prepared).eval()
    x = torch.randn(2, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    expected = block(x)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, fullgraph=True)(x), expected)
        exported = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.testing.assert_close(exported.module()(torch.cat([x, x, x])), torch.cat([expected] * 3))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_frozen_graph_holds_what_is_prepared(side: str) -> None:
    """Under freezing the weights are constants, and so is what follows from them: no call of prepare is left."""
    import torch._inductor.config as config
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    block = Block(side, prepared=True).eval()
    x = torch.randn(2, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), config.patch(freezing=True):
        y, code = run_and_get_code(torch.compile(block), x)
    torch.testing.assert_close(y, block(x))
    assert "squeeze_excite_conv.default" in code[0]
    assert "squeeze_excite_conv_prepare" not in code[0]


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(side: str, dynamo: bool) -> None:
    onnxruntime = needs.library("onnxruntime")
    onnx = needs.library("onnx")
    needs.library("onnxscript")
    block = Block(side, prepared=dynamo).eval()
    x = torch.randn(2, 32, 9, 9)
    file = io.BytesIO()
    with torch.no_grad():
        if dynamo:
            model = torch.onnx.export(block, (x,), dynamo=True, verbose=False).model_proto
        else:
            torch.onnx.export(block, (x,), file, dynamo=False)
            model = onnx.load_model_from_string(file.getvalue())
        expected = block(x)
    assert {node.domain for node in model.graph.node} == {""}
    assert "Conv" in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_autocast(side: str) -> None:
    """As the convolution: x and the residual become half, the weights stay."""
    arguments = conv_arguments(side=side, residual=True, pre_activation="relu")
    with torch.autocast("cpu", torch.bfloat16):
        y = squeeze_excite_conv(**arguments)
    assert y.dtype == torch.bfloat16
    half = {k: arguments[k].bfloat16() for k in ("x", "residual")}
    assert_close_to_twin(arguments | half | {"weight": arguments["weight"].bfloat16().float()}, y)


def test_without_derivative() -> None:
    arguments = conv_arguments()
    arguments |= {"pre_scale": torch.ones(19)}
    for name in ("x", "weight", "fc2_bias", "pre_scale"):
        wanted = {name: arguments[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=r"squeeze_excite_conv: has no derivative; expected torch\.no_grad"):
            squeeze_excite_conv(**arguments | wanted)
        with torch.no_grad():
            squeeze_excite_conv(**arguments | wanted)
        with torch.inference_mode():
            squeeze_excite_conv(**arguments)
    with pytest.raises(RuntimeError, match=r"neither tangents nor torch\.func's"):
        torch.func.jvp(lambda x: squeeze_excite_conv(**arguments | {"x": x}), (arguments["x"],), (arguments["x"],))


t = torch.zeros
BAD = [
    ({"x": t(3, 19)}, "x has shape [3, 19]; expected [B, C, ...], 3-D to 5-D"),
    ({"x": t(3, 0, 4, 4)}, "x has shape [3, 0, 4, 4]; expected at least 1 channel along dim 1"),
    ({"x": t(2, 19, 4, 4, dtype=torch.int32)}, "x is Int; expected Float, Double, BFloat16 or Half"),
    ({"weight": t(37, 18, 1, 1)}, "weight has shape [37, 18, 1, 1]; expected [C_out, 19] with C_out at least 1"),
    ({"weight": t(37, 19, 3, 3)}, "weight has shape [37, 19, 3, 3]; expected [C_out, 19]"),
    ({"weight": t(37, 19, dtype=torch.float64)}, "weight is Double; expected the dtype of x (Float) or Float"),
    ({"bias": t(36)}, "bias has shape [36]; expected [37]"),
    ({"bias": t(37, dtype=torch.int64)}, "bias is Long; expected a floating-point tensor"),
    ({"norm_scale": t(19)}, "norm_scale has shape [19]; expected [37]"),
    ({"norm_shift": t(1, 37)}, "norm_shift has shape [1, 37]; expected [37]"),
    ({"pre_scale": t(37)}, "pre_scale has shape [37]; expected [19]"),
    ({"pre_shift": t(19, dtype=torch.int64)}, "pre_shift is Long; expected a floating-point tensor"),
    ({"pre_activation": "silo"}, "pre_activation is 'silo'; expected one of identity"),
    ({"side": "both"}, "side is 'both'; expected input or output"),
    ({"residual": t(2, 19, 5, 13)}, "residual has shape [2, 19, 5, 13]; expected [2, 37, 5, 13]"),
    ({"residual": t(2, 37, 5, 13).half()}, "residual is Half; expected the dtype of x (Float)"),
    ({"fc1_weight": t(5, 37)}, "fc1_weight has shape [5, 37]; expected [5, 19]"),
    ({"fc2_weight": None}, "fc2_weight is None; expected [K, R]"),
    ({"excitation": "two"}, "excitation is 'two'; expected two_fc, one_fc or channel_conv"),
    ({"gate": "sigmod"}, "gate is 'sigmod'; expected one of identity"),
    ({"post_activation": "rlu"}, "post_activation is 'rlu'; expected one of identity"),
    ({"prepared": (t(1),)}, "prepared has 1 tensors; expected the 5 of squeeze_excite_conv_prepare"),
    ({"prepared": (t(1), t(36), t(37), t(0), t(0))}, "prepared[1] (scale) is "),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_errors(bad: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        squeeze_excite_conv(**conv_arguments() | bad)


def test_errors_on_output() -> None:
    arguments = conv_arguments(side="output")
    with pytest.raises(ValueError, match=re.escape("fc1_weight has shape [5, 19]; expected [5, 37]")):
        squeeze_excite_conv(**arguments | {"fc1_weight": t(5, 19)})
    made = with_prepared(arguments)["prepared"]
    with pytest.raises(ValueError, match=re.escape("prepared[3] (fc1_weight) is torch.FloatTensor[5, 37]")):
        squeeze_excite_conv(**arguments | {"prepared": made._replace(fc1_weight=t(5, 37))})
    with pytest.raises(ValueError, match="side is 'both'; expected input or output"):
        reference.squeeze_excite_conv(**arguments | {"side": "both"})


def test_refused_tensors() -> None:
    for x in (torch.zeros(2, 19, 3, 3).to_sparse(), torch.zeros(2, 19, 3, 3).to_mkldnn()):
        with pytest.raises(TypeError, match="expected a dense tensor"):
            squeeze_excite_conv(**conv_arguments() | {"x": x})


def test_plan() -> None:
    """What is chosen, and why."""
    plan = _C.plan_conv(16, 64, 56 * 56, 256, 16, side="output", residual=True)
    assert plan["fused"]
    assert plan["images"] < 16
    assert len(plan["because"]) == 3
    assert not _C.plan_conv(1, 64, 4, 256, 16)["fused"]
    assert "8 pixels" in _C.plan_conv(1, 64, 4, 256, 16)["because"][0]
    assert "float64" in _C.plan_conv(1, 64, 49, 256, 16, dtype="float64")["because"][0]
    assert not _C.plan_conv(1, 512, 49, 2048, 128, side="output", prepared=False)["fused"]
    assert _C.plan_conv(1, 512, 49, 2048, 128, side="output")["fused"]
    for bad in ({"B": 0}, {"side": "both"}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            _C.plan_conv(**{"B": 1, "C_in": 8, "pixels": 9, "C_out": 8, "R": 1} | bad)
    with pytest.raises(ValueError, match="pixels is 65; expected at most 64"):
        _C.force_plan_conv(pixels=65)
    with pytest.raises(ValueError, match="channels is 48; expected a multiple of 64"):
        _C.force_plan_conv(channels=48)

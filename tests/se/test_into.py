"""What inference adds: a prologue in front, and outputs written where the caller says."""

import re

import pytest
import torch
from se_testing import BY_NAME, Layout, assert_same_bits, make_arguments
from torch import Tensor, nn

from senet_fast.se import _C, FusedSE, reference, squeeze_excite

PRE = ["identity", "relu", "silu", "affine_clamp(0.5, 0.25, -1, 1)"]


def prologue_of(arguments: dict[str, object], activation: str) -> dict[str, object]:
    K = arguments["fc2_weight"].shape[0]
    return {"pre_scale": torch.rand(K) + 0.5, "pre_shift": torch.randn(K), "pre_activation": activation}


@pytest.mark.parametrize("pre_activation", PRE)
def test_prologue(dtype: torch.dtype, layout: Layout, pre_activation: str) -> None:
    """The bits of the op on u, rounded as eager rounds a BatchNorm's output; and close to the twin."""
    arguments = make_arguments(layout, dtype, K=67, R=9, residual=True, post_activation="relu")
    pre = prologue_of(arguments, pre_activation)
    y = squeeze_excite(**arguments, **pre)
    u = reference.prologue(arguments["x"], *pre.values(), arguments.get("dim", 1))
    expected = reference.squeeze_excite(**{**arguments, "x": u})
    assert y.stride() == torch.empty_like(arguments["x"]).stride()
    torch.testing.assert_close(y, expected, **({"rtol": 5e-2, "atol": 1e-1} if dtype.itemsize == 2 else {}))
    if pre_activation in ("identity", "relu"):  # others are not the same to the last bit in torch
        assert_same_bits(y, squeeze_excite(**{**arguments, "x": u}))


@pytest.mark.parametrize("given", ["pre_scale", "pre_shift", "pre_activation"])
def test_prologue_in_part(given: str) -> None:
    arguments = make_arguments(BY_NAME["nchw"], torch.float32)
    pre = {given: prologue_of(arguments, "relu")[given]}
    torch.testing.assert_close(squeeze_excite(**arguments, **pre), reference.squeeze_excite(**arguments, **pre))


@pytest.mark.parametrize("pre_activation", [None, "relu", "silu"])
@pytest.mark.parametrize("where", ["new", "x", "residual", "strided"])
def test_out(dtype: torch.dtype, layout: Layout, where: str, pre_activation: str | None) -> None:
    """Wherever y goes, it has the same bits, and only there is anything written."""
    arguments = make_arguments(layout, dtype, K=67, R=9, residual=True, post_activation="relu")
    pre = {} if pre_activation is None else prologue_of(arguments, pre_activation)
    y = squeeze_excite(**arguments, **pre)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    if where == "strided":
        wide = torch.full((2 * y.shape[0], *y.shape[1:]), 7.0, dtype=dtype)
        out = wide[::2]
    else:
        out = torch.empty_like(y) if where == "new" else arguments[where]
    assert squeeze_excite(**arguments, **pre, out=out) is out
    assert_same_bits(out, y)
    if where == "strided":
        assert (wide[1::2] == 7).all()
    for name, value in before.items():
        if name != where:
            assert_same_bits(arguments[name], value)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [5, 24, 64])
@pytest.mark.parametrize("side", [1, 3, 7, 14, 31])
def test_in_place_at_every_alignment(
    channels: int, side: int, memory_format: torch.memory_format, stream: bool
) -> None:
    """Vectors that overlap at the ends of runs must not be scaled twice, wherever a line begins."""
    block = FusedSE(channels, 4)
    try:
        _C.force_plan(stream=stream, threads=2, images_per_tile=1, overlap=stream)
        for offset in range(0, 17, 3):
            memory = torch.randn(offset + 2 * channels * side * side)[offset:]
            x = memory.view(2, side, side, channels).permute(0, 3, 1, 2)
            if memory_format == torch.contiguous_format:
                x = memory.view(2, channels, side, side)
            with torch.no_grad():
                expected = block(x.clone())
                assert_same_bits(squeeze_excite(x, *block.parameters(), out=x), expected)
    finally:
        _C.force_plan()


def test_module_in_place() -> None:
    block, x = FusedSE(64, inplace=True), torch.randn(2, 64, 9, 9)
    y = block(x)
    assert y is not x
    with torch.no_grad():
        assert block(x) is not x  # in training mode a checkpoint may want x again
        assert block.eval()(x) is x
        assert_same_bits(x, y)
    assert "inplace=True" in repr(block)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_writing_is_seen_by_autograd(mode: type) -> None:
    """A tensor saved for backward and then overwritten raises, as with torch's own in-place functions."""
    block, x = FusedSE(8, 2).requires_grad_(False), torch.randn(2, 8, 5, 5, requires_grad=True)
    h = x * 2
    z = h.exp() * h
    with mode():
        squeeze_excite(h, block.fc1.weight, block.fc1.bias, block.fc2.weight, block.fc2.bias, out=h)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@torch.inference_mode()
def test_inference_mode() -> None:
    block, x = FusedSE(8, 2, inplace=True).eval(), torch.randn(2, 8, 5, 5)
    expected = FusedSE.forward(block.requires_grad_(False), x.clone())
    assert_same_bits(block(x), expected)


def test_registration() -> None:
    arguments = make_arguments(BY_NAME["channels_last"], torch.float32, residual=True)
    pre = prologue_of(arguments, "silu")
    tensors = [
        arguments.pop(name, None) for name in ("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "residual")
    ]
    torch.library.opcheck(torch.ops.senet_fast.squeeze_excite_prologue.default, tensors, {**arguments, **pre})
    out = torch.empty_like(tensors[0])
    torch.library.opcheck(torch.ops.senet_fast.squeeze_excite_into.default, tensors, {**arguments, **pre, "y": out})


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("residual", ["none", "other", "same", "view"])
def test_compile(memory_format: torch.memory_format, residual: str) -> None:
    """In the compiled graph, too, y takes the place of x, in the layout that Inductor gave the convolution's result;
    not beside a residual of its memory, whose values may be wanted again.
    """
    convolution, block = nn.Conv2d(3, 32, 3, padding=1), FusedSE(32, 2, inplace=True).eval()

    def network(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor | None]:
        u = convolution(x)
        beside = {"none": None, "other": other, "same": u, "view": u.view(u.shape)}[residual]
        y = block(u, beside, pre_scale=torch.full((32,), 0.5), pre_activation="relu")
        return y + 1, None if beside is None else beside * 2

    x, other = (torch.randn(2, n, 18, 20).contiguous(memory_format=memory_format) for n in (3, 32))
    with torch.no_grad():
        y, (code,) = torch._inductor.utils.run_and_get_code(torch.compile(network, fullgraph=True), x, other)
        torch.testing.assert_close(y, network(x, other))
    (call,) = re.findall(r"ops.senet_fast.squeeze_excite\w*\.default\((.*)\)", code)
    given, in_place = call.split(", "), residual in ("none", "other")
    assert (f"y={given[0]}" in given) == in_place
    new = len(re.findall(r"= empty_strided_cpu\(\(2, 32, 18, 20\), ", code))
    assert not in_place or new <= 1 + (residual == "other")  # for what is behind it


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_of_one_image() -> None:
    """Inductor gives x and y, one buffer, different strides along the batch."""
    layer, block = nn.Linear(8, 8), FusedSE(8, 2, inplace=True).eval()

    def network(tokens: Tensor) -> Tensor:
        return block(layer(tokens).transpose(1, 2).unflatten(2, (5, 7))) + 1

    x = torch.randn(1, 35, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(network, fullgraph=True)(x), network(x))


@pytest.mark.parametrize("pre_activation", [None, "relu"])
def test_strides_of_axes_of_one(pre_activation: str | None) -> None:
    """Say nothing about where a tensor lies: out may still be x and, without a prologue, the residual."""
    arguments = make_arguments(BY_NAME["nchw"], torch.float32, residual=True)
    pre = {} if pre_activation is None else prologue_of(arguments, pre_activation)
    x, residual = (arguments[name][:1].contiguous() for name in ("x", "residual"))
    expected = squeeze_excite(**arguments | {"x": x, "residual": residual}, **pre)
    for name, given in (("x", x.clone()), ("residual", residual.clone())):
        out = given.as_strided(given.shape, (1, *given.stride()[1:]))
        squeeze_excite(**arguments | {"x": x, "residual": residual, name: given}, **pre, out=out)
        assert_same_bits(given, expected)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("residual", ["same", "view", "base"])
def test_residual_of_the_memory_of_x_under_dynamo(residual: str) -> None:
    """Neither is written over, as in eager mode: who gave it may want it again."""
    block = FusedSE(8, 2, inplace=True).eval()

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u = x * 2
        view = u.view(u.shape)
        given, beside = {"same": (u, u), "view": (u, view), "base": (view, u)}[residual]
        return block(given, beside), given, block(x, x)

    x = torch.randn(2, 8, 5, 7)
    kept = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="eager")(x), run(kept))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("pre_activation", [None, "relu"])
def test_residual_in_the_memory_of_out(offset: int, pre_activation: str | None) -> None:
    """Read before it is written over, also where y = out = x."""
    arguments = make_arguments(BY_NAME["nchw"], torch.float32)
    pre = {} if pre_activation is None else prologue_of(arguments, pre_activation)
    x = arguments["x"]
    flat = torch.randn(x.numel() + 1)
    out = flat[:-1].view(x.shape)
    arguments |= {"x": out if offset == 0 else x, "residual": flat[offset : offset + x.numel()].view(x.shape)}
    expected = squeeze_excite(**arguments, **pre)
    assert_same_bits(squeeze_excite(**arguments, **pre, out=out), expected)


def test_while_another_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says in every thread that it is compiling."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    block, x = FusedSE(8, 2, inplace=True).eval(), torch.randn(2, 8, 5, 7)
    kept = x.clone()
    with torch.no_grad():
        block(x, x.data)  # no view, as far as torch knows
    assert torch.equal(x, kept)


def test_transforms_are_refused() -> None:
    """Rather than a tangent lost in memory that is written to."""
    arguments = make_arguments(BY_NAME["nchw"], torch.float32)
    x = arguments.pop("x")
    out = torch.empty_like(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="out= takes neither tangents"):
        squeeze_excite(torch.autograd.forward_ad.make_dual(x, x), **arguments, out=out)


def test_autocast() -> None:
    """Half weights beside a float32 x, and a float32 residual beside a half one, with and without gradients alike."""
    block, x = FusedSE(8, 2, inplace=True).bfloat16().eval(), torch.randn(2, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = block(x)
        half = block.float()(x.bfloat16(), x)
        with torch.no_grad():
            assert_same_bits(block(x.bfloat16(), x), half)
            assert block.bfloat16()(x) is x
    assert_same_bits(x, expected)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("in_place", [False, True])
def test_prologue_plans_agree(dtype: torch.dtype, layout: str, in_place: bool) -> None:
    arguments = make_arguments(BY_NAME[layout], dtype, B=5, K=67, R=9, residual=True, post_activation="silu")
    pre = prologue_of(arguments, "silu")
    results = []
    try:
        for threads, tile in [(1, 5), (2, 1), (2, 3)]:
            _C.force_plan(threads=threads, images_per_tile=tile, overlap=True)  # which a prologue does not do
            x = arguments["x"].clone()
            results.append(squeeze_excite(**{**arguments, "x": x}, **pre, out=x if in_place else None))
    finally:
        _C.force_plan()
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_errors() -> None:
    arguments = make_arguments(BY_NAME["nchw"], torch.float32)
    x = arguments["x"]
    K = x.shape[1]
    flat = torch.randn(x.numel() + 1)
    bad = [
        ({"out": torch.empty(1)}, ValueError, "out has shape [1]; expected the shape of x"),
        (
            {"out": torch.empty_like(x, dtype=torch.float64)},
            TypeError,
            "out is Double; expected the dtype of x (Float)",
        ),
        ({"out": torch.empty_like(x, device="meta")}, ValueError, "out is on meta; expected the device of x (cpu)"),
        ({"out": torch.empty(1).expand(x.shape)}, RuntimeError, "unsupported operation"),
        (
            {"x": flat[1:].view(x.shape), "out": flat[:-1].view(x.shape)},
            ValueError,
            "out overlaps x; expected another range of memory",
        ),
        ({"pre_scale": torch.ones(K + 1)}, ValueError, f"pre_scale has shape [{K + 1}]; expected [{K}]"),
        (
            {"pre_shift": torch.ones(K, dtype=torch.int64)},
            TypeError,
            "pre_shift is Long; expected a floating-point tensor",
        ),
        ({"pre_activation": "swoosh"}, ValueError, "pre_activation is 'swoosh'; expected one of"),
        ({"out": x.clone().requires_grad_()}, RuntimeError, "out= has no derivative"),
    ]
    for change, kind, message in bad:
        before = x.clone()
        with pytest.raises(kind, match=re.escape(message)):
            squeeze_excite(**{**arguments, **change})
        assert_same_bits(x, before)

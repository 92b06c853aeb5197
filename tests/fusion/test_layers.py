"""Which nodes of a graph are layers of an excitation, and the weights that they are read with."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from senet_fast.fusion.graph.refusal import Refused
from senet_fast.fusion.recognise.excitation import Layer, Norm, Path
from senet_fast.fusion.recognise.layers import Stage, stage_of

IN, OUT = 5, 3


class Function(nn.Module):
    """A function of x, w [OUT, IN] (or of another shape) and b [OUT]."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(shape or (OUT, IN))), nn.Parameter(torch.randn(OUT))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w, self.b)


def graph_of(module: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(module if isinstance(module, Function) else nn.Sequential(module))


def last(module: nn.Module) -> Stage | None:
    """What the node is read as whose value the module returns."""
    graph = graph_of(module)
    *_, node, output = graph.graph.nodes
    assert output.args == (node,)
    stage = stage_of(graph, node)
    assert stage is None or (stage.node is node and stage.input.op == "placeholder")
    return stage


def all_of(module: nn.Module) -> list[Stage | None]:
    graph = graph_of(module)
    return [stage_of(graph, node) for node in graph.graph.nodes if node.op.startswith("call")]


def computed(module: nn.Module, layer: Layer, x: Tensor) -> Tensor:
    """x [B, in, ...] through a layer by the weights that were read."""
    graph = graph_of(module)
    weight, bias = layer.tensors(lambda path: path.tensor(graph))  # type: ignore[arg-type, return-value]
    y = x.flatten(1) @ weight.flatten(1).t()
    return (y if bias is None else y + bias).reshape(*y.shape, *x.shape[2:])


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # with the axes of x behind its channels
    "linear": (lambda: nn.Linear(IN, OUT), 0),
    "linear without bias": (lambda: nn.Linear(IN, OUT, bias=False), 0),
    "conv1d": (lambda: nn.Conv1d(IN, OUT, 1), 1),
    "conv2d": (lambda: nn.Conv2d(IN, OUT, 1), 2),
    "conv3d": (lambda: nn.Conv3d(IN, OUT, 1, bias=False), 3),
    "conv2d of any dilation": (lambda: nn.Conv2d(IN, OUT, 1, dilation=2), 2),
    "conv2d of the same size": (lambda: nn.Conv2d(IN, OUT, 1, padding="same"), 2),
    "conv2d of what is valid": (lambda: nn.Conv2d(IN, OUT, 1, padding="valid"), 2),
    "conv2d that pads by nothing": (lambda: nn.Conv2d(IN, OUT, (1, 1), padding=(0, 0), padding_mode="reflect"), 2),
    "F.linear": (lambda: Function(F.linear), 0),
    "F.linear without bias": (lambda: Function(lambda x, w, b: F.linear(x, w)), 0),
    "F.linear by names": (lambda: Function(lambda x, w, b: F.linear(input=x, bias=b, weight=w)), 0),
    "F.conv1d": (lambda: Function(F.conv1d, OUT, IN, 1), 1),
    "F.conv2d": (lambda: Function(lambda x, w, b: F.conv2d(x, w, b, 1, (0, 0), 1, 1), OUT, IN, 1, 1), 2),
    "F.conv3d": (lambda: Function(lambda x, w, b: F.conv3d(x, w, bias=b), OUT, IN, 1, 1, 1), 3),
    "torch.conv2d": (lambda: Function(lambda x, w, b: torch.conv2d(x, w), OUT, IN, 1, 1), 2),
    "matmul": (lambda: Function(lambda x, w, b: x @ w, IN, OUT), 0),
    "method of x": (lambda: Function(lambda x, w, b: x.matmul(w), IN, OUT), 0),
    "mm": (lambda: Function(lambda x, w, b: torch.mm(x, w), IN, OUT), 0),
    "matmul by a transpose": (lambda: Function(lambda x, w, b: torch.matmul(x, w.t())), 0),
    "by a transpose of two axes": (lambda: Function(lambda x, w, b: x @ w.transpose(0, 1)), 0),
    "by a transpose of the last axes": (lambda: Function(lambda x, w, b: x @ torch.transpose(w, -1, -2)), 0),
    "addmm": (lambda: Function(lambda x, w, b: torch.addmm(b, x, w), IN, OUT), 0),
    "addmm by a transpose": (lambda: Function(lambda x, w, b: torch.addmm(b, x, w.t())), 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, axes = LAYERS[name]
    module, x = make().double(), torch.randn(4, IN, *(1,) * axes, dtype=torch.float64)
    stage = last(module)
    assert stage is not None
    assert (stage.kind, stage.sizes, stage.refused) == ("fc", (IN, OUT), "")
    assert isinstance(stage.part, Layer)
    torch.testing.assert_close(computed(module, stage.part, x), module(x))


@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("padding", ["number", "same"])
def test_convolutions_over_channels(taps: int, padding: str) -> None:
    conv = nn.Conv1d(1, 1, taps, padding="same" if padding == "same" else taps // 2, bias=False)
    stage = last(conv)
    assert stage is not None
    assert stage.kind == ("fc" if taps == 1 else "channel_conv")
    assert isinstance(stage.part, Layer)
    assert (stage.part.weight, stage.part.bias, stage.sizes) == (Path.of("0.weight"), None, (1, 1))
    stage = last(Function(lambda x, w, b: F.conv1d(x, w, padding=taps // 2), 1, 1, taps))
    assert stage is not None
    assert stage.kind == ("fc" if taps == 1 else "channel_conv")


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "three by three": (lambda: nn.Conv2d(IN, OUT, 3, padding=1), "0 is a Conv2d"),
    "stride": (lambda: nn.Conv2d(IN, OUT, 1, stride=2), "0 is a Conv2d"),
    "padding": (lambda: nn.Conv2d(IN, OUT, 1, padding=1), "0 is a Conv2d"),
    "groups": (lambda: nn.Conv2d(4, 4, 1, groups=2), "0 is a Conv2d"),
    "transposed": (lambda: nn.ConvTranspose2d(IN, OUT, 1), "0 is a ConvTranspose2d"),
    "even taps": (lambda: nn.Conv1d(1, 1, 4, padding=2), "0 is a Conv1d"),
    "taps to one side": (lambda: nn.Conv1d(1, 1, 3, padding=2), "0 is a Conv1d"),
    "taps apart": (lambda: nn.Conv1d(1, 1, 3, padding=2, dilation=2), "0 is a Conv1d"),
    "channels in a ring": (lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), "0 is a Conv1d"),
    "taps of more than one channel": (lambda: nn.Conv1d(2, 2, 3, padding=1), "0 is a Conv1d"),
    "learned slope": (lambda: nn.PReLU(), "0 is a PReLU"),
    "layer norm": (lambda: nn.LayerNorm(IN), "0 is a LayerNorm"),
    "group norm": (lambda: nn.GroupNorm(1, IN), "0 is a GroupNorm"),
    "embedding": (lambda: nn.Embedding(IN, OUT), "0 is a Embedding"),
    "norm of the batch": (lambda: nn.BatchNorm2d(IN, track_running_stats=False), "0 keeps no running statistics"),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(IN, OUT)), "0 is parametrized"),
    "computed weight": (lambda: Function(lambda x, w, b: F.linear(x, w * 2)), "mul uses a parameter"),
    "weight of its own kind": (lambda: Function(lambda x, w, b: w.abs() * x), "abs_1 uses a parameter"),
    "bilinear": (lambda: Function(lambda x, w, b: torch.einsum("bi,oi->bo", x, w)), "einsum uses a parameter"),
    "strided function": (lambda: Function(lambda x, w, b: F.conv1d(x, w, stride=2), OUT, IN, 1), "conv1d is no layer"),
    "grouped function": (lambda: Function(lambda x, w, b: F.conv1d(x, w, groups=2), 4, 2, 1), "conv1d is no layer"),
    "weight from the left": (lambda: Function(lambda x, w, b: w @ x), "matmul computes its weights"),
    "product of many": (lambda: Function(lambda x, w, b: x @ w, 2, IN, OUT), "matmul is no layer"),
    "norm that trains": (
        lambda: Function(lambda x, w, b: F.batch_norm(x, w, w, training=True), IN),
        "batch_norm normalises by the batch",
    ),
    "functional norm of the batch": (
        lambda: Function(lambda x, w, b: F.batch_norm(x, None, None, w), IN),
        "batch_norm keeps no running statistics",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layers_are_refused_by_name(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(Refused, match=reason):
        all_of(make())


class TwoInputs(Function):
    def __init__(self) -> None:
        super().__init__(lambda x, w, b: self.fc(x, x))
        self.fc = nn.Bilinear(IN, IN, OUT)


def test_a_layer_of_two_inputs() -> None:
    with pytest.raises(Refused, match="fc is called with more than one argument"):
        last(TwoInputs())


@pytest.mark.parametrize(
    "module",
    [
        *(nn.ReLU(), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout()),
        *(Function(lambda x, w, b: x.mean(1)), Function(lambda x, w, b: torch.sigmoid(x) * 2 + 1)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_has_no_weights(module: nn.Module) -> None:
    assert set(all_of(module)) == {None}


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_norms(kind: type[nn.Module], affine: bool) -> None:
    stage = last(kind(IN, eps=0.25, affine=affine))
    weight, bias = (Path.of("0.weight"), Path.of("0.bias")) if affine else (None, None)
    wanted = Norm(Path.of("0"), Path.of("0.running_mean"), Path.of("0.running_var"), weight, bias, 0.25)
    assert (stage.kind, stage.part, stage.sizes) == ("norm", wanted, (IN, IN))


def test_functional_norms() -> None:
    stage = last(Function(lambda x, w, b: F.batch_norm(x, b, b, None, b, eps=0.125), 1))
    assert stage is not None
    assert (stage.kind, stage.sizes) == ("norm", (OUT, OUT))
    assert stage.part == Norm(Path(), Path.of("b"), Path.of("b"), None, Path.of("b"), 0.125)
    stage = last(Function(lambda x, w, b: torch.batch_norm(x, b, None, b, b, False, 0.1, 0.5, False), 1))
    assert stage is not None
    assert stage.part == Norm(Path(), Path.of("b"), Path.of("b"), Path.of("b"), None, 0.5)


BIASES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "behind": lambda x, w, b: x + b,
    "in front": lambda x, w, b: b + x,
    "torch.add": lambda x, w, b: torch.add(x, b),
    "in place": lambda x, w, b: x.add_(b),
    "reshaped": lambda x, w, b: x + b.view(1, -1, 1, 1),
    "indexed": lambda x, w, b: x + b[None, :, None],
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_by_itself(name: str) -> None:
    stage = last(Function(BIASES[name]))
    assert stage is not None
    assert (stage.kind, stage.part, stage.sizes) == ("bias", Path.of("b"), (OUT, OUT))

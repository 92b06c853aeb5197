"""fuse() on fx.GraphModules: what stands beside a block in a traced or exported graph."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fusion_testing import assert_same_at_inference, counts_calls, randomize, relative, step
from hosts import HOSTS, Activated, Bottleneck, conv
from torch import Tensor, fx, nn
from zoo import C, ConvMean, LinearExpand

from senet_fast import fuse, unfuse

# In a graph the addition of what is read again is a part of the gate, and what computes it is free; and what the code
# around a block does with its result is seen.
OTHERS = {
    "x_is_read_again": ("batch_norm, relu", "in place"),
    "inverted_residual": ("batch_norm, hardswish", "conv, residual"),
}


def graph_of(model: nn.Module, x: Tensor, how: str = "traced") -> fx.GraphModule:
    if how == "exported":
        return torch.export.export(model.eval(), (x,)).module()  # type: ignore[return-value]
    rate = {"drop_connect_rate": None} if "MBConv" in type(model).__name__ else None
    return fx.symbolic_trace(model.eval(), concrete_args=rate)


def pair(kind: type[nn.Module] = Bottleneck, how: str = "traced") -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    """(plain, fused, x)"""
    x = torch.randn(2, C, 7, 9)
    plain = graph_of(randomize(kind()), x, how)
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    return plain, fused, x


def same(plain: nn.Module, fused: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert relative(plain(x), fused(x)) < 1e-5


@pytest.mark.parametrize("how", ["traced", "exported"])
@pytest.mark.parametrize("name", HOSTS)
def test_hosts(name: str, how: str) -> None:
    """As in the modules that the graphs are of."""
    case = HOSTS[name]
    x = torch.randn(case.shape)
    plain = graph_of(randomize(case.make()), x, how)
    fused = copy.deepcopy(plain)
    code = fused.code
    report = fuse(fused)
    assert not report.skipped
    (entry,) = report.fused
    assert (entry.prologue, entry.epilogue) == OTHERS.get(name, (case.prologue, case.epilogue))
    assert_same_at_inference(plain, fused, x)
    with torch.no_grad():
        assert counts_calls(lambda: fused(x)) == 1
    assert counts_calls(lambda: fused(x)) == 1
    for training in (False, True) if how == "traced" else (False,):
        if training:
            plain.train()
            fused.train()
        (y, gradients), (fused_y, fused_gradients) = (step(model, x) for model in (plain, fused))
        assert relative(y, fused_y) < 1e-5
        assert gradients.keys() == fused_gradients.keys()
        for key, gradient in gradients.items():
            assert relative(gradient, fused_gradients[key]) < 1e-4, key
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert not fuse(fused).fused
    assert unfuse(fused) == 1
    assert fused.code == code


def ops_of(model: nn.Module, x: Tensor) -> list[str]:
    with torch.profiler.profile() as profile:
        model(x)
    return [event.name for event in profile.events()]


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_what_the_op_takes_over_is_not_run(how: str) -> None:
    plain, fused, x = pair(how=how)
    counts = []
    for model in (plain, fused):
        with torch.no_grad():
            names = ops_of(model, x)
        counts.append(
            [names.count(name) for name in ("aten::batch_norm", "aten::relu_", "senet_fast::squeeze_excite_into")]
        )
    assert counts == [[3, 3, 0], [2, 1, 1]]


def test_norms_that_train() -> None:
    plain, fused, x = pair()
    before = plain.bn2.running_mean.clone()
    for model in (plain, fused):
        model.bn2.train()
    same(plain, fused, x)
    assert not torch.equal(plain.bn2.running_mean, before)
    torch.testing.assert_close(fused.bn2.running_mean, plain.bn2.running_mean)
    for model in (plain, fused):
        model.bn2.eval()
    same(plain, fused, x)


@pytest.mark.parametrize("where", ["conv2", "bn2", "act2", "downsample.0"])
def test_hooks_that_come_later(where: str) -> None:
    """In what the op takes over, and in what made the memory that y takes."""
    plain, fused, x = pair()
    seen: list[Tensor] = []
    for model in (plain, fused):
        model.get_submodule(where).register_forward_hook(lambda module, args, y: seen.append(y))
    same(plain, fused, x)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)


def test_hooks_that_were_there() -> None:
    plain, _, x = pair()
    seen: list[Tensor] = []
    plain.bn2.register_forward_hook(lambda module, args, y: seen.append(y))
    fused = copy.deepcopy(plain)
    assert [(entry.prologue, entry.epilogue) for entry in fuse(fused).fused] == [("", "residual, relu, in place")]
    same(plain, fused, x)
    assert len(seen) == 2


def test_children_of_another_class() -> None:
    plain, fused, x = pair()
    for model in (plain, fused):
        model.act2 = nn.Tanh()
        model.bn2 = nn.Identity()
    same(plain, fused, x)


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_copies(how: str) -> None:
    plain, fused, x = pair(how=how)
    copies = [copy.deepcopy(fused)]
    if how == "traced":
        copies += [pickle.loads(pickle.dumps(fused)), fx.symbolic_trace(fused)]
    for copied in copies:
        with torch.no_grad():
            assert counts_calls(lambda copied=copied: copied(x)) == 1
        same(plain, copied, x)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["traced", "exported"])
def test_compile_and_export(how: str) -> None:
    plain, fused, x = pair(how=how)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    same(plain, compiled, x)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-5)
    program = torch.export.export(fused, (x,))
    assert sum("senet_fast" in str(node.target) for node in program.graph.nodes) == 1
    same(plain, program.module(), x)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("how", ["traced", "exported"])
def test_autocast(how: str, grad: bool) -> None:
    plain, fused, x = pair(how=how)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
        expected, actual = plain(x), fused(x)
        assert counts_calls(lambda: fused(x)) == 1
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=5e-2, atol=5e-2)


def test_other_types_and_torch_func() -> None:
    plain, fused, x = pair(HOSTS["residual_of_another_type"].make)  # type: ignore[arg-type]
    with torch.no_grad():
        assert fused(x).dtype == plain(x).dtype == torch.float64
    plain, fused, x = pair()
    same(plain.double(), fused.double(), x.double())
    with torch.no_grad():
        torch.testing.assert_close(
            torch.func.vmap(fused)(x.double()[:, None]), torch.func.vmap(plain)(x.double()[:, None])
        )


class Between(Activated):
    """Something changes memory between what the op would read and where it would read it."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv(x)
        y = self.se(F.relu(whole[:, :, 1:]))
        whole.mul_(2)
        return y + whole[:, :, 1:]


class OfAView(Activated):
    """The activation in front changes what is read elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.conv(x)
        return self.se(F.relu(whole[:, :, 1:], inplace=True)) * whole[:, :, :-1]


class NormIsReturned(Activated):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.bn(self.conv(x))
        return self.se(y), y


class IntoTheShortcut(Activated):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.conv(x)
        shortcut += self.se(self.bn(x))
        return torch.cat([shortcut, x], 1)


LEFT = [
    *((kind, how, ("", "")) for kind in (Between, OfAView, NormIsReturned) for how in ("traced", "exported")),
    (IntoTheShortcut, "exported", ("", "in place")),  # symbolic_trace makes a plain addition of it
]


@pytest.mark.parametrize(("kind", "how", "found"), LEFT)
def test_what_is_left(kind: type[nn.Module], how: str, found: tuple[str, str]) -> None:
    plain, _, x = pair(kind, how)
    fused = copy.deepcopy(plain)
    assert [(entry.prologue, entry.epilogue) for entry in fuse(fused).fused] == [found]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            expected, actual = plain(x.clone()), fused(x.clone())
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class Chain(nn.Module):
    """The activation behind one block is in front of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(C, C, 3), nn.BatchNorm2d(C)
        self.first, self.second = LinearExpand(), LinearExpand()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(self.bn(self.conv(x))) + x))


class Identities(Bottleneck):
    """Adds what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Identity()  # type: ignore[assignment]


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_a_chain(how: str) -> None:
    x = torch.randn(2, C, 7, 9)
    plain = graph_of(randomize(Chain()), x, how)
    fused = copy.deepcopy(plain)
    report = fuse(fused)
    assert [(e.prologue, e.epilogue) for e in report.fused] == [
        *(("batch_norm", "residual, relu, in place"), ("", "in place"))
    ]
    same(plain, fused, x)


@pytest.mark.parametrize("how", ["traced", "exported"])
def test_blocks_in_a_row(how: str) -> None:
    """What is added in one is what another made."""
    x = torch.randn(2, C, 7, 9)
    kinds = (Identities, Identities, Bottleneck, Identities)
    plain = graph_of(randomize(nn.Sequential(*(kind() for kind in kinds))), x, how)
    fused = copy.deepcopy(plain)
    assert [(e.prologue, e.epilogue) for e in fuse(fused).fused] == [("batch_norm", "residual, relu, in place")] * 4
    same(plain, fused, x)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert counts_calls(lambda: fused(x)) == 4


def test_exported_for_any_batch() -> None:
    model = Bottleneck()
    model.se = ConvMean()  # type: ignore[assignment]
    sizes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    x = torch.randn(2, C, 5, 7)
    plain = torch.export.export(randomize(model).eval(), (x,), dynamic_shapes=sizes).module()
    fused = copy.deepcopy(plain)
    (entry,) = fuse(fused).fused
    assert (entry.prologue, entry.epilogue) == ("batch_norm", "residual, relu, in place")
    same(plain, fused, torch.randn(5, C, 5, 7))

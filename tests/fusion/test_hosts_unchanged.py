"""What fuse() leaves as it was in modules that enclose excitations: everything but what they compute with."""

import copy
import functools
import io
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fusion_testing import counts_calls, randomize, relative
from hosts import HOSTS, Attributes, Bottleneck, Inverted, MBConv
from torch import Tensor, nn
from zoo import C, LinearExpand

from senet_fast import fuse, unfuse

KINDS = [MBConv, Attributes, Bottleneck, Inverted]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, C, 7, 9)


@functools.cache
def fused_once(kind: Callable[[], nn.Module], training: bool) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():  # what a test draws is the same whoever asked first
        plain = randomize(kind()).train(training)
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    return plain, fused


def pair(kind: Callable[[], nn.Module], training: bool = False) -> tuple[nn.Module, nn.Module]:
    """Copies of (plain, fused)."""
    plain, fused = fused_once(kind, training)
    return copy.deepcopy(plain), copy.deepcopy(fused)


def same(plain: nn.Module, fused: nn.Module, x: Tensor, calls: int = 1) -> None:
    """Equal at inference, with this many calls of the op."""
    with torch.no_grad():
        results = [plain(x)]
        assert counts_calls(lambda: results.append(fused(x))) == calls
        assert relative(*results) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_structure_and_state(kind: type[nn.Module]) -> None:
    model = randomize(kind())
    names = [name for name, _ in model.named_modules()]
    parameters, state, text = dict(model.named_parameters()), model.state_dict(), repr(model)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    generator = torch.get_rng_state()
    fuse(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [name for name, _ in model.named_modules()] == names
    assert repr(model) == text
    assert isinstance(model, kind)
    assert all(module.training for module in model.modules())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    model.load_state_dict(state)
    again = fuse(model)
    assert (again.fused, again.skipped) == ([], [])
    assert unfuse(model) == 1
    assert unfuse(model) == 0
    assert type(model) is kind
    assert len(fuse(model).fused) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "replica"])
def test_copies_are_fused_and_stand_alone(kind: type[nn.Module], way: str, x: Tensor) -> None:
    _, model = pair(kind)
    with torch.no_grad():
        y = model(x)
        if way == "deepcopy":
            copied = copy.deepcopy(model)
        elif way == "pickle":
            copied = pickle.loads(pickle.dumps(model))
        elif way == "torch.save":
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            copied = torch.load(file, weights_only=False)
        else:
            copied = replica(model)
        assert counts_calls(lambda: copied(x)) == 1
        assert torch.equal(copied(x), y)
        if way != "replica":  # those share their parameters
            for parameter in copied.parameters():
                parameter.add_(0.1)
            assert not torch.allclose(copied(x), y)
        assert torch.equal(model(x), y)
        assert unfuse(copied) == 1
        assert counts_calls(lambda: model(x)) == 1


def replica(module: nn.Module) -> nn.Module:
    made = module._replicate_for_data_parallel()
    made._parameters = {}
    for name, parameter in module._parameters.items():
        setattr(made, name, parameter)
    made._modules = {name: replica(child) for name, child in module.named_children()}
    return made


def test_distributed(tmp_path: Path, x: Tensor) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain, fused = pair(Bottleneck, training=True)
        model = nn.parallel.DistributedDataParallel(fused)
        assert counts_calls(lambda: model(x)) == 1
        fused.load_state_dict(plain.state_dict())
        for each in (plain, model):
            each(x).square().sum().backward()
        for own, other in zip(plain.parameters(), fused.parameters(), strict=True):
            assert relative(own.grad, other.grad) < 1e-4
    finally:
        torch.distributed.destroy_process_group()


WHERE = ["conv2", "bn2", "se", "se.fc", "se.fc.0", "drop_path", "act2", "downsample"]


@pytest.mark.parametrize(
    ("kind", "where"),
    # What is behind an in-place operation cannot have a hook for its backward, fused or not.
    [*itertools.product(["forward", "pre"], WHERE), *itertools.product(["backward"], ["conv2", "bn2", "downsample"])],
)
def test_hooks_see_every_call(kind: str, where: str, x: Tensor) -> None:
    """In whatever the op takes over, they are there before or come later."""
    outputs: list[list[Tensor]] = []
    plain, later = pair(Bottleneck)
    before = copy.deepcopy(plain)
    for model in (plain, before, later):
        seen: list[Tensor] = []
        part = model.get_submodule(where)
        if kind == "forward":
            part.register_forward_hook(lambda module, args, y, seen=seen: seen.append(y))
        elif kind == "pre":
            part.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        else:
            part.register_full_backward_hook(lambda module, given, grad, seen=seen: seen.append(grad[0]))
        if model is before:
            fuse(model)
        if kind == "backward":
            model(x).square().sum().backward()
        else:
            with torch.no_grad():
                model(x)
        outputs.append(seen)
    for others in outputs[1:]:
        assert len(others) == len(outputs[0]) == 1
        torch.testing.assert_close(others[0], outputs[0][0], rtol=1e-4, atol=1e-5)


def test_hooks_of_containers_and_of_everything(x: Tensor) -> None:
    plain, fused = pair(Inverted)
    seen: list[nn.Module] = []
    handle = fused.block[0].register_forward_hook(lambda module, *_: seen.append(module))
    same(plain, fused, x)
    assert seen == [fused.block[0]]
    handle.remove()
    calls = [0, 0]
    for i, model in enumerate((plain, fused)):

        def count(*_: object, i: int = i) -> None:
            calls[i] += 1

        handle = nn.modules.module.register_module_forward_hook(count)
        with torch.no_grad():
            model(x)
        handle.remove()
    assert calls[0] == calls[1] == len(list(plain.modules()))


def test_norms_that_train_and_modes(x: Tensor) -> None:
    plain, fused = pair(Bottleneck)
    for model in (plain, fused):
        model.bn2.train()
    same(plain, fused, x)
    torch.testing.assert_close(fused.bn2.running_mean, plain.bn2.running_mean)
    for model in (plain, fused):
        model.train()
        model.bn2.eval()
    same(plain, fused, x)
    for model in (plain, fused):
        model.eval()
    same(plain, fused, x)


class Dropping(Bottleneck):
    def __init__(self) -> None:
        super().__init__()
        self.drop_path = nn.Dropout(0.5)


class DropsInside(LinearExpand):
    def __init__(self) -> None:
        super().__init__()
        self.fc.insert(2, nn.Dropout(0.5))


@pytest.mark.parametrize(
    ("kind", "part"), [(Dropping, "drop_path"), (DropsInside, "fc.2"), (HOSTS["norm_of_its_own_class"].make, "bn")]
)
def test_parts_in_another_mode(kind: Callable[[], nn.Module], part: str, x: Tensor) -> None:
    """Dropout that is kept at inference, a norm that goes on with its statistics."""
    plain, fused = pair(kind)
    same(plain, fused, x)
    results = []
    for model in (plain, fused):
        model.get_submodule(part).train()
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(model(x))
    assert relative(*results) < 1e-5
    assert not torch.allclose(results[0], plain.eval()(x))


@pytest.mark.slow
def test_changes_behind_the_back(x: Tensor) -> None:
    """Children and attributes that become others, by assignment, in a container or as other classes."""
    plain, fused = pair(Bottleneck)
    for model in (plain, fused):
        model.act2 = nn.Tanh()
    same(plain, fused, x)
    assert type(fused) is Bottleneck
    plain, fused = pair(Bottleneck)
    for model in (plain, fused):
        model.se.avg_pool = nn.AdaptiveMaxPool2d(1)
    same(plain, fused, x, calls=0)
    for model in (plain, fused):
        model.se.avg_pool = nn.AdaptiveAvgPool2d(1)
    same(plain, fused, x, calls=0)
    assert [entry.epilogue for entry in fuse(fused).fused] == ["residual, relu, in place"]
    same(plain, fused, x)
    plain, fused = pair(Bottleneck)
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(C, 5), nn.Dropout(0.0))
    for model in (plain, fused):
        model.se.fc[0] = layer
    same(plain, fused, x, calls=0)
    plain, fused = pair(Inverted)
    for model in (plain, fused):
        model.block[0][1] = nn.Identity()
    same(plain, fused, x)
    plain, fused = pair(Attributes)
    for model in (plain, fused):
        nn.utils.parametrizations.weight_norm(model.fc1)
    same(plain, fused, x, calls=0)


def test_other_axes_types_and_devices(x: Tensor) -> None:
    plain, fused = pair(Attributes)
    same(plain.double(), fused.double(), x.double())
    with pytest.raises(RuntimeError):
        fused(x)
    plain, fused = pair(lambda: HOSTS["residual_of_another_type"].make())
    assert fused(x).dtype == plain(x).dtype == torch.float64
    assert fused.to("meta")(x.to("meta")).shape == x.shape


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: type[nn.Module], training: bool, x: Tensor) -> None:
    plain, fused = pair(kind, training)
    for grad in (False, True):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
            expected, actual = plain(x), fused(x)
            assert counts_calls(lambda: fused(x)) == 1
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=5e-2, atol=5e-2)


def test_training_with_autocast(x: Tensor) -> None:
    """A few steps in bfloat16, neighbours included: as near to float32 as the same steps without the op."""
    states = []
    for how in ("float32", "plain", "fused"):
        model = randomize(nn.Sequential(*(kind() for kind in KINDS))).train()
        if how == "fused":
            assert len(fuse(model).fused) == len(KINDS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=how != "float32"):
                y = model(x)
            y.float().square().mean().backward()
            optimizer.step()
        with torch.autocast("cpu", torch.bfloat16, enabled=how != "float32"):
            assert counts_calls(lambda model=model: model(x)) == (len(KINDS) if how == "fused" else 0)
        states.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in randomize(nn.Sequential(*(k() for k in KINDS))).parameters()])
    exact, plain, fused = (state - start for state in states)
    assert (fused - exact).norm() < 4 * (plain - exact).norm()  # 0.6 to 1.7 times as far, by x
    assert (fused - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
def test_export_of_a_network(x: Tensor) -> None:
    """With any batch and map: an op a block, what is behind it included, and no call of the op's Python."""
    plain = randomize(nn.Sequential(*(kind() for kind in KINDS), LinearExpand())).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    dynamic = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with torch.no_grad():
        program = torch.export.export(fused, (x,), dynamic_shapes=(dynamic,))
    ops = [str(node.target) for node in program.graph.nodes if "senet_fast" in str(node.target)]
    assert ops == ["senet_fast.squeeze_excite.default"] * 5
    ends = [str(node.target) for node in program.graph.nodes].count("aten.add.Tensor")
    assert ends == 2  # of MBConv and Inverted, behind their last convolution
    for shape in ((2, C, 7, 9), (3, C, 10, 6)):
        given = torch.randn(shape)
        with torch.no_grad():
            assert relative(plain(given), program.module()(given)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compile_and_export(kind: type[nn.Module], x: Tensor) -> None:
    plain, fused = pair(kind)
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-5)
    for model in (plain.train(), torch.compile(fused.train(), fullgraph=True, backend="aot_eager")):
        model(x).square().sum().backward()
    for (name, own), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(other.grad, own.grad, rtol=1e-3, atol=1e-3, msg=name)
    program = torch.export.export(fused.eval(), (x,))
    assert sum("senet_fast" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_transforms_of_torch_func(x: Tensor) -> None:
    plain, fused = pair(Bottleneck)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected, actual = (torch.func.vmap(model)(x[:, None]) for model in (plain, fused))
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
            expected, actual = (torch.func.jvp(model, (x,), (x,))[1] for model in (plain, fused))
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    state = dict(plain.named_parameters()) | dict(plain.named_buffers())
    doubled = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    with torch.no_grad():
        results = [torch.func.functional_call(model, doubled, (x,)) for model in (plain, fused)]
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)


def test_training_steps_are_the_same(x: Tensor) -> None:
    plain, fused = pair(Bottleneck, training=True)
    for model in (plain, fused):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_network_of_all(x: Tensor) -> None:
    plain = randomize(nn.Sequential(*(kind() for kind in KINDS), LinearExpand()))
    fused = copy.deepcopy(plain)
    text = str(fuse(fused))
    assert "channels  hidden  activation  gate     prologue               epilogue" in text
    assert "12        5       relu        sigmoid  batch_norm             residual, relu, in place" in text
    same(plain.eval(), fused.eval(), x, calls=5)
    assert unfuse(fused) == 5
    same(plain, fused, x, calls=0)

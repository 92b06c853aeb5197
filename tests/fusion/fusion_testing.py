"""What the tests of fusion share: random parameters and statistics, and comparisons."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from called import ops
from torch import Tensor, fx, nn
from torch._inductor import config as inductor_config


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and statistics that no default is: zeros in the last layer of a branch would hide everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 4
            parameter.normal_(generator=generator).mul_(1.2 / fan_in**0.5)
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
                norm.weight.data.uniform_(0.5, 1.5, generator=generator)
    return module


def relative(expected: Tensor, actual: Tensor) -> float:
    assert expected.shape == actual.shape
    assert expected.dtype == actual.dtype
    return float((expected - actual).detach().abs().max() / expected.detach().abs().max().clamp(min=1e-30))


def step(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """y and the gradients of x and every parameter, of an uneven sum of y."""
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 2, y.numel()).view_as(y)
    names = ["x", *dict(module.named_parameters())]
    gradients = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()], allow_unused=True)
    return y, {name: g for name, g in zip(names, gradients, strict=True) if g is not None}


def assert_same(plain: nn.Module, fused: nn.Module, x: Tensor, values: float = 1e-5, gradients: float = 1e-4) -> None:
    """Equal values and gradients, in both modes."""
    for training in (False, True):
        copies = [copy.deepcopy(module).train(training) for module in (plain, fused)]
        (y, grads), (fused_y, fused_grads) = (step(module, x) for module in copies)
        assert relative(y, fused_y) < values, f"training={training}"
        assert grads.keys() == fused_grads.keys()
        for name, gradient in grads.items():
            assert relative(gradient, fused_grads[name]) < gradients, (name, training)


def assert_same_at_inference(plain: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Values and layouts of modules in eval mode, for a contiguous and a channels_last x, which stays as it is."""
    for layout in (torch.contiguous_format, torch.channels_last) if x.dim() == 4 else (torch.contiguous_format,):
        given = x.to(memory_format=layout)
        with torch.no_grad():
            expected, actual = plain(given), fused(given)
        assert relative(expected, actual) < 1e-5
        assert expected.stride() == actual.stride()
        assert torch.equal(given, x)
        with torch.inference_mode():
            assert torch.equal(fused(given), actual)


class Passed:
    """A backend that shows what the pass makes of Dynamo's graph, and runs that: as it is, or ``traced`` for autograd.

    Inductor takes seconds, and ten for the first thing that a process compiles: tests that need it are in one process.
    """

    def __init__(self, traced: bool = False) -> None:
        self.traced = traced
        self.calls = 0
        self.changed = False
        self.into = 0  # calls of the latest whose y takes the place of x
        self.convolutions = 0  # and calls with a convolution
        self.graphs, self.graph = 0, None

    def __call__(self, module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from torch._dynamo.backends.common import aot_autograd

        from senet_fast import compile_pass
        from senet_fast.fusion.run.convolution import convolve_frozen

        before = str(module.graph)
        compile_pass(module.graph)
        module.recompile()
        self.graphs, self.graph = self.graphs + 1, module.graph
        self.changed = str(module.graph) != before
        self.calls = sum("senet_fast" in str(node.target) for node in module.graph.nodes)  # of the latest
        self.into = sum("squeeze_excite_into" in str(node.target) for node in module.graph.nodes)
        self.convolutions = sum(node.target is convolve_frozen for node in module.graph.nodes)
        if not self.traced:
            return module.forward
        return aot_autograd(fw_compiler=lambda graph, _: graph)(module, inputs)  # type: ignore[no-any-return]


def counts_calls(run: Callable[[], object]) -> int:
    """How often ``run`` calls one of the package's ops forward."""
    return sum("backward" not in name for name in ops(run))


def assert_compiled(plain: nn.Module, fused: nn.Module, x: Tensor, frozen: bool) -> None:
    """One op, with the convolution beside the gate where weights are constants, and values and strides of ``plain``."""
    torch._dynamo.reset()
    with torch.no_grad(), inductor_config.patch(freezing=frozen):
        compiled = torch.compile(fused, fullgraph=True, backend="inductor" if frozen else "aot_eager")
        assert relative(plain(x), compiled(x)) < 1e-5
        with torch.autograd.profiler.profile() as profile:
            y = compiled(x)
    torch._dynamo.reset()
    called = [event.name for event in profile.function_events if event.name.startswith("senet_fast::squeeze_excite")]
    assert ("senet_fast::squeeze_excite_conv" in called) == frozen
    assert len(called) == 1
    assert y.stride() == plain(x).stride()

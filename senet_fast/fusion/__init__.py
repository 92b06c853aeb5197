"""fuse(model): finds the SE blocks of any model and gives them the fused op. Nothing else of the model changes.

Five rooms, each on those before it: ``graph`` (what forwards compute, as nodes), ``recognise`` (what that is),
``verify`` (whether the op computes the same), ``run`` (what a fused module does at a call), ``install`` (how it gets
there).

A *match* is an excitation that was recognised in a graph; a *site* is one with what stands beside it, a *prologue* and
an *epilogue* that the op can take over. A module that is a block has a :class:`BlockForward`; one with sites in its
forward a :class:`HostForward` with a *variant* of that forward for each mode and set of constants, in which each site
is a *step*: it decides at each call what the op takes over, and runs the original code where it would not compute the
same. Whatever is left says why, as a *refusal*.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from senet_fast.fusion.graph.observed import Calls
from senet_fast.fusion.graph.parts import is_layer
from senet_fast.fusion.graph.refusal import LOG
from senet_fast.fusion.graph.sandbox import one_thread
from senet_fast.fusion.install import graphs, rewrite
from senet_fast.fusion.report import Fused, FusionReport, Skipped
from senet_fast.fusion.search import Search

__all__ = ["Fused", "FusionReport", "Skipped", "fuse", "unfuse"]

PROGRESS_SECONDS = 2.0  # models that take longer show progress on a terminal


def fuse(model: nn.Module, *, example_inputs: Any = None, strict: bool = False) -> FusionReport:
    """Make the SE blocks of ``model`` use the fused op, in place; returns which, and which not and why.

    A block computes ``x * gate(fc2(activation(fc1(mean(x)))))`` however it is written, with one layer (effective SE), a
    convolution over channels (ECA) or BatchNorms behind its layers (at inference) as well. It is a module, or a part
    of the forward of a larger one. It is found by what it computes, and its values and gradients are checked against
    the op's before it is touched. At inference the op also takes over a BatchNorm and an activation right before
    the block, or a 1x1 convolution on either side (on the CPU), and writes into the memory of what nobody reads any
    more; a gain, an addition and an activation right behind it are taken over in training as well.

    Only forwards change: children, names, parameters, buffers, state dict, hooks and mode stay, and optimizers,
    copies, pickles and ``torch.compile`` go on working. Calls with other arguments or another number of axes than were
    checked, modes in which a BatchNorm trains, and whatever got hooks later run the module's own code.

    In an ``fx.GraphModule`` (a model that was converted, or exported and ``.module()``) the graph is searched and
    rewritten.

    Fusing twice changes nothing more. Setting an attribute of a fused module, or :func:`unfuse`, gives back its own
    forward.

    Args:
        model: any module; it is not run.
        example_inputs: what the model can be called with, a tensor, a tuple or a dict of keyword arguments. A copy
            runs on it once, in eval mode, which shows shapes and arguments that the code does not, and the way that
            code takes that asks for sizes: such blocks are fused for x of that shape.
        strict: raise, before anything is changed, if a block that squeezes and gates would be left as it is.

    Raises:
        TypeError: ``model`` is no module. ValueError: with ``strict``, the blocks that would be left and why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    with one_thread(), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        search = Search(model, Calls(model, example_inputs))
        for path, module in _candidates(model):
            search.visit(path, module)
    report = search.report()
    for entry in report.looked_at:
        LOG.debug("%s", entry)
    for entry in (*report.skipped, *report.missed):
        LOG.info("%s", entry)
    if strict and report.skipped:
        lines = "\n".join(f"  {entry.path or '(model)'} ({entry.cls}): {entry.reason}" for entry in report.skipped)
        raise ValueError(f"strict is True and {len(report.skipped)} blocks would be left as they are:\n{lines}")
    search.install()
    return report


def unfuse(model: nn.Module) -> int:
    """Give every fused block of ``model`` its own forward back, and graph modules their graph; returns how many."""
    fused = [module for module in model.modules() if rewrite.is_fused(module)]
    blocks = sum(rewrite.restore(module) for module in fused)
    return blocks + sum(graphs.restore(part) for part in model.modules() if isinstance(part, fx.GraphModule))


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that could be blocks, children first, with progress on a terminal when it takes long."""
    modules = list(model.named_modules())[::-1]
    began, shown = time.monotonic(), False
    for count, (path, module) in enumerate(modules):
        shown = sys.stderr.isatty() and (shown or time.monotonic() - began > PROGRESS_SECONDS)
        if shown:
            print(f"\rfuse: {count} of {len(modules)} modules", end="", file=sys.stderr, flush=True)
        library = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
        if not library and type(module).forward is not nn.Module.forward and _has_layers(module):
            yield path, module
    if shown:
        print(file=sys.stderr)


def _has_layers(module: nn.Module) -> bool:
    if isinstance(module, fx.GraphModule):
        return True
    own = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    return own or any(is_layer(part) for part in module.modules())

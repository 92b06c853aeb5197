"""fuse(model): finds the SE blocks of any model and gives them the fused op. Nothing else of the model changes."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx, nn

from senet_fast.fusion import graphs, rewrite
from senet_fast.fusion.match import Match, check_plain, find, largest_difference
from senet_fast.fusion.report import Fused, FusionReport, Skipped
from senet_fast.fusion.stages import Rejected
from senet_fast.fusion.trace import NotTraced, Sandbox, is_layer, light_copy, one_thread, trace

__all__ = ["Fused", "FusionReport", "Skipped", "fuse", "unfuse"]

RANKS = (4, 3, 5)
PROGRESS_SECONDS = 2.0  # models that take longer show progress on a terminal


def fuse(model: nn.Module, *, strict: bool = False) -> FusionReport:
    """Make the SE blocks of ``model`` use the fused op, in place; returns which, and which not and why.

    A block is a module whose forward is ``x * gate(fc2(activation(fc1(mean(x)))))`` however it is written, with one
    layer (effective SE), a convolution over channels (ECA) or BatchNorms between its layers (at inference) as well. It
    is found by what it computes, and its values and gradients are checked against the op's before it is touched. Then
    only its forward changes: children, names, parameters, buffers, state dict, hooks and mode stay, and optimizers,
    copies, pickles and ``torch.compile`` go on working. Calls with other arguments or another number of axes than were
    checked, modes in which a BatchNorm trains, and blocks whose children got hooks later run the block's own forward.

    In an ``fx.GraphModule`` (a model that was converted, or exported and ``.module()``) the graph is searched and
    rewritten, so blocks inside of larger ones are found as well.

    Fusing twice changes nothing more. Setting an attribute of a fused block, or :func:`unfuse`, gives back its own
    forward.

    Args:
        model: any module; it is not run.
        strict: raise, before anything is changed, if a block that squeezes and gates would be left as it is.

    Raises:
        TypeError: ``model`` is no module. ValueError: with ``strict``, the blocks that would be left and why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    matches: dict[str, Match | None] = {}  # None: fused already
    rewritten: dict[str, list[Match]] = {}  # of graph modules
    reasons: dict[str, list[str]] = {}
    with one_thread(), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        for path, module in _candidates(model):
            if rewrite.is_fused(module):
                matches[path] = None
                continue
            below = path and f"{path}."
            known = {p.removeprefix(below) for p in (*matches, *reasons) if p.startswith(below)}
            if isinstance(module, fx.GraphModule):
                rewritten[path], why = _inside(module)
            else:
                match, why = _block(module, known)
                if match is not None:
                    matches[path] = match
            if why:
                reasons[path] = why
    modules = dict(model.named_modules())
    names = {path: type(module).__name__ for path, module in modules.items()}
    skipped = [Skipped(path, names[path], reason) for path in modules for reason in reasons.get(path, ())]
    if strict and skipped:
        lines = "\n".join(f"  {entry.path or '(model)'} ({entry.cls}): {entry.reason}" for entry in skipped)
        raise ValueError(f"strict is True and {len(skipped)} blocks would be left as they are:\n{lines}")
    fused = []
    for path, module in modules.items():
        match = matches.get(path)
        for e in [found.excitation for found in (*([match] if match else ()), *rewritten.get(path, ()))]:
            gate = f"1 + {e.gate}" if e.add_one else e.gate
            fused.append(Fused(path, names[path], e.channels, e.hidden, e.activation, gate))
        if match is not None:
            rewrite.install(module, match.excitation)
        elif rewritten.get(path):
            graphs.install(module, rewritten[path][0].y.graph, rewritten[path])
    return FusionReport(fused, skipped)


def unfuse(model: nn.Module) -> int:
    """Give every fused block of ``model`` its own forward back, and graph modules their graph; returns how many."""
    fused = [module for module in model.modules() if rewrite.is_fused(module)]
    for module in fused:
        rewrite.restore(module)
    return len(fused) + sum(graphs.restore(part) for part in model.modules() if isinstance(part, fx.GraphModule))


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


def _block(module: nn.Module, known: set[str]) -> tuple[Match | None, list[str]]:
    """The excitation that ``module.forward`` is, and why it is none though it squeezes and gates.

    ``known``: paths of children that are accounted for.
    """
    matches: list[Match] = []
    rejected: list[Rejected] = []
    try:
        copied = light_copy(module).eval()  # tracing may run code that sets attributes
    except Exception:  # it can not be copied
        return None, []
    traced = []
    with contextlib.suppress(NotTraced):
        traced.append(trace(copied, known))
    if not traced:  # code that asks for the number of axes
        for rank in RANKS:
            with contextlib.suppress(NotTraced):
                traced.append(trace(copied, known, rank))
    for graph in traced:
        found, refused = find(copied, graph)
        if len(matches) == 1 and len(found) == 1 and _is_whole(matches[0]) and _is_whole(found[0]):
            matches = [_joined(matches[0], found[0])]
        elif not matches:
            matches, rejected = found, rejected or refused
    reasons = [str(reason) for reason in rejected]
    if matches or rejected:
        try:
            for path, child in module.named_modules():
                if path:
                    check_plain(child, path)
        except Rejected as reason:
            return None, [str(reason)]
    whole = [match for match in matches if _is_whole(match)]
    if len(whole) != 1:
        return None, [*reasons, *("it is a part of a larger forward" for _ in matches)]
    try:
        if not rewrite.can_swap(module):
            raise Rejected("it can not be given another forward")
        return _checked(copied, whole[0]), reasons
    except Rejected as reason:
        return None, [*reasons, str(reason)]


def _inside(module: fx.GraphModule) -> tuple[list[Match], list[str]]:
    """The excitations in a copy of the graph of ``module``, and why others are left."""
    try:
        copied = light_copy(module)
    except Exception:  # it can not be copied
        return [], []
    assert isinstance(copied, fx.GraphModule)
    found, rejected = find(copied, copied.graph)
    reasons = [str(reason) for reason in rejected]
    matches = []
    for match in found:
        try:
            graphs.check_rewritable(match)
            for path in match.modules:
                check_plain(module.get_submodule(path), path)
            matches.append(match)
        except Rejected as reason:
            reasons.append(str(reason))
    return matches, reasons


def _is_whole(match: Match) -> bool:
    """Whether the graph takes x alone and returns y."""
    nodes = match.y.graph.nodes
    output = next(node for node in reversed(nodes) if node.op == "output")
    return output.args[0] is match.y and [node for node in nodes if node.op == "placeholder"] == [match.x]


def _joined(match: Match, other: Match) -> Match:
    """``match``, also for the numbers of axes of ``other`` where that is the same excitation."""
    excitation, more = match.excitation, other.excitation
    if replace(excitation, dims=()) != replace(more, dims=()):
        return match
    return replace(match, excitation=replace(excitation, dims=(*excitation.dims, *more.dims)))


def _checked(module: nn.Module, match: Match) -> Match:
    """``match``, once the module itself, run as a user would, agrees with it and changes nothing."""
    for training in (False, True) if not match.excitation.inference_only else (False,):
        for rank, dim in match.excitation.dims:
            try:
                _check(module, match, training, rank, dim)
            except Rejected:
                raise
            except Exception as error:  # whatever somebody's code does on a copy
                raise Rejected(f"its check failed: {type(error).__name__}: {error}") from error
    return match


def _check(module: nn.Module, match: Match, training: bool, rank: int, dim: int) -> None:
    sandbox = Sandbox(module, torch.float32, training, seed=7)
    original = sandbox.copy(module)
    replaced = sandbox.copy(module)
    rewrite.install(replaced, match.excitation)
    shape = [2, 9, 5, 7, 3][:rank]
    shape[dim] = match.excitation.channels or 13
    x = sandbox.random(shape)
    kept = x.clone()
    before, random = _state(original), torch.get_rng_state()
    results = []
    for run in (original, replaced):
        given = x.clone().requires_grad_()
        y = run(given * 1)
        inputs = [given, *(parameter for parameter in run.parameters() if parameter.requires_grad)]
        grads = torch.autograd.grad(y.square().sum(), inputs, allow_unused=True) if y.requires_grad else []
        results.append((y, grads))
        if run is original and (_state(original) != before or not torch.equal(random, torch.get_rng_state())):
            raise Rejected("it changes its own state")
    (y, grads), (y_op, grads_op) = results
    with torch.no_grad():
        original(x)
    if not torch.equal(x, kept):
        raise Rejected("it changes its input in place")
    if not largest_difference(y, y_op) <= 1e-5:
        raise Rejected("the op's numbers differ from its own")
    for a, b in zip(grads, grads_op, strict=False):
        if (a is None) != (b is None) or (a is not None and b is not None and not largest_difference(a, b) <= 1e-4):
            raise Rejected("the op's gradients differ from its own")
    if len(grads) != len(grads_op):
        raise Rejected("the op's gradients differ from its own")


def _state(module: nn.Module) -> list[object]:
    """What a forward that only computes leaves as it was."""
    tensors = [tensor._version for tensor in (*module.parameters(), *module.buffers())]
    parts = [(id(value), name) for part in module.modules() for name, value in part.__dict__.items()]
    held = [id(buffer) for buffer in module.buffers()]
    return [tensors, parts, held]

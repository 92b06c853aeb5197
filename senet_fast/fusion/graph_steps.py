"""Excitations in an fx.GraphModule with their neighbours: a call that decides at run time what the op takes over.

A graph has no place for the code that a module would fall back on, so the call gets what it replaces as arguments:
children of the graph module, functions by the name of what they compute.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from senet_fast.fusion.calls import fits
from senet_fast.fusion.enclosing import Site
from senet_fast.fusion.excitation import Norm, Path
from senet_fast.fusion.match import (
    ADDITIONS,
    GRADIENT_TOLERANCE,
    VALUE_TOLERANCE,
    Match,
    check_plain,
    largest_difference,
    operands,
)
from senet_fast.fusion.neighbours import epilogue_of, maker_of, prologue_of
from senet_fast.fusion.sandbox import Sandbox
from senet_fast.fusion.sizes import Number, hint
from senet_fast.fusion.stages import Rejected, stage_of
from senet_fast.fusion.trace import ancestors, descendants, writes
from senet_fast.se import squeeze_excite
from senet_fast.se.activations import apply
from senet_fast.se.guards import has_plain_tensors, hooks_of_all_modules, is_untouched, only_inference
from senet_fast.se.ops import fold_norm

# (child, name of its class), (mean, var, weight, bias, eps) of a norm, the spec of an activation, or an addition.
Part = Any
ADD, ADD_IN_PLACE = "add", "add_"


def excite(
    v: Tensor,
    weights: tuple[Tensor | None, ...],
    options: dict[str, Any],
    before: tuple[Part, ...] = (),
    pre_activation: str = "identity",
    residual: Any = None,
    after: tuple[Part, ...] = (),
    post_activation: str = "identity",
    makers: tuple[Part, ...] | None = None,
) -> Any:
    """``after`` of the op of ``before`` of v; the op does all of it where that computes the same.

    ``makers``: children that made v, where y may take its place at inference: nobody else reads it or has its memory.
    """
    seen = hooks_of_all_modules()
    inference, overwrites = only_inference()
    absorbs = inference and not seen and all(_is_known(part, training=False) for part in before)
    x = v
    if not absorbs:
        for part in before:
            x = _run(part, x, None)
    more: dict[str, Any] = {}
    if absorbs and before:
        more["pre_activation"] = pre_activation
        norm = _affine(before[0])
        if norm is not None:
            more["pre_scale"], more["pre_shift"] = norm
    finishes = not seen and len(after) > 0 and all(_is_known(part) for part in after)
    if finishes and any(part in (ADD, ADD_IN_PLACE) for part in after):
        finishes = fits(residual, x)
        more["residual"] = residual if finishes else None
    if finishes:
        more["post_activation"] = post_activation
    if absorbs and overwrites and makers is not None and all(map(_is_known, makers)):
        more["out"] = v
    y = squeeze_excite(x, *weights, **options, **more)  # type: ignore[arg-type, misc]
    for part in () if finishes else after:
        y = _run(part, y, residual)
    return y


def _is_known(part: Part, training: bool = True) -> bool:
    """Whether ``part`` is what it was and nobody sees its call; in eval mode unless ``training`` is all right."""
    if isinstance(part, str) or not isinstance(part[0], nn.Module):
        return True
    module, kind = part
    untouched = is_untouched(module, type(module), torch.compiler.is_compiling()) and has_plain_tensors(module)
    return type(module).__name__ == kind and untouched and (training or not module.training)


def _affine(part: Part) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) of a norm."""
    if isinstance(part, str) or (isinstance(part[0], nn.Module) and not isinstance(part[0], _BatchNorm)):
        return None
    m = part[0]
    return fold_norm(*((m.running_mean, m.running_var, m.weight, m.bias, m.eps) if len(part) == 2 else part))


def _run(part: Part, x: Any, residual: Any) -> Any:
    if part == ADD:
        return x + residual
    if part == ADD_IN_PLACE:
        return x.add_(residual)
    if isinstance(part, str):
        return apply(part, x)
    if isinstance(part[0], nn.Module):
        return part[0](x)
    mean, var, weight, bias, eps = part
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def site_of(
    module: fx.GraphModule, copied: fx.GraphModule, match: Match, taken: set[fx.Node], numbers: Sequence[Number]
) -> Site:
    """``match`` with the neighbours that the op can take over, none of them of ``taken``, which gets them.

    ``module``: with its hooks, which its copy, whose graph the match is of, has not. ``numbers``: for the graph's
    symbols, beside what they were.
    """
    between = ancestors(match.y) & descendants(match.x)
    block = [node for node in copied.graph.nodes if node in between]
    bare = Site(match.x, match.y, block, match.excitation, Path(), None)
    site = replace(bare)
    rank = match.excitation.dims[0][0]
    site.epilogue = epilogue_of(copied, match.y, rank, training=True)
    if site.epilogue is not None and not _free(module, site.epilogue.nodes, taken):
        site.epilogue = None
    inside = {*site.block}
    if all(user in inside for node in (match.x, *site.block[:-1]) for user in node.users):
        if all(dim == 1 for _, dim in match.excitation.dims):
            site.prologue = prologue_of(copied, match.x, rank)
        if site.prologue is not None and not _free(module, site.prologue.nodes, taken):
            site.prologue = None
        site.maker = maker_of(copied, site.source)
        if site.prologue is not None and site.maker is None and any(writes(n, copied) for n in site.prologue.nodes):
            site.prologue = None
    for tried in (site, replace(site, prologue=None, maker=None), replace(site, epilogue=None)):
        if not tried.has_neighbours or _overtakes(copied, tried):
            continue
        if (checked := _checked(copied, tried, (hint, *numbers))) is not None:
            taken.update(absorbed(tried))
            return checked
    return bare


def absorbed(site: Site) -> list[fx.Node]:
    """The nodes that the call takes the place of, in their order."""
    before, after = (part.nodes if part is not None else () for part in (site.prologue, site.epilogue))
    return [*before, *site.block, *after]


def _free(module: fx.GraphModule, nodes: tuple[fx.Node, ...], taken: set[fx.Node]) -> bool:
    """Whether these belong to no other excitation, and are nothing but their forwards."""
    try:
        for node in nodes:
            if node.op == "call_module":
                check_plain(module.get_submodule(str(node.target)), str(node.target))
    except Rejected:
        return False
    return not taken & {*nodes}


def _overtakes(module: fx.GraphModule, site: Site) -> bool:
    """Whether something else writes to memory between the two ends, which become one call."""
    order = [*site.y.graph.nodes]
    between = order[order.index(site.source) + 1 : order.index(site.last)]
    own = {*absorbed(site)}
    return any(node not in own and writes(node, module) for node in between)


def arguments(module: nn.Module, site: Site, value: Callable[[fx.Node], Any], get: Callable[[str], Any]) -> Any:
    """Of :func:`excite`: ``value`` of nodes, ``get`` for children, parameters and buffers by their path."""

    def parts(nodes: tuple[fx.Node, ...], activation: str) -> tuple[Part, ...]:
        made: list[Part] = []
        for node in nodes:
            if node.op == "call_module":
                made.append((get(str(node.target)), _kind(module, str(node.target))))
            elif operands(node, ADDITIONS, ("add", "add_")) is not None:
                made.append(ADD_IN_PLACE if writes(node) else ADD)
            elif (stage := stage_of(module, node)) is not None and isinstance(norm := stage.part, Norm):
                paths = (norm.mean, norm.var, norm.weight, norm.bias)
                made.append((*(None if path is None else get(str(path)) for path in paths), norm.eps))
            else:
                made.append(activation)
        return tuple(made)

    excitation = site.excitation
    weights = tuple(excitation.weights(lambda path: get(str(path))))
    before, after = site.prologue, site.epilogue
    return (
        value(site.source),
        *(weights, excitation.options(excitation.dims[0][1])),
        *((parts(before.nodes, before.activation), before.activation) if before else ((), "identity")),
        value(after.residual) if after and after.residual else None,
        *((parts(after.nodes, after.activation), after.activation) if after else ((), "identity")),
        None if site.maker is None else tuple((get(path), _kind(module, path)) for path in site.maker),
    )


def _kind(module: nn.Module, path: str) -> str:
    return type(module.get_submodule(path)).__name__


def _checked(module: fx.GraphModule, site: Site, numbers: Sequence[Number]) -> Site | None:
    """``site`` for the numbers of axes that its neighbours take; None unless the call computes what the graph does."""
    dims = []
    for rank, dim in site.excitation.dims:
        try:
            ways = itertools.product((False, True), numbers)
            worst = max(_difference(module, site, rank, dim, training, number) for training, number in ways)
        except Exception:  # the neighbours do not take it
            continue
        if not worst <= 1:
            return None
        dims.append((rank, dim))
    return replace(site, excitation=replace(site.excitation, dims=tuple(dims))) if dims else None


def _difference(module: fx.GraphModule, site: Site, rank: int, dim: int, training: bool, number: Number) -> float:
    """The largest difference in values and gradients, in units of the tolerance."""
    shape = [2, 6, 3, 5, 4][:rank]
    shape[dim] = site.excitation.channels or 11
    sandbox = Sandbox(module, torch.float32, training, seed=rank, number=number)
    residual = site.epilogue.residual if site.epilogue is not None else None
    inputs = dict.fromkeys([site.source, *([residual] if residual is not None else [])])
    values = [sandbox.random(sandbox.shape_of(site.x) or shape) for _ in inputs]
    results, gradients = [], []
    for grad in (True, False):
        for ours in (False, True):
            given = [value.clone().requires_grad_(grad) for value in values]
            known = dict(zip(inputs, [x * 1 for x in given], strict=True))
            with torch.set_grad_enabled(grad):
                if ours:
                    y = excite(*arguments(module, site, known.__getitem__, sandbox.get))
                else:
                    y = sandbox.run(site.last, known)
            results.append(y)
            if grad:
                used = [p for p in sandbox.tensors.values() if p.requires_grad]
                wanted = torch.autograd.grad(y.square().sum(), [*given, *used], allow_unused=True)
                gradients.append([torch.zeros(()) if g is None else g for g in wanted])
    pairs = list(zip(*gradients, strict=False))  # ours knows more tensors: those of the makers
    return max(
        *(largest_difference(a, b) / VALUE_TOLERANCE for a, b in (results[:2], results[2:])),
        *(largest_difference(a, b) / GRADIENT_TOLERANCE for a, b in pairs),
    )

"""Plans for modules that enclose excitations: which modes and constants, and the check of each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from senet_fast.fusion.graph.nodes import attribute
from senet_fast.fusion.graph.observed import Call
from senet_fast.fusion.graph.refusal import NotTraced, Rejected
from senet_fast.fusion.graph.sandbox import light_copy
from senet_fast.fusion.graph.tracing import signature
from senet_fast.fusion.install import rewrite
from senet_fast.fusion.install.cut import containers, variant_of
from senet_fast.fusion.recognise.match import Match
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.run.forwards import BlockForward, HostForward, Key, Variant, key
from senet_fast.fusion.verify.swaps import check_swap

MAX_VARIANTS = 4  # sets of constants
SPACE = ([9, 7, 5], [33, 31, 17])  # sizes of the axes behind the channels; the larger for what pads little


@dataclass
class Enclosed:
    plan: HostForward | None = None
    sites: list[Site] = field(default_factory=list)  # at inference, where it has such a form
    reasons: list[str] = field(default_factory=list)


def enclose(
    module: nn.Module,
    plans: Mapping[str, BlockForward],
    opaque: set[str],
    parts: Iterable[Match],
    calls: Iterable[Call] = (),
) -> Enclosed:
    """The plan of ``module`` for these ``calls``, and for one with its default arguments.

    ``plans``: of the children that are fused blocks, by their path; ``opaque``: children that enclose some themselves.
    ``parts``: the excitations that are written out in it.
    """
    inlined = {path for match in parts for path in containers(match)}
    calls = [*calls]
    found = Enclosed()
    failed: list[str] = []  # of no interest where another call tells more
    try:
        if not rewrite.can_swap(module):
            raise Rejected("it can not be given another forward")
        names, defaults = signature(type(module).forward)
        copied = light_copy(module)
    except (Rejected, NotTraced) as reason:
        return Enclosed(reasons=[str(reason)])
    except Exception:  # it can not be copied
        return found
    # An argument whose default is no tensor has to be known; all others are taken to be tensors.
    constants = [name for name in names if name in defaults or any(name in dict(call.constants) for call in calls)]
    variants: dict[Key, Variant] = {}
    for call in [Call(), *calls][:MAX_VARIANTS]:
        values = defaults | dict(call.constants)
        if not {*constants} <= {*values}:
            continue
        for training in (False, True):
            try:
                at = key(training, [values[name] for name in constants])
                if at in variants:
                    continue
                copied.train(training)
                tensors = [name for name in names if name not in constants]
                chosen = {name: values[name] for name in constants}
                variant, sites, reasons = variant_of(copied, plans, opaque, inlined, training, chosen)
                same = [
                    v for k, v in variants.items() if k[0] == training and variant is not None and v.equals(variant)
                ]
                if same:  # these constants change nothing
                    variant = same[0]
                elif variant is not None:
                    _check(copied, plans, variant, sites, training, chosen, tensors, call.shapes)
            except TypeError as error:
                found.reasons.append(str(error))
                continue
            except (Rejected, NotTraced) as reason:
                if not training:
                    failed.append(str(reason))
                continue
            if not training:
                found.sites = found.sites or sites
                found.reasons += [reason for reason in reasons if reason not in found.reasons]
            if variant is not None:
                variants[at] = variant
    if not found.sites:
        found.reasons += dict.fromkeys(failed)
    if variants:
        found.plan = HostForward(module, constants, variants)
    return found


def _check(
    copied: nn.Module,
    plans: Mapping[str, BlockForward],
    variant: Variant,
    sites: list[Site],
    training: bool,
    values: dict[str, Any],
    tensors: list[str],
    shapes: tuple[tuple[int, ...], ...] | None,
) -> None:
    """Rejected unless the variant computes what the module does."""
    plan = HostForward(copied, [*values], {key(training, values.values()): variant})

    def swap(module: nn.Module) -> None:
        for path, child in plans.items():
            part = module.get_submodule(path)
            if not rewrite.is_fused(part):
                rewrite.install(part, child)
        rewrite.install(module, plan)

    graph = sites[0].y.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    tried: Rejected = Rejected("the shapes of its inputs are not known: give example_inputs")
    for sizes in [list(map(list, shapes))] if shapes is not None else _shapes(copied, graph, placeholders, sites):
        if len(sizes) != len(tensors):
            continue
        try:
            check_swap(copied, swap, sizes, training, values, pure=not training)
            return
        except Rejected as reason:
            tried = reason
    raise tried


def _shapes(module: nn.Module, graph: fx.Graph, inputs: list[fx.Node], sites: list[Site]) -> Iterable[list[list[int]]]:
    """Shapes to try for the inputs: two images, channels as the first layer wants them or at the end, not square."""
    rank = sites[0].excitation.dims[0][0]
    channels = sites[0].excitation.channels or 8
    layers = [_first_layer(module, node) for node in inputs]
    for last in (False, True) if None in layers else (False,):
        for space in SPACE:
            shapes = []
            for layer in layers:
                r, c = layer or (rank, channels)
                sizes = space[: r - 2]
                shapes.append([2, *sizes, c] if last and layer is None else [2, c, *sizes])
            yield shapes


def _first_layer(module: nn.Module, source: fx.Node) -> tuple[int, int] | None:
    """(rank, channels) of an input, by the first layer that it meets."""
    waiting, seen = [source], {source}
    while waiting:
        node = waiting.pop(0)
        if node.op == "call_module":
            for part in attribute(module, str(node.target)).modules():
                if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                    return len(part.kernel_size) + 2, part.in_channels
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    return {nn.BatchNorm1d: 3, nn.BatchNorm3d: 5}.get(type(part), 4), part.num_features
        for user in node.users:
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return None

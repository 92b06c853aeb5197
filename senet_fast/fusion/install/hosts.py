"""Forwards for modules that enclose excitations: for which modes and constants, and the check of each."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from senet_fast.fusion.graph.functions import arguments_of, kind_of
from senet_fast.fusion.graph.nodes import ancestors, attribute
from senet_fast.fusion.graph.observed import Call
from senet_fast.fusion.graph.refusal import Refused, note
from senet_fast.fusion.graph.sandbox import copied_or_refused
from senet_fast.fusion.graph.tracing import View, signature, trace_exactly
from senet_fast.fusion.install import rewrite
from senet_fast.fusion.install.blocks import Finding
from senet_fast.fusion.install.cut import Forwards, cut, sites_of
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.run.forwards import HostForward, Key, Variant, key
from senet_fast.fusion.verify.comparison import shape_to_try
from senet_fast.fusion.verify.matches import find
from senet_fast.fusion.verify.swaps import check_swap

MAX_VARIANTS = 4  # sets of constants
SIZES = (2, 10, 8, 6, 4)  # of inputs to try: even, for the shortcuts of blocks with strides


def enclose(
    module: nn.Module, seen: Finding, forwards: Forwards, known: set[str], calls: Iterable[Call] = ()
) -> Finding:
    """The forward of ``module`` for these ``calls``, and for one with its default arguments.

    ``seen``: what :func:`block` found. ``known``: paths of children that are not looked into. The result's sites are
    those at inference, where it has such a form.
    """
    calls = [Call(), *calls]
    try:
        host = _Host(module, seen, forwards, known, calls)
    except Refused as reason:
        return Finding(reasons=[reason])
    found = Finding()
    failed: list[Refused] = []  # of no interest where another call tells more
    for call, training in itertools.product(calls[:MAX_VARIANTS], (False, True)):
        try:
            sites, reasons = host.add(call, training)
        except Refused as reason:
            note(reason)
            failed += [] if training else [reason]
            continue
        if not training:
            found.sites = found.sites or sites
            found.reasons += reasons
    if not found.sites:
        found.reasons += failed
    if host.variants:
        found.forward = HostForward(module, host.constants, host.variants)
    return found


class _Host:
    """A module that gets a variant of its forward for each mode and set of constants."""

    def __init__(
        self, module: nn.Module, seen: Finding, forwards: Forwards, known: set[str], calls: list[Call]
    ) -> None:
        if not rewrite.can_swap(module):
            raise Refused("install", "it can not be given another forward")
        self.forwards, self.known = forwards, known
        names, self.defaults = signature(type(module).forward)
        # An argument whose default is no tensor has to be known; all others are taken to be tensors.
        given = {name for call in calls for name in dict(call.constants)}
        self.constants = [name for name in names if name in self.defaults or name in given]
        self.tensors = [name for name in names if name not in self.constants]
        self.variants: dict[Key, Variant] = {}
        self.seen = seen.view
        self.copied = copied_or_refused(module)
        self.traced = copied_or_refused(module) if seen.view is None else seen.view.module  # which may keep proxies
        self.cuts: dict[tuple[bool, str], Variant] = {}  # by the mode and the code of the view
        self.found: dict[str, tuple[View, tuple[list[Site], list[Refused]]]] = {}
        if seen.view is not None:
            self.found[_code(seen.view)] = seen.view, (seen.sites, seen.reasons)

    def add(self, call: Call, training: bool) -> tuple[list[Site], list[Refused]]:
        """A variant for ``call``, if there is anything to fuse: its sites, and why others are left. Raises Refused."""
        values = self.defaults | dict(call.constants)
        if not {*self.constants} <= {*values}:
            return [], []
        values = {name: values[name] for name in self.constants}
        at = key(training, values.values())
        try:
            if at in self.variants:
                return [], []
        except TypeError as error:  # a constant without a hash
            raise Refused("constants", str(error)) from error
        self.copied.train(training)
        self.traced.train(training)
        first = not training and not call.constants
        view = trace_exactly(self.traced, self.known, values, self.seen if first else None)
        code = _code(view)
        if (training, code) in self.cuts:  # these constants change nothing
            self.variants[at] = self.cuts[training, code]
            return [], []
        found, reasons = self._found(view, code)
        sites, refused = sites_of(view, found, self.forwards, training)
        if sites:
            variant = cut(view, sites, self.forwards)
            self._check(variant, sites, training, values, call.shapes)
            self.variants[at] = self.cuts[training, code] = variant
        return sites, [*reasons, *refused]

    def _found(self, view: View, code: str) -> tuple[list[Site], list[Refused]]:
        """The excitations in it, and the near misses; those of an equal graph, if that was seen before."""
        if code not in self.found:
            self.found[code] = view, find(view)
        other, (sites, reasons) = self.found[code]
        own = dict(zip(other.graph.nodes, view.graph.nodes, strict=True))
        return [_moved(site, own) for site in sites], reasons

    def _check(
        self,
        variant: Variant,
        sites: list[Site],
        training: bool,
        values: dict[str, Any],
        shapes: tuple[tuple[int, ...], ...] | None,
    ) -> None:
        """Refused unless the variant computes what the module does."""
        forward = HostForward(self.copied, [*values], {key(training, values.values()): variant})

        def swap(module: nn.Module) -> None:
            for path, child in self.forwards.items():
                part = module.get_submodule(path)
                if not rewrite.is_fused(part):
                    rewrite.install(part, child)
            rewrite.install(module, forward)

        tried = Refused("check", "the shapes of its inputs are not known: give example_inputs")
        for sizes in [list(map(list, shapes))] if shapes is not None else _shapes(self.copied, sites):
            if len(sizes) != len(self.tensors):
                continue
            try:
                return check_swap(self.copied, swap, sizes, training, values, pure=not training)
            except Refused as reason:
                tried = reason
        raise tried


def _code(view: View) -> str:
    """What it computes, and whose code that is: views with the same can stand for each other."""
    return "\n".join([view.graph.python_code("self").src, *(call.path for call in view.opened)])


def _moved(site: Site, to: dict[fx.Node, fx.Node]) -> Site:
    """The same in another graph."""
    product = None if site.product is None else to[site.product]
    return replace(site, x=to[site.x], y=to[site.y], block=[to[node] for node in site.block], product=product)


def _shapes(module: nn.Module, sites: list[Site]) -> Iterable[list[list[int]]]:
    """To try for the inputs: as the first layer wants them, or else like the excitation's x, or with channels last."""
    excitation = sites[0].excitation
    rank, dim = excitation.dims[0]
    layers = [_first_layer(module, node) for node in sites[0].y.graph.nodes if node.op == "placeholder"]
    for axis in dict.fromkeys((dim, rank - 1)) if None in layers else (dim,):
        wanted = [layer or (rank, axis, excitation.channels or 8) for layer in layers]
        yield [shape_to_try(*shape, SIZES) for shape in wanted]


def _first_layer(module: nn.Module, source: fx.Node) -> tuple[int, int, int] | None:
    """The rank of an input, its axis with channels and their number, by the first layer that it meets."""
    waiting, seen = [source], {source}
    while waiting:
        node = waiting.pop(0)
        if node.op == "call_module":
            for part in attribute(module, str(node.target)).modules():
                if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                    return len(part.kernel_size) + 2, 1, part.in_channels
                if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                    return {nn.BatchNorm1d: 3, nn.BatchNorm3d: 5}.get(type(part), 4), 1, part.num_features
        elif kind_of(node) == "convolution" and (weight := arguments_of(node).get("weight")) is not None:
            made_of = (attribute(module, str(n.target)) for n in ancestors(weight) if n.op == "get_attr")
            shape: Any = max((t.shape for t in made_of), key=math.prod, default=())  # it may be standardised
            if len(shape) > 2:
                return len(shape), 1, shape[1] * arguments_of(node).get("groups", 1)
        for user in node.users:
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return None

"""The op in graphs of torch.compile, without fuse(): a pass for Inductor over the graph that Dynamo traced.

It runs before autograd is traced, so that training uses the op's own backward. Dynamo's graph has the parameters as
inputs and sizes as numbers or symbols; a shadow of it, with the parameters as attributes, is what the matcher reads.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils._python_dispatch import _disable_current_modes

from senet_fast._version import __version__
from senet_fast.fusion.graph.functions import NEW, arguments_of, kind_of
from senet_fast.fusion.graph.nodes import descendants, region, writes
from senet_fast.fusion.graph.refusal import LOG, Refused, note, noted
from senet_fast.fusion.graph.sandbox import one_thread
from senet_fast.fusion.graph.sizes import Number, hint, others, value_of
from senet_fast.fusion.graph.tracing import View
from senet_fast.fusion.install.compiled_convolutions import freezes, replace_with_convolution, with_convolution
from senet_fast.fusion.install.graph_sites import check_rewritable
from senet_fast.fusion.recognise.excitation import Excitation
from senet_fast.fusion.recognise.site import Site
from senet_fast.fusion.verify.matches import find, verified

OP = torch.ops.senet_fast.squeeze_excite.default
INTO = torch.ops.senet_fast.squeeze_excite_into.default
# Behind these, gradients may be wanted although they were not when the graph began, or torch.func looks on.
MODES = ("_set_grad_enabled", "_enter_inference_mode", "_enter_dual_level", "_increment_nesting")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SMALL = (3, 5, 4)  # places of a map, where the number of them should not matter


class CompilePass(CustomGraphPass):
    """Replaces the SE blocks in a graph by calls of the op, values and gradients checked as :func:`fuse` does.

    ``torch.compile(model, options={"pre_grad_custom_pass": senet_fast.compile_pass})``, or for every model that is
    compiled from then on ``torch._inductor.config.pre_grad_custom_pass = senet_fast.compile_pass``. Graphs are changed
    for training and inference alike; a graph without such blocks stays as it is. Blocks whose norms or weights would
    have to be folded are left to Inductor. Without gradients y takes the place of x where nobody else reads that.
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite ``graph`` in place."""
        inference = not torch.is_grad_enabled() and not any(_changes_mode(node) for node in graph.nodes)
        frozen = inference and freezes()
        with _disable_current_modes(), _outside(), noted() as refusals:
            for assignment in _assignments(graph):
                for site, twin in list(_found(graph, assignment, frozen)):
                    _replace(graph, site, twin, inference)
        for refused in refusals:
            LOG.debug("a graph of torch.compile: %s", refused.details)
        graph.lint()

    def uuid(self) -> bytes:
        """Changes with the code that decides what is replaced; Inductor's cache keys have it."""
        files = tuple(str(file) for file in sorted(File(__file__).parents[1].rglob("*.py")))
        return get_hash_for_files(files, extra=__version__)


compile_pass = CompilePass()


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """As if nothing was being compiled: gradients, no autocast, the user's random state untouched."""
    with (
        one_thread(),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.amp.autocast("cpu", enabled=False),
    ):
        yield


class Sizes(NamedTuple):
    """What the sizes of a graph are taken to be."""

    number: Number
    small: bool = False  # maps of a few places instead of their own

    def shape(self, tensor: Tensor) -> list[int]:
        shape = [self.number(size) for size in tensor.shape]
        return [*shape[:2], *SMALL[: len(shape) - 2]] if self.small and 3 <= len(shape) <= 5 else shape


def _assignments(graph: fx.Graph) -> list[list[Sizes]]:
    """What sizes to try the blocks with; those of one list have to agree.

    Numbers: small maps at first, which are faster, then the maps as they are. Symbols: what they were at the first
    call, together with others.
    """
    numbers = others(graph)
    return [[Sizes(number) for number in (hint, *numbers)]] if numbers else [[Sizes(hint, small=True)], [Sizes(hint)]]


def _found(graph: fx.Graph, assignment: list[Sizes], frozen: bool) -> Iterator[tuple[Site, dict[fx.Node, fx.Node]]]:
    """Matches in a shadow of ``graph`` that are the same for all sizes of ``assignment``, and whose node is whose.

    ``frozen``: with the convolutions beside them, where they are the same for all sizes as well.
    """
    agreed: list[dict[fx.Node, tuple[Excitation, list[fx.Node]]]] = []
    for sizes in assignment:
        module, twin = _shadow(graph, sizes)
        sites = [site for site in find(View(module, module.graph))[0] if _supported(site, twin)]
        taken: set[fx.Node] = set()
        wide = [with_convolution(module, site, twin, taken, sizes.number) if frozen else site for site in sites]
        agreed.append({twin[site.y]: (site.excitation, [twin[node] for node in site.nodes]) for site in wide})
    for site, widest in zip(sites, wide, strict=True):
        y = twin[site.y]
        others = [found.get(y, (None, None)) for found in agreed]
        if all(excitation == site.excitation for excitation, _ in others) and not _overwritten(site, twin):
            try:
                check_rewritable(module, site, (), folds=False)
                if assignment[0].small:
                    site.x.meta["val"] = value_of(twin[site.x])
                    if verified(module, site) != site.excitation:
                        raise Refused("check", "it is another excitation at its own size", node=y)
            except Refused as reason:
                note(reason)
                continue
            yield (widest if all(nodes == agreed[-1][y][1] for _, nodes in others) else site), twin


def _shadow(graph: fx.Graph, sizes: Sizes) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A copy of ``graph`` with parameters and buffers as attributes, and the node of ``graph`` for each of its own."""
    root = nn.Module()
    copied = fx.Graph()
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        value = value_of(node)
        if node.op == "placeholder" and isinstance(value, torch.SymInt):
            env[node] = sizes.number(value)
            continue
        if isinstance(value, Tensor) and _is_weight(node, value):
            made = torch.empty([int(n) for n in value.shape], device="meta", dtype=value.dtype)
            if isinstance(value, nn.Parameter):
                root.register_parameter(node.name, nn.Parameter(made, requires_grad=value.is_floating_point()))
            else:
                root.register_buffer(node.name, made)
            env[node] = copied.get_attr(node.name)
        elif node.op in ("get_attr", "call_module"):  # subgraphs of higher order operators
            env[node] = copied.placeholder(node.name)
        else:
            env[node] = copied.node_copy(node, lambda n: env[n])
        env[node].meta = {"val": torch.empty(sizes.shape(value), device="meta")} if isinstance(value, Tensor) else {}
    twin = {mine: node for node, mine in env.items() if isinstance(mine, fx.Node)}
    return fx.GraphModule(root, copied), twin


def _is_weight(node: fx.Node, value: Tensor) -> bool:
    """Whether it is a parameter or buffer: an attribute of Dynamo's graph if that is to be frozen, else an input."""
    given = node.op == "placeholder" and (isinstance(value, nn.Parameter) or "_buffers_" in str(node.target))
    return given or node.op == "get_attr"


def _supported(site: Site, twin: dict[fx.Node, fx.Node]) -> bool:
    """Whether the op has a kernel for these tensors."""
    x = value_of(twin[site.x])
    weights = [value_of(node) for node in _weights(site, twin) if node is not None]
    kernel = x.device.type == "cpu" or torch._C._dispatch_has_kernel_for_dispatch_key(
        "senet_fast::squeeze_excite_forward", x.device.type.upper()
    )
    types = {weight.dtype for weight in weights}
    return kernel and x.dtype in DTYPES and len(types) == 1 and types <= {x.dtype, torch.float32}


def _weights(site: Site, twin: dict[fx.Node, fx.Node]) -> list[fx.Node | None]:
    named = {node.name: node for node in twin.values()}
    paths = [path for layer in site.excitation.layers for path in (layer.weight, layer.bias)]
    return [None if path is None else named[str(path)] for path in paths]


def _overwritten(site: Site, twin: dict[fx.Node, fx.Node]) -> bool:
    """Whether x, or what is computed from it beside the block, is changed in place within the block, before y."""
    x, y = twin[site.x], twin[site.y]
    made_of_x, inside = descendants(x), region(x, y)
    first = next(node for node in inside if node in made_of_x)
    return any(writes(node) and first < node < y for node in made_of_x - {*inside})


def _changes_mode(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "").endswith(MODES)


def _replace(graph: fx.Graph, site: Site, twin: dict[fx.Node, fx.Node], inference: bool) -> None:
    x, last = twin[site.x], twin[site.last]
    replaced = region(x, last) if site.conv is None else [twin[node] for node in site.nodes]
    in_place = site.conv is None and inference and _is_read_here_alone(x, replaced) and _has_its_memory_alone(x)
    with graph.inserting_before(last):
        if site.conv is not None:
            call = replace_with_convolution(graph, site, twin)
        else:
            options = site.excitation.options(site.excitation.dims[0][1])
            op, more = (INTO, {"y": x}) if in_place else (OP, {})
            call = graph.call_function(op, (x, *_weights(site, twin)), {**options, **more})
    fused = x if in_place else call
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)
    twin[site.last] = fused  # the x of a block behind it
    for node in reversed(replaced):
        if not node.users:
            graph.erase_node(node)


def _is_read_here_alone(x: fx.Node, replaced: list[fx.Node]) -> bool:
    """Whether nothing but sizes is left of what is computed from ``x``, whose node is that of y from then on: neither
    a view of its memory nor what a block behind it would take for the mean of y.
    """
    inside, made_of_x = {*replaced}, descendants(x)
    first = next(node for node in replaced if node in made_of_x)
    left = [node for node in replaced[:-1] if not inside.issuperset(node.users)]
    readers = {user for user in x.users if user.target is not INTO or first < user}  # else it made x, a block's y
    return readers <= inside and all(isinstance(value_of(node), int | torch.SymInt | torch.Size) for node in left)


def _has_its_memory_alone(node: fx.Node) -> bool:
    if kind_of(node) not in NEW or node.kwargs.get("out") is not None:
        return False
    if not writes(node):
        return True
    written = arguments_of(node).get("input")
    return isinstance(written, fx.Node) and [*written.users] == [node] and _has_its_memory_alone(written)

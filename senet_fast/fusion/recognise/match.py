"""Finds x * gate(fc2(activation(fc1(mean(x))))) and its relatives in a graph, by data flow and by values.

The graph says only which layers with weights lie between x and what multiplies it. What the pieces between them compute
is found out by running them (``probing``), so that how somebody wrote a mean, a view or an activation does not matter.
Every find is checked against the op, values and gradients, before it is believed.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from senet_fast.fusion.graph.nodes import ancestors, attribute, descendants, region
from senet_fast.fusion.graph.parts import is_pooling
from senet_fast.fusion.graph.refusal import Refused
from senet_fast.fusion.graph.sandbox import Sandbox
from senet_fast.fusion.recognise.arithmetic import operands
from senet_fast.fusion.recognise.excitation import Excitation, Layer, Norm
from senet_fast.fusion.recognise.layers import Stage, stage_of
from senet_fast.fusion.recognise.probing import Probed, probe
from senet_fast.fusion.recognise.site import Site


def candidate(module: nn.Module, product: fx.Node, x: fx.Node, scale: fx.Node) -> Site | None:
    """What ``product`` of ``x`` and ``scale`` seems to be; None if ``scale`` is not computed from x. Raises Refused."""
    between = descendants(x) & ancestors(scale)
    if not between or x.op == "get_attr":
        return None
    ordered = [node for node in product.graph.nodes if node in between]
    try:
        return _candidate(module, product, x, scale, ordered)
    except Refused as reason:
        reason.node = reason.node or product.name
        reason.pools |= reason.stage != "weights" and any(is_pooling(module, node) for node in ordered)
        raise


def unknown_product(module: nn.Module, node: fx.Node) -> Refused | None:
    """Why a module that combines x with what is pooled from x is no excitation; None for anything else."""
    tensors = node.all_input_nodes
    if node.op != "call_module" or len(tensors) != 2:
        return None
    for x, scale in (tensors, tensors[::-1]):
        between = descendants(x) & ancestors(scale)
        if any(is_pooling(module, part) for part in between):
            cls = type(attribute(module, str(node.target))).__name__
            refused = Refused("arithmetic", f"{node.target} is a {cls}, which does not only multiply", node=node)
            refused.pools = True
            return refused
    return None


def _candidate(module: nn.Module, product: fx.Node, x: fx.Node, scale: fx.Node, ordered: list[fx.Node]) -> Site:
    for node in ancestors(scale, {x}):
        if node.op == "get_attr" and ".parametrizations." in str(node.target):
            raise Refused("layers", f"{str(node.target).partition('.parametrizations.')[0]} is parametrized", near=True)
    stages = [stage for node in ordered if (stage := stage_of(module, node)) is not None]
    if not stages:
        raise Refused("weights", f"no layer lies between {x} and {scale}")
    if not isinstance(stages[0].part, Layer):
        raise Refused("layers", f"{stages[0].node} is the first with weights, and no layer")
    found = _search(module, x, scale, stages)
    y = product
    users = list(product.users)
    alone = len(users) == 1 and not found.add_one
    if alone and operands(module, users[0], "add") in ((x, product), (product, x)):  # x + x * gate
        y, found = users[0], replace(found, add_one=True)
    return Site(x, y, region(x, y), found, product=product)


def check_parameter(tensor: Tensor | None, path: str) -> None:
    if tensor is None or type(tensor) not in (nn.Parameter, Tensor):
        raise Refused("layers", f"{path} is a {type(tensor).__name__}", near=True)
    if not tensor.is_floating_point():
        raise Refused("layers", f"{path} is {tensor.dtype}", near=True)


def _shapes(sandbox: Sandbox, x: fx.Node, first: Stage) -> list[tuple[tuple[int, ...], int]]:
    """Shapes of x to try, with the gated axis: not square, odd, no two sizes alike."""
    K = first.sizes[0] if first.kind == "fc" else 8
    traced = sandbox.shape_of(x)
    if traced is not None:
        return [(tuple(traced), d) for d in range(1, len(traced)) if first.kind != "fc" or traced[d] == K]
    B, a, b, c = [size for size in (2, 3, 4, 5, 6) if size != K][:4]
    shapes = [
        *(((B, K, a, b), 1), ((B, K, c), 1), ((B, K, a, c, b), 1)),
        *(((B, c, K), 2), ((B, a, b, K), 3), ((B, a, K, b), 2), ((B, a, b, c, K), 4)),
        *(((B, a, K, b, c), 2), ((B, a, b, K, c), 3)),
    ]
    rank = x.meta.get("rank")
    return [(shape, dim) for shape, dim in shapes if rank is None or len(shape) == rank]


def _search(module: nn.Module, x: fx.Node, scale: fx.Node, stages: list[Stage]) -> Excitation:
    """The excitation that ``scale`` is of x, for every number of axes that fits. Raises the Refused that tells most."""
    found: Excitation | None = None
    refused = Refused("values", "no shape of x is one that its first layer takes")
    told = False
    for dtype in (torch.float64, torch.float32):  # the latter for code that converts to it on purpose
        sandbox = Sandbox(module, dtype)
        failed = False
        for shape, dim in _shapes(sandbox, x, stages[0]):
            try:
                with torch.no_grad():
                    excitation = _explain(_Trial(sandbox, x, scale, shape, dim), stages)
            except Refused as reason:
                if reason.near > refused.near or not told:
                    refused, told = reason, True
                continue
            except Exception as error:  # whatever somebody's code does with a shape or type that it does not take
                failed = True
                refused.__cause__ = refused.__cause__ or error
                continue
            if found is None:
                found = excitation
            elif replace(excitation, dims=()) == replace(found, dims=()) and len(shape) not in dict(found.dims):
                found = replace(found, dims=(*found.dims, *excitation.dims))
        if found is not None:
            return found
        if refused.near or not failed:
            break
    raise refused


class _Trial:
    """An x of one shape, with another of the same shape, and what the graph makes of them."""

    def __init__(self, sandbox: Sandbox, x: fx.Node, scale: fx.Node, shape: tuple[int, ...], dim: int) -> None:
        self.sandbox, self.x, self.scale, self.shape, self.dim = sandbox, x, scale, shape, dim
        self.value = sandbox.random(shape)
        self.batch, self.channels = shape[0], shape[dim]

    @functools.cached_property
    def another(self) -> Tensor:
        """Drawn where it is wanted: most shapes are refused before."""
        return self.sandbox.random(self.shape)

    def check_squeeze(self, squeezed: fx.Node) -> None:
        """Refused unless ``squeezed`` is the mean of x over all places."""
        value = self.sandbox.run(squeezed, {self.x: self.value.clone()})
        if not isinstance(value, Tensor) or value.numel() != self.batch * self.channels:
            raise Refused("squeeze", "no squeeze: its first layer sees more than one value a channel")
        mean = self.value.mean([d for d in range(1, len(self.shape)) if d != self.dim])
        if not torch.allclose(value.reshape(mean.shape).to(mean.dtype), mean, rtol=1e-5, atol=1e-5):
            raise Refused("squeeze", "its squeeze is not the mean", near=True)

    def probed(self, source: fx.Node, target: fx.Node, size: int) -> Probed:
        """The activation from ``source``, with ``size`` elements an image, to ``target``; x itself must not matter."""
        first, second = (
            probe(self._piece(source, target, size, x), self.batch * size) for x in (self.value, self.another)
        )
        if first is None or first != second:
            what = "gate" if target is self.scale else "activation"
            raise Refused(what, f"its {what} is none that the op has", near=True)
        return first

    def _piece(self, source: fx.Node, target: fx.Node, size: int, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The function from the value of ``source`` to that of ``target``, on flat tensors."""
        like = self.sandbox.run(source, {self.x: self.value.clone()})
        if not isinstance(like, Tensor) or like.numel() != self.batch * size:
            raise Refused("values", f"{source.name} has an unexpected shape", near=True)

        def run(z: Tensor) -> Tensor:
            out = self.sandbox.run(target, {self.x: x.clone(), source: z.reshape(like.shape).to(like.dtype)})
            if target is self.scale:
                out = torch.as_tensor(out).expand(self.shape).movedim(self.dim, 1).flatten(2)
                if not torch.equal(out, out[..., :1].expand_as(out)):
                    raise Refused("gate", "its gate differs from place to place", near=True)
                out = out[..., 0]
            if out.numel() != self.batch * size:
                raise Refused("values", f"{target.name} has an unexpected shape", near=True)
            return out.reshape(-1)  # type: ignore[no-any-return]

        return run


def _explain(trial: _Trial, stages: list[Stage]) -> Excitation:
    """The excitation that the scale is of x; Refused if it is none."""
    K = trial.channels
    trial.check_squeeze(stages[0].input)
    _check_layers(trial.sandbox.module, stages, K)
    over_channels = stages[0].kind == "channel_conv"
    targets = [*(stage.input for stage in stages[1:]), trial.scale]
    pieces = [
        trial.probed(stage.node, target, K if over_channels else stage.sizes[1])
        for stage, target in zip(stages, targets, strict=True)
    ]
    if any(piece.add_one for piece in pieces[:-1]):
        raise Refused("activation", "its activation is none that the op has", near=True)
    layers, activations = _folded(stages, [piece.spec for piece in pieces[:-1]])
    kind = "channel_conv" if over_channels else ("one_fc", "two_fc")[len(layers) - 1]
    return Excitation(
        *(kind, tuple(layers), activations[0] if activations else "identity", pieces[-1].spec, pieces[-1].add_one),
        dims=((len(trial.shape), trial.dim),),
        channels=None if over_channels else K,
        hidden=stages[0].sizes[1] if kind == "two_fc" else None,
    )


def _check_layers(module: nn.Module, stages: list[Stage], K: int) -> None:
    """Refused unless the layers are one or two, chained, from K channels to K, with weights that the op takes."""
    for stage in stages:
        if stage.refused:
            raise Refused("layers", stage.refused, near=True)
        for path in (stage.part.weight, stage.part.bias) if isinstance(stage.part, Layer) else ():
            if path is not None:
                check_parameter(path.tensor(module), str(path))
    layers = [stage for stage in stages if isinstance(stage.part, Layer)]
    if len(layers) > 2 or (len(layers) == 2 and any(layer.kind != "fc" for layer in layers)):
        raise Refused("layers", f"it has {len(layers)} layers", near=True)
    if layers[0].kind == "channel_conv" and any(stage.kind == "norm" for stage in stages):
        raise Refused("layers", "it has a norm beside a convolution over channels", near=True)
    if layers[0].kind == "fc" and layers[-1].sizes[1] != K:
        raise Refused("layers", f"its last layer has {layers[-1].sizes[1]} outputs for {K} channels", near=True)


def _folded(stages: list[Stage], specs: list[str]) -> tuple[list[Layer], list[str]]:
    """The layers with their norms, and what lies between layers. ``specs[i]``: between stages i and i + 1."""
    layers: list[Layer] = []
    activations: list[str] = []
    for stage, spec in zip(stages, ["identity", *specs], strict=True):
        if isinstance(stage.part, Layer):
            activations += [spec] if layers else []
            layers.append(stage.part)
            size = stage.sizes[1]
            continue
        behind = layers[-1]
        free = spec == "identity" and behind.norm is None
        if isinstance(stage.part, Norm):
            if not free:
                raise Refused("norms", "its norm is where none can be folded", near=True)
            layers[-1] = replace(behind, norm=stage.part)
        else:
            if not free or behind.bias is not None or stage.sizes[0] != size:
                raise Refused("bias", f"{stage.part} is added where no layer without a bias is in front", near=True)
            layers[-1] = replace(behind, bias=stage.part, bias_apart=True)
    return layers, activations

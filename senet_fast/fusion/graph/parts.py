"""What the modules of a network are to a graph of it: layers, code to look into, or more than their forward."""

import itertools
import math
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from senet_fast.fusion.graph.nodes import attribute
from senet_fast.fusion.graph.refusal import Refused
from senet_fast.se.guards import has_hooks

MAX_OPENED = 64  # modules below a child that is written out


def has_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def is_quantized(module: nn.Module) -> bool:
    """Whether this is one of torch's modules with packed weights."""
    where = type(module).__module__
    return where.startswith("torch.ao.nn.") and ".quantized." in where and not is_plain_arithmetic(module)


def is_plain_arithmetic(module: nn.Module) -> bool:
    """Whether it is what quantizable networks add and multiply with, not prepared for quantization."""
    observer = getattr(module, "activation_post_process", None)
    return type(module).__name__ in ("FloatFunctional", "FXFloatFunctional") and type(observer) is nn.Identity


def is_layer(module: nn.Module) -> bool:
    """Whether this could be a layer of an excitation."""
    if isinstance(module, nn.Linear) or (is_quantized(module) and layer_sizes(module) is not None):
        return True
    return isinstance(module, _ConvNd) and (math.prod(module.kernel_size) == 1 or isinstance(module, nn.Conv1d))


def layer_sizes(module: Any) -> tuple[int, int] | None:
    """(in, out) of a layer, quantized or not."""
    for what in ("features", "channels"):
        if hasattr(module, f"in_{what}") and hasattr(module, f"out_{what}"):
            return getattr(module, f"in_{what}"), getattr(module, f"out_{what}")
    return None


def is_small(module: nn.Module) -> bool:
    return sum(1 for _ in itertools.islice(module.modules(), MAX_OPENED + 1)) <= MAX_OPENED


def check_plain(module: nn.Module, path: str) -> None:
    """Refused if ``module`` does more than its forward."""
    if has_hooks(module):
        raise Refused("call", f"{path} has hooks", near=True)
    if "forward" in module.__dict__:
        raise Refused("call", f"{path} has a forward of its own instance", near=True)
    if is_quantized(module):
        raise Refused("call", f"{path} is quantized", near=True)
    of_quantization = "torch.ao." in type(module).__module__ and not is_plain_arithmetic(module)
    if getattr(module, "qconfig", None) is not None or of_quantization:
        raise Refused("call", f"{path} is prepared for quantization", near=True)


def is_pooling(module: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` may be a mean or the like, by its name: for what is said of code in which nothing was found."""
    kind = type(attribute(module, str(node.target))) if node.op == "call_module" else node.target
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return _names_pooling(name)


def may_pool(module: nn.Module) -> bool:
    """Whether the forward of ``module``, of which there is no graph, may pool, by the names in it."""
    code = getattr(type(module).forward, "__code__", None)
    children = (type(child).__name__ for child in module.children())
    return any(map(_names_pooling, (*(code.co_names if code is not None else ()), *children)))


def _names_pooling(name: str) -> bool:
    return "pool" in name.lower() or name.lower().partition(".")[0] in ("mean", "sum", "amax")

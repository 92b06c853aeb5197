"""When the op may take the place of other modules' calls, and write over their tensors.

The op reads the tensors of layers that it never calls. Hooks, pruning, adapters, parametrizations, quantization and
sharding change what such a call does, or watch it, and they come from outside at any time: so this is asked at every
call, in a fraction of a microsecond.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.modules import module as torch_module

F = TypeVar("F", bound=Callable[..., Any])
_PROXY = torch._C._TorchDispatchModeKey.PROXY
_STAND_INS = ("torch._subclasses.fake_tensor", "torch._subclasses.functional_tensor")


def is_plain(tensor: object) -> bool:
    """Whether it is a tensor without code of its own, or what stands for one while a graph is made."""
    kind = type(tensor)
    return kind is Parameter or kind is Tensor or kind.__module__ in _STAND_INS


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of ``module`` is seen by anybody."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def hooks_of_all_modules() -> bool:
    """Whether somebody sees the calls of every module."""
    m = torch_module
    return bool(
        m._global_forward_hooks
        or m._global_forward_pre_hooks
        or m._global_backward_hooks
        or m._global_backward_pre_hooks
    )


def is_untouched(module: nn.Module, kind: type[nn.Module], compiling: bool = False) -> bool:
    """Whether a call of ``module`` does what ``kind`` does, seen by nobody.

    compiling: whether Dynamo traces this. It then asks for what Dynamo guards as well, so that a compiled graph is made
    anew where the answer changes; that takes a little longer.
    """
    if compiling:
        seen = len(module._forward_hooks) + len(module._forward_pre_hooks)
        seen += len(module._backward_hooks) + len(module._backward_pre_hooks)
        if seen or not isinstance(module.forward, MethodType):
            return False
    state = module.__dict__
    return not (
        type(module) is not kind
        # has_hooks(module), written out: this is asked of every layer at every call
        or state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def has_plain_tensors(module: nn.Module) -> bool:
    """Whether no parameter of ``module`` itself has code of its own."""
    for tensor in module._parameters.values():
        if type(tensor) is not Parameter and tensor is not None and not is_plain(tensor):
            return False
    return True


def plain_weights(
    layer: nn.Module, kind: type[nn.Module], compiling: bool = False
) -> tuple[Tensor, Tensor | None] | None:
    """``layer.weight`` and ``layer.bias`` for the op to read; None where ``layer`` must be called."""
    if not is_untouched(layer, kind, compiling):
        return None
    # Past Module.__getattr__, which takes half a microsecond. DataParallel's replicas have plain attributes instead,
    # and somebody may have made buffers of them.
    parameters: dict[str, Any] = layer._parameters
    if "weight" in parameters and "bias" in parameters:
        weight, bias = parameters["weight"], parameters["bias"]
    else:
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if type(weight) is not Parameter and not is_plain(weight):
        return None
    if type(bias) is not Parameter and bias is not None and not is_plain(bias):
        return None
    return weight, bias


def what_changed(module: nn.Module, kind: type[nn.Module]) -> str:
    """For a log: why ``module`` must be called."""
    if type(module) is not kind:
        return f"is a {type(module).__module__}.{type(module).__qualname__}, no {kind.__module__}.{kind.__qualname__}"
    if has_hooks(module):
        return "has hooks"
    if "forward" in module.__dict__:
        return "has a forward of its own"
    tensors = {name: getattr(module, name, None) for name in ("weight", "bias")}
    kinds = {name: type(t).__qualname__ for name, t in tensors.items() if t is not None and not is_plain(t)}
    return " and ".join(f"has a {name} that is a {kind_of}" for name, kind_of in kinds.items()) or "has no weight"


def constant(function: F) -> F:
    """Dynamo calls it instead of tracing it, and takes the result, of Python's own types, for a constant.

    Whatever else it reads of an object, Dynamo looks at in every call of what it has compiled: with some 200 such
    looks for each block these took a tenth of a small network's time. What never changes need not be looked at.
    (torch.compiler.assume_constant_result sets the same attribute, and imports Dynamo, which takes a second.)
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def only_inference() -> bool:
    """Whether no gradients are wanted and neither an exporter, torch.jit.trace, torch.func nor forward mode looks at
    what happens.
    """
    exporting = torch.compiler._is_exporting_flag  # is_exporting() is True in all that Dynamo of torch 2.11 traces
    if torch.is_grad_enabled() or exporting or torch._C._get_tracing_state() is not None:
        return False
    return not (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


def is_recorded(x: Tensor) -> bool:
    """Whether calls outside of Dynamo become a graph (``make_fx``), or x stands for a tensor without memory."""
    return type(x) not in (Tensor, Parameter) or torch._C._get_dispatch_mode(_PROXY) is not None


def may_overwrite(x: Tensor, residual: Tensor | None) -> bool:
    """Whether y may take the place of ``x``, of which the caller says that nobody needs it any more.

    Not where a gradient of x is wanted, although grad mode is off: a reentrant checkpoint, a reversible network or
    another autograd function runs its body once without gradients, keeps the inputs, and runs it again in backward.
    Such an input requires a gradient or is a view of what does; what ``detach`` returns cannot be told from any other.
    Nor where the residual is of the same memory or of another dtype. Dynamo can only be asked what is a view of what.
    """
    if not only_inference() or x.requires_grad or (x._base is not None and x._base.requires_grad):
        return False
    if residual is not None and residual.dtype != x.dtype:
        return False
    if torch.compiler.is_dynamo_compiling():  # is_compiling() is True in all threads while one of them compiles
        return residual is None or _viewed(x) is not _viewed(residual)
    return not x.is_neg() and (residual is None or not torch._C._is_alias_of(x, residual))  # type: ignore[attr-defined]


def _viewed(x: Tensor) -> Tensor:
    return x if x._base is None else x._base


@constant
def freezes() -> bool:
    """Whether weights are constants of the graph that Dynamo traces: by Inductor's config, unless an option of
    torch.compile says otherwise. That option alone leaves them inputs, for Dynamo asks the config.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._inductor import config  # imports Dynamo as well

    backend: Any = InstructionTranslator.current_tx().output.compiler_fn
    while hasattr(backend, "_torchdynamo_orig_backend"):
        backend = backend._torchdynamo_orig_backend
    options = getattr(backend, "config", None)
    given = options.get("freezing") if isinstance(options, dict) else None
    return bool(config.freezing and (given is None or given))


def costs_nothing_in_front(x: Tensor) -> bool:
    """Whether a norm and an activation are best left in front of the op, as Inductor computes them within the
    convolution that they follow.
    """
    return torch.compiler.is_dynamo_compiling() and x.device.type == "cpu" and freezes()

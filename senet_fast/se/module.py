"""FusedSE: the SE block as a module over the fused op."""

import logging
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling

from senet_fast.se.activations import ActivationLike, apply, spec_of
from senet_fast.se.guards import (
    has_hooks,
    hooks_of_all_modules,
    is_plain,
    may_overwrite,
    plain_weights,
    what_changed,
)
from senet_fast.se.ops import squeeze_excite
from senet_fast.se.reference import SEBlock, gated, hidden_size, prologue

# Names of the two layers in other blocks' state dicts -> ours.
_LAYER_ALIASES = {
    **{"fc.0": "fc1", "fc.2": "fc2", "conv_reduce": "fc1", "conv_expand": "fc2"},
    **{"excitation.0": "fc1", "excitation.2": "fc2"},
}

_log = logging.getLogger("senet_fast.se")
_said: WeakSet[nn.Module] = WeakSet()  # modules that have told the log why they call their layers

fx.wrap("squeeze_excite")  # torch.fx records the op as one call


def weights_for_op(
    module: nn.Module, x: Any, *layers: nn.Module, kind: type[nn.Module] = nn.Conv2d
) -> tuple[Tensor | None, ...] | None:
    """Weight and bias of each of the ``layers``, of which the op does the work; None where ``module`` must call them.

    That is where one of them is no longer an untouched ``kind``, where somebody watches all modules, and for an ``x``
    with code of its own. ``module`` says so once, at DEBUG.

    Raises:
        TypeError: x is no tensor, or a nested one.
    """
    found: tuple[Tensor | None, ...] = ()
    compiling = is_compiling()
    if (type(x) is Tensor or is_plain(x) or isinstance(x, fx.Proxy)) and not hooks_of_all_modules():
        for layer in layers:
            pair = plain_weights(layer, kind, compiling)
            if pair is None:
                break
            found += pair
        else:
            return found
    if not hasattr(x, "__torch_function__"):
        raise TypeError(f"x is a {type(x).__qualname__}; expected a torch.Tensor")
    if isinstance(x, Tensor) and x.is_nested:
        raise TypeError("x is a nested tensor; expected a dense tensor: pad it, or call the block for each part")
    if not compiling and module not in _said and _log.isEnabledFor(logging.DEBUG):
        _said.add(module)
        names = {part: name for name, part in module.named_children()}
        changed = [layer for layer in layers if plain_weights(layer, kind) is None]
        reasons = [f"{names[layer]} {what_changed(layer, kind)}" for layer in changed]
        reasons += ["hooks of all modules are registered"] if hooks_of_all_modules() else []
        reasons += [] if is_plain(x) else [f"x is a {type(x).__qualname__}"]
        _log.debug("%s calls its layers instead of the fused op: %s", type(module).__name__, "; ".join(reasons))
    return None


class FusedSE(nn.Module):
    """Squeeze-and-Excitation block, drop-in for :class:`SEBlock` (Hu et al., arXiv 1709.01507, section 3).

    Parameters are ``fc1.weight`` [R, C, 1, 1], ``fc1.bias`` [R], ``fc2.weight`` [C, R, 1, 1], ``fc2.bias`` [C], so
    state dicts of torchvision's ``SqueezeExcitation`` and timm's ``SEModule`` load as they are. ``load_state_dict``
    also takes Linear weights [R, C] and the layer names ``fc.0``/``fc.2``, ``conv_reduce``/``conv_expand`` and
    ``excitation.0``/``excitation.2``.

    Args:
        channels: C, the size of the gated axis.
        reduction: C / R.
        hidden_channels: R; overrides ``reduction``.
        bias: whether both layers have a bias.
        activation, gate: a name, a function of ``torch.nn.functional``, an ``nn.Module``, its class or a
            ``functools.partial`` of one; see :func:`squeeze_excite` for the names.
        dim: the gated axis of x: 1 for [B, C, ...], -1 for [B, T, C].
        add_one: scale by 1 + gate.
        post_activation: applied to ``x * scale (+ residual)``.
        inplace: in eval mode, while grad mode is off, y takes the place of ``x``: the least memory traffic. y is a new
            tensor otherwise, in graphs of exporters, beside a residual of another dtype or of the same
            memory, while the block has hooks, and where x requires a gradient or is a view of what does: a reentrant
            checkpoint, whose first pass has grad mode off, wants x again. Such a pass looks like inference if it gets
            x detached or without a gradient: do not use ``inplace`` there. Nor, as with other ops in place, for what a
            branch of ``torch.cond`` or a ``nested_compile_region`` is given.
        device, dtype: of the parameters.

    Where ``fc1`` or ``fc2`` is not what it was built as (another class, hooks, parametrizations, a tensor subclass as
    weight: pruning, adapters, quantization, sharding) or x is a tensor subclass, forward calls the two layers, with the
    results of :class:`SEBlock`; the logger ``senet_fast.se`` says so once, at DEBUG.

    Raises:
        ValueError: sizes below 1, an unknown activation name. TypeError: an activation of an unknown kind.
    """

    activation: str
    gate: str
    dim = 1
    add_one = False
    post_activation = "identity"
    inplace = False
    __constants__ = ("activation", "gate", "dim", "add_one", "post_activation")  # for TorchScript

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        bias: bool = True,
        activation: ActivationLike = "relu",
        gate: ActivationLike = "sigmoid",
        dim: int = 1,
        add_one: bool = False,
        post_activation: ActivationLike = "identity",
        inplace: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_size(channels, reduction, hidden_channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias, device=device, dtype=dtype)
        if dim == 0:
            raise ValueError("dim is 0, the batch; expected the gated axis of x")
        self.activation = spec_of(activation, "activation")
        self.gate = spec_of(gate, "gate")
        self.dim = dim
        self.add_one = add_one
        self.post_activation = spec_of(post_activation, "post_activation")
        self.inplace = inplace

    @classmethod
    def from_block(cls, block: SEBlock, *, inplace: bool = False) -> Self:
        """A FusedSE that shares the parameters of ``block``, in the same mode: optimizers notice nothing."""
        if type(block) is not SEBlock:
            raise TypeError(f"block is a {type(block).__name__}; expected senet_fast.SEBlock")
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        fused.fc1, fused.fc2 = block.fc1, block.fc2
        fused.activation, fused.gate, fused.inplace = block.activation, block.gate, inplace
        return fused.train(block.training)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        pre_scale: Tensor | None = None,
        pre_shift: Tensor | None = None,
        pre_activation: str = "identity",
        inplace: bool = True,
    ) -> Tensor:
        """y [shape, dtype and memory layout of x] = post_activation(u * scale + residual).

        u = pre_activation(x * pre_scale + pre_shift), a folded BatchNorm [K], is x by default; see
        :func:`squeeze_excite` for where it is fused. ``inplace``: False where x is wanted again after this call.
        """
        # A constant for TorchScript, which compiles this branch alone.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            no_prologue = pre_scale is None and pre_shift is None and pre_activation == "identity"
            assert no_prologue, "pre_scale, pre_shift or pre_activation was given; expected none in TorchScript"
            return torch.ops.senet_fast.squeeze_excite(  # type: ignore[no-any-return]
                x,
                self.fc1.weight,
                self.fc1.bias,
                self.fc2.weight,
                self.fc2.bias,
                residual,
                activation=self.activation,
                gate=self.gate,
                dim=self.dim,
                add_one=self.add_one,
                post_activation=self.post_activation,
            )
        else:
            modules: Any = self._modules
            weights = weights_for_op(self, x, modules["fc1"], modules["fc2"])
            if weights is None:
                return self._call_layers(prologue(x, pre_scale, pre_shift, pre_activation, self.dim), residual)
            in_place = is_plain(x) and self.inplace and inplace and not self.training
            in_place = in_place and not has_hooks(self) and may_overwrite(x, residual)  # a hook may have kept x
            return squeeze_excite(
                x,
                *weights,  # type: ignore[arg-type]
                residual=residual,
                activation=self.activation,
                gate=self.gate,
                dim=self.dim,
                add_one=self.add_one,
                post_activation=self.post_activation,
                pre_scale=pre_scale,
                pre_shift=pre_shift,
                pre_activation=pre_activation,
                out=x if in_place else None,
            )

    def __prepare_scriptable__(self) -> Self:
        """Asked by torch.jit.script, whose code reads the weights and could not notice a change."""
        for name, layer in self.named_children():
            if plain_weights(layer, nn.Conv2d) is None:
                raise TypeError(
                    f"{name} {what_changed(layer, nn.Conv2d)}; expected the layer that FusedSE was built with: "
                    "torch.jit.script compiles the op alone"
                )
        return self

    def _call_layers(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """What the op computes, one layer after the other, as :class:`SEBlock` does."""
        weight = next(self.fc1.parameters(), None)
        # As in the op, float32 layers take an x of another type. Autocast sees to that by itself.
        wide = isinstance(x, Tensor) and weight is not None and x.dtype != weight.dtype == torch.float32
        wide = wide and not torch.is_autocast_enabled(x.device.type)

        def excite(squeezed: Tensor) -> Tensor:
            given = squeezed.float() if wide else squeezed
            z: Tensor = self.fc2(apply(self.activation, self.fc1(given[:, :, None, None]))).flatten(1)
            return z.to(squeezed.dtype) if wide else z

        return gated(
            x,
            excite,
            residual=residual,
            gate=self.gate,
            dim=self.dim,
            add_one=self.add_one,
            post_activation=self.post_activation,
        )

    def extra_repr(self) -> str:
        shown: dict[str, Any] = {"activation": self.activation, "gate": self.gate}
        options = ("dim", "add_one", "post_activation", "inplace")
        shown |= {name: getattr(self, name) for name in options if getattr(self, name) != getattr(FusedSE, name)}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for theirs, ours in _LAYER_ALIASES.items():
            for kind in ("weight", "bias"):
                if f"{prefix}{theirs}.{kind}" in state_dict:
                    state_dict[f"{prefix}{ours}.{kind}"] = state_dict.pop(f"{prefix}{theirs}.{kind}")
        for layer in ("fc1", "fc2"):
            weight = state_dict.get(f"{prefix}{layer}.weight")
            if isinstance(weight, Tensor) and weight.dim() in (2, 3):
                state_dict[f"{prefix}{layer}.weight"] = weight.reshape(*weight.shape[:2], 1, 1)
        super()._load_from_state_dict(state_dict, prefix, *args)

"""FusedSE: the SE block as a module over the fused op."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from senet_fast.se.activations import spec_of
from senet_fast.se.ops import squeeze_excite
from senet_fast.se.reference import SEBlock, hidden_size

# Names of the two layers in other blocks' state dicts -> ours.
_LAYER_ALIASES = {
    **{"fc.0": "fc1", "fc.2": "fc2", "conv_reduce": "fc1", "conv_expand": "fc2"},
    **{"excitation.0": "fc1", "excitation.2": "fc2"},
}


def _weight_and_bias(layer: Any) -> tuple[Tensor, Tensor | None]:
    """``layer.weight`` and ``layer.bias``; plain parameters past ``Module.__getattr__``, which takes 0.5 us for one."""
    parameters = layer._parameters
    if "weight" in parameters and "bias" in parameters:
        return parameters["weight"], parameters["bias"]
    return layer.weight, layer.bias


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
        activation, gate: a name, an ``nn.Module`` or its class; see :func:`squeeze_excite` for the names.
        dim: the gated axis of x: 1 for [B, C, ...], -1 for [B, T, C].
        add_one: scale by 1 + gate.
        post_activation: applied to ``x * scale (+ residual)``.
        inplace: in eval mode, while grad mode is off, y takes the place of ``x``: the least memory traffic. Otherwise,
            and beside a residual of another dtype, y is a new tensor.

    Raises:
        ValueError: sizes below 1, an unknown activation name. TypeError: an activation of an unknown kind.
    """

    activation: str
    gate: str
    dim = 1
    add_one = False
    post_activation = "identity"
    inplace = False

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        bias: bool = True,
        activation: str | nn.Module | type[nn.Module] = "relu",
        gate: str | nn.Module | type[nn.Module] = "sigmoid",
        dim: int = 1,
        add_one: bool = False,
        post_activation: str | nn.Module | type[nn.Module] = "identity",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_size(channels, reduction, hidden_channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)
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
        *,
        pre_scale: Tensor | None = None,
        pre_shift: Tensor | None = None,
        pre_activation: str = "identity",
    ) -> Tensor:
        """y [shape, dtype and memory layout of x] = post_activation(u * scale + residual).

        u = pre_activation(x * pre_scale + pre_shift), a folded BatchNorm [K], is x by default; see
        :func:`squeeze_excite` for where it is fused.
        """
        modules = self._modules
        in_place = self.inplace and not self.training and not torch.is_grad_enabled()
        if residual is not None and residual.dtype != x.dtype:
            in_place = False
        return squeeze_excite(
            x,
            *_weight_and_bias(modules["fc1"]),
            *_weight_and_bias(modules["fc2"]),
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

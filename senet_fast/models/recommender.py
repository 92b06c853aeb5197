"""Gates of recommender networks on the embeddings of F fields, x: [B, F, D]."""

import torch
from torch import Tensor, nn

from senet_fast.se import FusedSE


class FiBiNETSE(FusedSE):
    """SENET layer of FiBiNET (Huang et al., arXiv 1905.09433, section 3.3), the SE block over fields, in the fused op.

    x, y: [B, F, D]; y = x * relu(W2 relu(W1 mean(x over D))), without biases. ``fc1.weight`` [R, F, 1, 1] and
    ``fc2.weight`` [F, R, 1, 1]; deepctr-torch's ``SENETLayer`` loads as it is.

    Args:
        fields: F.
        reduction: F / R, with at least one hidden unit.
    """

    def __init__(self, fields: int, reduction: int = 3) -> None:
        hidden = max(1, fields // reduction)
        super().__init__(fields, hidden_channels=hidden, bias=False, activation="relu", gate="relu")


class FeatureEmbeddingGate(nn.Module):
    """Feature embedding gate of GateNet (Huang et al., arXiv 2007.03519, section 3.1).

    x, y: [B, F, D]; y[:, f] = x[:, f] * sigmoid(x[:, f] @ weight[f]). Plain torch: nothing is squeezed.

    Args:
        fields: F.
        size: D.
        bitwise: a gate for each of the D elements, weight [F, D, D], instead of one for the vector, [F, D, 1].
        shared: one weight for all fields, [1, D, ...].
    """

    def __init__(self, fields: int, size: int, *, bitwise: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.fields = fields
        self.weight = nn.Parameter(torch.empty(1 if shared else fields, size, size if bitwise else 1))
        for matrix in self.weight:
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[1:] != (self.fields, self.weight.shape[1]):
            raise ValueError(f"x is {list(x.shape)}; expected [B, {self.fields}, {self.weight.shape[1]}]")
        gate = torch.sigmoid(torch.matmul(x.unsqueeze(2), self.weight).squeeze(2))  # [B, F, D] or [B, F, 1]
        return x * gate


class HiddenGate(nn.Module):
    """Hidden gate of GateNet (arXiv 2007.03519, section 3.2) behind a hidden layer's activation.

    x, y: [..., size]; y = x * sigmoid(x @ weight.T), ``weight`` [size, size].
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.linear(x))

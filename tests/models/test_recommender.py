"""FiBiNET's layer against deepctr-torch's where it is installed and against its formula; GateNet's gates, by loops."""

import needs
import pytest
import torch

from senet_fast.models.recommender import FeatureEmbeddingGate, FiBiNETSE, HiddenGate


@pytest.mark.parametrize(("fields", "size", "reduction"), [(26, 8, 3), (2, 5, 3), (7, 1, 2)])
def test_fibinet_equals_deepctr(fields: int, size: int, reduction: int) -> None:
    interaction = needs.library("deepctr_torch.layers.interaction")
    torch.manual_seed(0)
    theirs = interaction.SENETLayer(fields, reduction)
    ours = FiBiNETSE(fields, reduction)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, fields, size)
    grad = torch.randn_like(x)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for layer, leaf in zip((theirs, ours), leaves, strict=True):
        layer(leaf).backward(grad)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad)
    for expected, actual in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(actual.grad, expected.grad.view_as(actual))


def test_fibinet_formula() -> None:
    torch.manual_seed(0)
    layer, x = FiBiNETSE(6).double(), torch.randn(4, 6, 3, dtype=torch.float64)
    assert layer.fc1.out_channels == 2
    w1, w2 = layer.fc1.weight.flatten(1), layer.fc2.weight.flatten(1)
    gate = (x.mean(2) @ w1.T).relu() @ w2.T
    torch.testing.assert_close(layer(x), x * gate.relu()[..., None])
    assert layer(x[:0]).shape == (0, 6, 3)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bitwise", [False, True])
def test_feature_embedding_gate(bitwise: bool, shared: bool) -> None:
    torch.manual_seed(0)
    gate, x = FeatureEmbeddingGate(3, 4, bitwise=bitwise, shared=shared), torch.randn(2, 3, 4)
    y = gate(x)
    for b in range(2):
        for f in range(3):
            weight = gate.weight[0 if shared else f]
            for d in range(4):
                z = sum(x[b, f, e] * weight[e, d if bitwise else 0] for e in range(4))
                torch.testing.assert_close(y[b, f, d], x[b, f, d] * torch.sigmoid(z))
    with pytest.raises(ValueError, match=r"x is \[2, 4, 4\]; expected \[B, 3, 4\]"):
        gate(torch.randn(2, 4, 4))


def test_hidden_gate() -> None:
    torch.manual_seed(0)
    gate, x = HiddenGate(5), torch.randn(3, 5)
    z = torch.stack([torch.stack([gate.linear.weight[i] @ row for i in range(5)]) for row in x])
    torch.testing.assert_close(gate(x), x / (1 + torch.exp(-z)))

"""What torch.compile(mode="reduce-overhead") does before it records a graph, with its own check of the graph's memory.
Run by `make stand-in`.
"""

import pytest
import torch
from binding_tests import arguments, kernel  # noqa: F401
from graph_trees import graph_trees
from se_testing import assert_same_bits, value_and_grads
from torch import Tensor

from senet_fast.se import squeeze_excite


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_torchs_own_check_of_a_graphs_pool_passes(backward: bool, fresh_dynamo: None) -> None:
    given = arguments(B=6)  # of this shape for the first time
    grad_y = torch.randn_like(given["x"])
    with graph_trees() as pools:
        compiled = torch.compile(squeeze_excite, backend="cudagraphs", fullgraph=True)
        if backward:
            results = value_and_grads(compiled, given, grad_y)
        else:
            with torch.no_grad():
                results = {"y": compiled(**given)}
        results = {name: value.clone() for name, value in results.items()}
    assert pools.checks >= 1 + backward
    expected = value_and_grads(squeeze_excite, given, grad_y)
    for name, value in results.items():
        assert_same_bits(value, expected[name])


def test_what_is_kept_in_a_graphs_pool_is_noticed(fresh_dynamo: None) -> None:
    kept = []

    @torch.library.custom_op("stand_in::keeps", mutates_args=())
    def keeps(x: Tensor) -> Tensor:
        kept.append(torch.zeros_like(x))
        return x.clone()

    keeps.register_fake(torch.empty_like)
    x = arguments()["x"]
    with (
        graph_trees(),
        pytest.raises(RuntimeError, match=r"Detected 1 tensor.* in the cudagraph pool not tracked as outputs"),
    ):
        torch.compile(keeps, backend="cudagraphs", fullgraph=True)(x)

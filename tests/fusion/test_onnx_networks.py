"""Fused networks and those of senet_fast.models in ONNX Runtime: the numbers of eager, one squeeze for each block."""

import copy
import io
from collections import Counter
from collections.abc import Callable

import needs
import pytest
import torch
from fusion_testing import randomize, relative
from hosts import HOSTS
from networks import TIMM, timm_network
from torch import Tensor, fx, nn

from senet_fast import fuse
from senet_fast.models import create
from senet_fast.se import FusedSE, SEBlock

onnx = needs.library("onnx")
onnxruntime = needs.library("onnxruntime")
needs.library("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

Export = Callable[..., bytes]
X = torch.randn(HOSTS["bottleneck"].shape)


def by_dynamo(network: nn.Module, x: Tensor, free: bool) -> bytes:
    sizes = ({0: torch.export.Dim("batch")},) if free else None
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False, dynamic_shapes=sizes)
    return program.model_proto.SerializeToString()


def by_torchscript(network: nn.Module, x: Tensor, free: bool) -> bytes:
    file = io.BytesIO()
    axes = {"x": {0: "batch"}} if free else None
    torch.onnx.export(network, (x,), file, dynamo=False, opset_version=18, input_names=["x"], dynamic_axes=axes)
    return file.getvalue()


def same(plain: nn.Module, fused: nn.Module, x: Tensor, export: Export, free: bool) -> Counter[str]:
    """The fused network's graph computes what the plain one does in eager; its operators."""
    model = export(fused, x, free)
    x = torch.cat([x, x.cos(), x.sin()]) if free else x
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative(plain(x), torch.from_numpy(y)) < 1e-4
    nodes = onnx.load_model_from_string(model).graph.node
    assert {node.domain for node in nodes} == {""}
    return Counter(node.op_type for node in nodes)


@pytest.mark.slow
@pytest.mark.parametrize(("export", "grad"), [(by_dynamo, False), (by_torchscript, False), (by_torchscript, True)])
def test_hosts(export: Export, grad: bool) -> None:
    """Blocks with every kind of neighbour."""
    chosen = [HOSTS[name].make() for name in ("mbconv", "bottleneck", "silu_at_the_end", "inverted_residual")]
    plain = randomize(nn.Sequential(*chosen)).eval()
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == len(chosen)
    with torch.set_grad_enabled(grad):
        found = same(plain, fused, X, export, free=True)
    assert found["ReduceMean"] + found["GlobalAveragePool"] == len(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("how", [fx.symbolic_trace, lambda model: torch.export.export(model, (X,)).module()])
@pytest.mark.parametrize("name", ["bottleneck", "inverted_residual"])
def test_graph_modules(name: str, how: Callable[[nn.Module], nn.Module]) -> None:
    """In the second a convolution beside the gate, which stays one."""
    plain = randomize(HOSTS[name].make()).eval()
    fused = how(copy.deepcopy(plain))
    assert len(fuse(fused).fused) == 1
    with torch.no_grad():
        found = same(plain, fused, X, by_dynamo, free=False)
    assert found["ReduceMean"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("export", "grad"), [(by_dynamo, True), (by_torchscript, False), (by_torchscript, True)])
def test_networks_of_the_paper(export: Export, grad: bool) -> None:
    """Without gradients BatchNorm is in the op as well: it becomes a multiplication and an addition."""
    plain = randomize(create("resnet_digits", se=SEBlock, depths=(1, 1))).eval()
    fused = create("resnet_digits", se=True, depths=(1, 1)).eval()
    fused.load_state_dict(plain.state_dict())
    with torch.set_grad_enabled(grad):
        found = same(plain, fused, torch.randn(2, 1, 8, 8), export, free=True)
    blocks = sum(isinstance(module, FusedSE) for module in fused.modules())
    assert found["ReduceMean"] == blocks + 1  # the head's


@pytest.mark.slow
def test_timm() -> None:
    plain = randomize(timm_network("lcnet_035")).eval()
    fused = copy.deepcopy(plain)
    blocks = len(fuse(fused).fused)
    assert blocks == TIMM["lcnet_035"][0]
    found = same(plain, fused, torch.randn(2, 3, 64, 64), by_torchscript, free=True)
    assert found["ReduceMean"] + found["GlobalAveragePool"] == blocks + 1

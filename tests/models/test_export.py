"""The networks under exporters and tracers: free sizes, feature extractors, FX fusion and quantization."""

import warnings
from typing import Any

import needs
import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.experimental.optimization import fuse as fold_batch_norms

from senet_fast.models import NETWORKS, create, resnet
from senet_fast.models.inception_resnet import Residual
from senet_fast.se import FusedSE, SEBlock

# torch 2.11 binds the height and width of any network that has a pooling in front of a strided convolution.
MAPS_MAY_BE_FREE = torch.__version__ >= (2, 12)

# A side of the images, and the least: with smaller ones the last map is a single pixel, which torch specialises on.
SIDES = {"resnet_digits": (12, 5), "inception_resnet_v2": (139, 107)}
SE_OF: dict[str, tuple[Any, ...]] = {
    **{"resnet50": (False, True, SEBlock), "resnet_digits": (False, True), "shufflenet_v1": (False, True)},
    **{"eca_resnet50": (None,)},
}
# With one block a stage these are the others; the classifier of VGG takes as long as all the rest.
LIKE_OTHERS = ("resnet101", "resnet152", "resnext101_32x4d", "vgg16_bn")


def network(name: str, se: Any) -> tuple[nn.Module, Tensor]:
    """With one block a stage where there are stages, and images for it."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 10} if se is None else {"num_classes": 10, "se": se}
    if name in resnet.NETWORKS:
        options["depths"] = (1, 1, 1) if name == "resnet_digits" else (1, 1, 1, 1)
    side = SIDES.get(name, (96, 0))[0]
    model = create(name, **options).eval()
    if name == "inception_resnet_v2":
        alike = [isinstance(layer, Residual) and not layer.last for layer in model.features]
        for place in reversed(range(1, len(alike))):
            if alike[place] and alike[place - 1]:
                del model.features[place]
    return model, torch.randn(2, 1 if name == "resnet_digits" else 3, side, side)


CASES = [(name, se) for name in NETWORKS if name not in LIKE_OTHERS for se in SE_OF.get(name, (True,))]
IDS = [f"{name}-{getattr(se, '__name__', se)}" for name, se in CASES]


WITHOUT_GRADIENTS = [case for case in CASES if case[0] in ("resnet_digits", "shufflenet_v1")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "se", "grad"),
    [*((*case, True) for case in CASES), *((*case, False) for case in WITHOUT_GRADIENTS)],
    ids=[*IDS, *(f"{name}-{se}-no_grad" for name, se in WITHOUT_GRADIENTS)],
)
def test_exports_with_free_sizes(name: str, se: Any, grad: bool) -> None:
    """Batch, height and width, with grad mode on, which is the default, and off."""
    model, x = network(name, se)
    least = SIDES.get(name, (0, 75))[1]
    sizes = {0: Dim("batch"), 2: Dim("height", min=least, max=512), 3: Dim("width", min=least, max=512)}
    if not MAPS_MAY_BE_FREE:
        del sizes[2], sizes[3]
    with torch.set_grad_enabled(grad):
        program = torch.export.export(model, (x,), dynamic_shapes=(sizes,))
    ops = [node.target for node in program.graph.nodes if "senet_fast" in str(node.target)]
    wanted = torch.ops.senet_fast.squeeze_excite.default
    assert set(ops) == ({wanted} if se in (True, None) else set())
    other = torch.randn(3, x.shape[1], *((least + 9, least + 20) if MAPS_MAY_BE_FREE else x.shape[2:]))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("name", "se"), CASES, ids=IDS)
def test_symbolic_trace(name: str, se: Any, grad: bool) -> None:
    """The graph has a call of each layer and of each block, and computes the same, in training as well."""
    model, x = network(name, se)
    for training in (False, True):
        model.train(training)
        with torch.set_grad_enabled(grad):
            traced = fx.symbolic_trace(model)
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        assert sum(isinstance(traced.get_submodule(str(path)), nn.BatchNorm2d) for path in called) == norms
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        torch.testing.assert_close(traced(x), expected, rtol=1e-3, atol=1e-4)


def test_traced_blocks_stay_one_call() -> None:
    block, x = FusedSE(8, 4, activation="silu", inplace=True).eval(), torch.randn(2, 8, 5, 5)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            traced = fx.symbolic_trace(block)
        (call,) = (node for node in traced.graph.nodes if node.op == "call_function")
        assert call.target.__name__ == "squeeze_excite"
        torch.testing.assert_close(traced(x), block(x.clone()))
        torch.testing.assert_close(traced(x, x), block(x.clone(), x))
    block.fc1.register_forward_hook(lambda module, args, output: output * 2)
    traced = fx.symbolic_trace(
        block, dict.fromkeys(("residual", "pre_scale", "pre_shift")) | {"pre_activation": "identity"}
    )
    assert {node.target for node in traced.graph.nodes if node.op == "call_module"} == {"fc1", "fc2"}
    torch.testing.assert_close(traced(x), block(x.clone()))


def test_feature_extraction() -> None:
    """As torchvision's create_feature_extractor does: a graph that ends earlier."""
    model, x = network("resnet50", True)
    traced = fx.symbolic_trace(model)
    stage = model.stages[1]  # type: ignore[index, union-attr]
    seen: list[Tensor] = []
    handle = stage.register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    handle.remove()
    blocks = [node for node in traced.graph.nodes if getattr(node.target, "__name__", "") == "squeeze_excite"]
    assert len(blocks) == 4
    output = next(node for node in traced.graph.nodes if node.op == "output")
    output.args = (blocks[1],)  # the tail of the second stage's only block
    traced.graph.eliminate_dead_code()
    traced.recompile()
    torch.testing.assert_close(traced(x), seen[0])


@pytest.mark.parametrize("se", [False, True])
def test_fx_fusion(se: bool) -> None:
    """Convolutions with their BatchNorms, by torch's own pass."""
    model, x = network("resnet_digits", se)
    with torch.no_grad():
        expected = model(x)
        folded = fold_batch_norms(model)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("se", [False, True])
def test_fx_quantization(se: bool) -> None:
    """torch.ao's graph mode quantizes the convolutions, BatchNorm folded in; a fused block stays in float."""
    quantization = needs.library("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    model, x = network("resnet_digits", se)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(x)
        prepared = quantization.prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        converted = quantization.convert_fx(prepared)
        actual = converted(x)
    kinds = [type(module).__module__ for module in converted.modules()]
    assert sum("quantized" in kind for kind in kinds) >= 7
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()

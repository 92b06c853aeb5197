"""Other people's tools on FusedSE and on fused models, with SEBlock under the same tool as the reference.

`make interop` installs what is tested here; without a package its tests are skipped.
"""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import needs
import pytest

torch = needs.library("torch")

from torch import Tensor, nn  # noqa: E402

from senet_fast import fuse  # noqa: E402
from senet_fast.se import FusedSE, SEBlock  # noqa: E402

C = 16


class Net(nn.Module):
    """Two convolutions with a block behind each."""

    def __init__(self, block: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1, self.se1 = nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), block(C, 4)
        self.conv2, self.se2 = nn.Conv2d(C, C, 3, padding=1), block(C, 2)
        self.head = nn.Linear(C, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.se1(self.norm1(self.conv1(x))))
        x = torch.relu(self.se2(self.conv2(x)) + x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Written(nn.Module):
    """The block as TorchScript can compile it."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = (
            nn.Conv2d(channels, channels // reduction, 1),
            nn.Conv2d(channels // reduction, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Linears(nn.Module):
    """The block with linear layers, as many repositories have it."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


def net(block: Callable[..., nn.Module]) -> Net:
    torch.manual_seed(0)
    return Net(block)


def fused_net(block: Callable[..., nn.Module]) -> Net:
    model = net(block)
    assert len(fuse(model).fused) == 2
    return model


MAKERS: dict[str, Callable[[], Net]] = {"FusedSE": lambda: net(FusedSE), "fuse": lambda: fused_net(SEBlock)}
images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module, steps: int = 3) -> list[Tensor]:
    """Losses, and then what the model says in eval mode."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    with torch.no_grad():
        return [*losses, model(images)]


def assert_alike(actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_peft(make: str) -> None:
    """LoRA on the layers of the blocks: trained, then merged, which must change nothing."""
    peft = needs.library("peft")
    results = []
    for model in (net(SEBlock), MAKERS[make]()):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, target_modules=["fc1", "fc2"], init_lora_weights="gaussian", lora_dropout=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(model, config)
        found = trained(adapted)
        grads = [p.grad for name, p in adapted.named_parameters() if "lora_" in name]
        assert len(grads) == 8
        assert all(grad is not None and grad.isfinite().all() for grad in grads)
        assert any(grad.abs().max() > 0 for grad in grads)
        merged = adapted.merge_and_unload()
        merged.eval()
        with torch.no_grad():
            torch.testing.assert_close(merged(images), found[-1], rtol=1e-4, atol=1e-5)
        results.append(found)
    assert_alike(results[1], results[0])


@pytest.mark.parametrize("make", MAKERS)
def test_torch_pruning(make: str) -> None:
    """Structured pruning: channels go from convolutions and from both layers of the blocks alike."""
    torch_pruning = needs.library("torch_pruning")
    results = []
    for model in (net(SEBlock), MAKERS[make]()):
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            images,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[model.head],
        )
        pruner.step()
        assert model.conv1.out_channels == C // 2
        assert model.se1.fc1.in_channels == model.se1.fc2.out_channels == C // 2
        results.append([*trained(model), *model.state_dict().values()])
    assert [t.shape for t in results[1]] == [t.shape for t in results[0]]
    assert_alike(results[1], results[0])


def test_torchao() -> None:
    """Linear layers get weights of a tensor subclass, before fuse or behind it: the model's own code runs."""
    quantization = needs.library("torchao.quantization")
    config = quantization.Int8WeightOnlyConfig()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = net(Linears).eval()
        quantization.quantize_(expected, config)
        behind = fused_net(Linears).eval()
        quantization.quantize_(behind, config)
        before = net(Linears).eval()
        quantization.quantize_(before, config)
        assert not fuse(before).fused
        y = expected(images)
        assert not torch.equal(y, net(Linears).eval()(images))
        for model in (behind, before):
            assert torch.equal(model(images), y)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("whole", [True, False])
def test_accelerate(make: str, whole: bool) -> None:
    """Offloaded parameters: forwards of instances bring them in, for each module that has some."""
    accelerate = needs.library("accelerate")
    model = MAKERS[make]().eval()
    with torch.no_grad():
        expected = model(images)
        offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=whole)
        assert offloaded.se1.fc1.weight.is_meta
        torch.testing.assert_close(offloaded(images), expected)
        accelerate.hooks.remove_hook_from_module(offloaded, recurse=True)


@pytest.mark.parametrize("make", MAKERS)
def test_averaged_and_copied_models(make: str) -> None:
    model = MAKERS[make]()
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    trained(model)
    averaged.update_parameters(model)
    trained(copy.deepcopy(model))
    averaged.update_parameters(model)
    plain = net(SEBlock).eval()
    plain.load_state_dict(averaged.module.state_dict())
    averaged.eval()
    torch.testing.assert_close(averaged(images), plain(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_saved_tensors_elsewhere(make: str) -> None:
    """What backward needs may be packed away: offloaded, compressed."""
    expected = trained(net(SEBlock))
    with torch.autograd.graph.save_on_cpu():
        assert_alike(trained(MAKERS[make]()), expected)


@pytest.mark.parametrize("make", MAKERS)
def test_eager_quantization_aware_training(make: str) -> None:
    from torch.ao import quantization

    results = []
    for model in (net(SEBlock), MAKERS[make]()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.train()
            model.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
            quantization.prepare_qat(model, inplace=True)
            results.append(trained(model))
        counted = model.se1.fc1.weight_fake_quant.activation_post_process  # type: ignore[union-attr]
        assert counted.max_val.numel() > 0
    assert_alike(results[1], results[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_of_a_fused_model() -> None:
    """Tracing records the op; scripting compiles the source of the modules' own forwards, without it."""
    model, x = fused_net(Written).eval(), images
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, x)
    assert "senet_fast::squeeze_excite" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), expected)
    scripted = torch.jit.script(model)
    assert "senet_fast::" not in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(x), expected)
    torch.testing.assert_close(model(x), expected)


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from senet_fast.se import FusedSE, SEBlock

dist.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=0, world_size=1)
mesh = torch.distributed.init_device_mesh("cpu", (1,))
x = torch.randn(2, 16, 5, 5)
results = []
for make in (SEBlock, FusedSE):
    torch.manual_seed(0)
    block = make(16, 4)
    fully_shard(block.fc1, mesh=mesh)
    fully_shard(block.fc2, mesh=mesh)
    fully_shard(block, mesh=mesh)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        y = block(x)
        y.square().sum().backward()
        optimizer.step()
    assert isinstance(block.fc1.weight, DTensor)
    results.append([y.detach(), *(p.full_tensor().detach() for p in block.parameters())])
for ours, theirs in zip(*results):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
dist.destroy_process_group()
print("alike")
"""


@pytest.mark.slow
def test_sharded_by_layer() -> None:
    """FSDP2 on each layer of the block: the weights are DTensors outside of the layers' own calls."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = SHARDED.replace("{port}", str(port))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().endswith("alike"), done.stderr[-2000:]


def refused() -> dict[str, Any]:
    dense = torch.randn(2, C, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [torch.randn(C, 3, 3), torch.randn(C, 4, 4)]
        return {
            "nested": torch.nested.nested_tensor(parts),
            "jagged": torch.nested.nested_tensor([part.flatten(1).t() for part in parts], layout=torch.jagged),
            "of layout Sparse": dense.to_sparse(),
            "of layout SparseCsr": torch.randn(2, C).to_sparse_csr(),
            "of layout Mkldnn": dense.to_mkldnn(),
            "quantized, QInt8": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
            "Int": dense.int(),
            "ComplexFloat": dense.to(torch.complex64),
            "list": [dense],
            "NoneType": None,
            "ndarray": dense.numpy(),
        }


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refused_inputs_get_a_sentence(mode: Any) -> None:
    block = FusedSE(C, 4)
    for name, x in refused().items():
        expected = (
            r"x is a nested tensor; expected a dense tensor" if name in ("nested", "jagged") else f"x is .*{name}"
        )
        with mode(), pytest.raises(TypeError, match=f"{expected}.*"):
            block(x)

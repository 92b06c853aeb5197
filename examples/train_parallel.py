"""Several processes for examples/train.py: DDP or FSDP2, and BatchNorm over the images of all of them."""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from senet_fast.models import inception_resnet, resnet, shufflenet
from senet_fast.models.layers import Concat

# What FSDP gathers and frees in one piece.
BLOCKS = (resnet.Residual, inception_resnet.Residual, shufflenet.Unit, Concat)


class Processes:
    """Where torchrun put this process; one process alone is rank 0 of 1."""

    def __init__(self, device: str) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        place = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(device, place) if device == "cuda" else torch.device(device)
        if self.count > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")

    def mean(self, value: Tensor) -> float:
        """Of all processes' values."""
        value = value.detach().double()
        if self.count > 1:
            dist.all_reduce(value)
        return value.item() / self.count

    def leave(self) -> None:
        """The last call of one of several processes: they meet, end their group, and are gone.

        Gloo's threads outlive the group where FSDP's caches hold it, and may be the last to drop a tensor. For that
        they take Python's lock, which aborts a process whose interpreter is being torn down. os._exit tears none down.
        """
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


class Total(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all processes, on any device: nn.SyncBatchNorm has no CPU.

    Each process must have the same number of images.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None
        wide = x.double()
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = Total.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean.view(1, -1, 1, 1)
        variance = Total.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def share_norms(network: nn.Module) -> nn.Module:
    """Every BatchNorm2d over all processes; parameters, buffers and names stay."""
    for parent in network.modules():
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                shared = SharedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
                shared.load_state_dict(norm.state_dict(), assign=True)
                setattr(parent, name, shared)
    return network


def distribute(network: nn.Module, parallel: str, processes: Processes) -> Any:
    """The network to call: itself, DDP, or itself with its blocks sharded (FSDP2)."""
    if processes.count == 1:
        return network
    cuda = processes.device.type == "cuda"
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network) if cuda else share_norms(network)
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(network)
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh(processes.device.type, (processes.count,))
    for module in reversed(list(network.modules())):  # inner ones first
        if isinstance(module, BLOCKS):
            fully_shard(module, mesh=mesh)
    return fully_shard(network, mesh=mesh)

"""Training in several processes, one GPU each, as if it were one process with the same batch. torchrun starts them.

Every process draws the same batches and the same norms, and works on its share of each batch. What depends on the whole
batch is summed over the processes: gradients, the counts of the methods, and the statistics of batch norm.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.schema.errors import BadInput

# The first process evaluates alone, for hours if need be, while the others wait; one that dies is torchrun's to see.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together."""

    rank: int
    """This process, from 0. The first one speaks and writes for all."""
    size: int
    """How many there are."""
    device: torch.device
    """Where this one computes."""

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def add_all(self, tensors: Sequence[Tensor]) -> None:
        """Sum many tensors over all processes, in place, in one message."""
        if self.size > 1:
            flat = self.add(torch.cat([tensor.flatten() for tensor in tensors]))
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def count(self, number: int) -> int:
        """Sum a number over all processes."""
        return int(self.add(torch.tensor(number, device=self.device))) if self.size > 1 else number

    def wait(self) -> None:
        """Wait until every process is here."""
        self.add(torch.zeros(1, device=self.device))


@contextmanager
def joined(gpus: int, device: torch.device | None) -> Iterator[Ranks]:
    """Find out which process of how many this is, and join the others for as long as the block runs.

    gpus: how many processes the spec asks for. device: None for a GPU each, or the CPU where there is none. Raises
    BadInput when there are fewer GPUs, or other processes than the spec asks for.
    """
    there = torch.cuda.device_count()
    wants_gpus = device is None or device.type == "cuda"
    if gpus > 1 and wants_gpus and gpus > there:
        raise BadInput(
            f"the run asks for {gpus} GPUs, this machine has {there}",
            hint=f"set gpus to {max(there, 1)}, or compute with {gpus} processes on the CPU with --device cpu",
            field="gpus",
        )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size != gpus:
        raise BadInput(
            f"the run asks for gpus = {gpus}, but the number of processes started is {size}",
            hint=f"start it with: torchrun --standalone --nproc-per-node {gpus} -m core ...",
            field="gpus",
        )
    if size == 1:
        yield Ranks(0, 1, device or torch.device("cuda" if there else "cpu"))
        return
    if wants_gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    assert device is not None
    dist.init_process_group("nccl" if wants_gpus else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum over all processes; every process's result depends on every process's input, so gradients add up too."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        del ctx
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        del ctx
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def share_batch_norm(model: nn.Module) -> None:
    """Make batch norm in train mode see the batch of all processes together. In eval mode nothing changes.

    torch's own SyncBatchNorm does this on GPUs alone; this one is the same everywhere, so that it can be tested.
    Raises BadInput for a batch norm that computes something else besides, which nobody here knows.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        # In place, so that weights, names and whoever holds the module stay as they are.
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = _SharedBatchNorm
        elif type(module).__name__ == "BatchNormAct2d":
            module.__class__ = _SharedBatchNormAct
        else:
            raise BadInput(
                f"{name} is a batch norm of its own kind, {type(module).__name__}, which several GPUs cannot share",
                hint="set gpus to 1",
                field="gpus",
            )


class _SharedBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        others = [axis for axis in range(images.dim()) if axis != 1]
        shape = [1, -1] + [1] * (images.dim() - 2)
        count = values.new_tensor(float(images.numel() // images.shape[1]))
        dist.all_reduce(count)
        mean = _Sum.apply(values.sum(others)) / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(others)) / count
        if self.track_running_stats:
            self._remember(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(images.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  # torch's name
        del input


class _SharedBatchNormAct(_SharedBatchNorm):
    """timm's batch norm, with what it does to the result."""

    drop: nn.Module
    act: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(images)))
        return out

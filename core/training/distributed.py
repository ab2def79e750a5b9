"""Training in several processes, one GPU each, with the result of one process on the same batch. torchrun starts them.

Every process draws the same batches and the same norms, and computes its share of each batch. What depends on the whole
batch is summed over the processes: gradients, the counts of the methods, and the statistics of batch norm.

The results are equal up to rounding. How far rounding carries depends on the attack: the attack on the cross-entropy
keeps the weights of a short run equal to 1e-6. With the TRADES loss the attack starts where the divergence and its
gradient almost vanish, so that rounding decides the direction of some pixels: in float32, weights differ by up to 0.01
after three steps at learning rate 0.05. One process differs from itself as much where it rounds otherwise, such as in
micro-batches. In float64 the weights are equal to 1e-9.
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

from core.data.split import ProcessShare
from core.schema.errors import BadInput

# The first process evaluates alone, possibly for hours, while the others wait. torchrun notices a process that died.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, seen from one of them; the terms are those of torch.distributed."""

    rank: int
    """The number of this process, from 0. The first one reports and writes for all."""
    world_size: int
    """The number of processes."""
    device: torch.device
    """The device on which this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    @property
    def share(self) -> ProcessShare:
        """The part of every batch that this process computes."""
        return ProcessShare(self.rank, self.world_size)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_many(self, tensors: Sequence[Tensor]) -> None:
        """Sum many tensors over all processes, in place, in one message."""
        if self.world_size > 1:
            flat = self.all_reduce(torch.cat([tensor.flatten() for tensor in tensors]))
            pieces = flat.split([tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))

    def sum_count(self, number: int) -> int:
        """Return the sum of an integer over all processes."""
        return int(self.all_reduce(torch.tensor(number, device=self.device))) if self.world_size > 1 else number

    def barrier(self) -> None:
        """Wait until every process has arrived here."""
        self.all_reduce(torch.zeros(1, device=self.device))


@contextmanager
def process_group(gpus: int, device: torch.device | None) -> Iterator[ProcessGroup]:
    """Join the other processes of the run inside the block.

    gpus: the number of processes in the spec. device: None for one GPU per process, or the CPU where there is no GPU.
    Raises BadInput when the machine has fewer GPUs, or torchrun has started another number of processes.
    """
    available = torch.cuda.device_count()
    wants_gpus = device is None or device.type == "cuda"
    if gpus > 1 and wants_gpus and gpus > available:
        raise BadInput(
            f"the run asks for {gpus} GPUs, this machine has {available}",
            hint=f"set gpus to {max(available, 1)}, or compute with {gpus} processes on the CPU with --device cpu",
            field="gpus",
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != gpus:
        raise BadInput(
            f"the run asks for gpus = {gpus}, but the number of processes started is {world_size}",
            hint=f"start it with: torchrun --standalone --nproc-per-node {gpus} -m core ...",
            field="gpus",
        )
    if world_size == 1:
        yield ProcessGroup(0, 1, device or torch.device("cuda" if available else "cpu"))
        return
    if wants_gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    assert device is not None
    dist.init_process_group("nccl" if wants_gpus else "gloo", timeout=_TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """Sum over all processes; each result depends on the input of every process, so gradients are summed too."""

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
    """Let batch norm in train mode normalise over the batch of all processes together, in place.

    In eval mode nothing changes. torch's SyncBatchNorm runs on GPUs only; this one also runs on the CPU, where tests
    check it. Raises BadInput for a subclass of batch norm whose computation is unknown.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        # In place: weights, names and references to the module stay valid.
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = _SharedBatchNorm
        elif type(module).__name__ == "BatchNormAct2d":
            module.__class__ = _SharedBatchNormAct
        else:
            raise BadInput(
                f"{name} is a custom batch norm layer, {type(module).__name__}: several GPUs cannot share it",
                hint="set gpus to 1",
                field="gpus",
            )


class _SharedBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        reduced = [axis for axis in range(images.dim()) if axis != 1]
        shape = [1, -1] + [1] * (images.dim() - 2)
        count = values.new_tensor(float(images.numel() // images.shape[1]))
        dist.all_reduce(count)
        mean = _Sum.apply(values.sum(reduced)) / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(reduced)) / count
        if self.track_running_stats:
            self._update_running_statistics(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(images.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
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
    """timm's BatchNormAct2d: shared batch norm, then dropout and activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(images)))
        return out

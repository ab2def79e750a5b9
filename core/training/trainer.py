"""The trainer of a run: one training step after the other, and all state that the next step depends on.

`Trainer.state_dict` returns that state. On a CPU, a run that is interrupted and continues from it ends with the same
bits as a run without interruption.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from core.data.split import Batch
from core.data.training_set import TrainingSet
from core.models.memory import MemoryRanOut, attempt
from core.models.precision import in_precision
from core.schema.catalog import Norm
from core.schema.events import Stepped, Warned
from core.schema.progress import NormCount
from core.schema.spec import TrainingSpec
from core.signals import StopRequests
from core.training.accumulation import GradientAccumulator
from core.training.auto_compile import AutoCompile
from core.training.batch_sizing import MicroBatching
from core.training.batches import Batches
from core.training.distributed import ProcessGroup, share_batch_norm
from core.training.methods import build
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.contract import Counts, Shard, add_counts, whole
from core.training.optimisation import Optimiser
from core.training.random_streams import LayerStream, stream


class TrainerCounters(BaseModel):
    """The part of a trainer's state that is not tensors."""

    model_config = ConfigDict(frozen=True)

    step: int
    """Training steps done."""
    epoch: float
    """Epochs done, as a fraction."""
    seconds: float
    """Seconds of training so far."""
    counts: dict[Norm, NormCount]
    """Images attacked so far, per norm."""
    micro_batches: int
    """Micro-batches per batch."""


@dataclass(frozen=True)
class TrainerState:
    """All that the next step of a trainer depends on."""

    counters: TrainerCounters
    tensors: Mapping[str, Tensor]
    """By name: `model/...`, `momentum/...` of the optimiser, and `random/...`, the states of the random streams."""


@dataclass(frozen=True)
class _StepResult:
    """The result of a training step, or one process's part of it."""

    loss: float
    """Mean loss of the batch before the update; of a part, its contribution to that mean."""
    norm: Norm | None
    """The norm that was attacked; None for none, or for several."""
    counts: Counts
    """Images attacked in this step, per norm."""


class Trainer:
    """Takes the training steps of a run, in one of its processes."""

    def __init__(self, spec: TrainingSpec, model: nn.Module, train: TrainingSet, group: ProcessGroup) -> None:
        """model: on the group's device; it is trained in place. Raises BadInput for a batch size that cannot work."""
        self.model, self.group = model, group
        self._batches = Batches(spec, train, group)
        self.steps_per_epoch = self._batches.per_epoch
        self.total_steps = spec.epochs * self.steps_per_epoch
        self.micro_batching = MicroBatching(spec, model, train, group)

        self.step = 0
        """Training steps done."""
        self.counts: Counts = {norm: NormCount(seen=0, robust=0) for norm in spec.method.norms}
        """Images attacked so far, per norm."""
        self.pausing = False
        """Whether any process has received a request to pause."""
        self.stopping = False
        """Whether any process has received a request to stop."""

        if group.world_size > 1:
            share_batch_norm(model)
        self._forward = in_precision(model, spec.precision, group.device)
        attacked = AttackedModel()
        self._auto_compile = AutoCompile(spec.compile if spec.method.norms else "never", attacked, group.device)
        self._draws = stream(spec.seed, "norms")
        """The random numbers of the method."""
        self._method = build(spec.method, spec.eps, self._draws, attacked)
        self._layers = LayerStream(spec.seed, group)
        self._optimiser = Optimiser(model, spec, group.device, self.total_steps)

        self._seconds_before = 0.0
        self._since = time.monotonic()

    @property
    def epoch(self) -> float:
        """Epochs done, as a fraction."""
        return self.step / self.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self._seconds_before + time.monotonic() - self._since

    def start_clock(self) -> None:
        """Count the seconds of training from now on."""
        self._since = time.monotonic()

    def take_step(self, requests: StopRequests) -> Iterator[Stepped | Warned]:
        """Train on the next batch, with the model in train mode, and report the step.

        requests: read after the step, in every process. Raises OutOfMemory, with a batch size that fits.
        """
        batch, batch_size = self._batches.take(self.step)
        yield from self._auto_compile.before_step(self._forward, batch.images, self.total_steps - self.step)
        rate = self._optimiser.schedule(self.step)
        with self._layers.active():
            result = self._update(batch, batch_size)
        result = self._combine(result, requests)
        self.counts = add_counts(self.counts, result.counts)
        self.step += 1
        self._auto_compile.after_step(time.monotonic())
        yield from self.micro_batching.report(batch_size)
        yield Stepped(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.epoch,
            loss=result.loss,
            learning_rate=rate,
            norm=result.norm,
            counts=dict(self.counts),
            seconds=self.seconds,
        )

    def _update(self, batch: Batch, batch_size: int) -> _StepResult:
        """Compute the gradients of this process's share of the batch, and update the weights."""
        compute = partial(self._compute_gradients, batch, batch_size, self._draws.get_state())
        try:
            result = self.micro_batching.fit(compute, batch_size)
            # Not tried again: an update that failed halfway cannot be undone.
            attempt(self._optimiser.step, self.group.device)
        except MemoryRanOut:
            take_step = partial(self._try_step, batch)
            raise self.micro_batching.out_of_memory(take_step, batch_size) from None
        return result

    def _compute_gradients(self, batch: Batch, batch_size: int, draws: Tensor, micro_batches: int) -> _StepResult:
        """Add up the gradients of the micro-batches. draws: the state of the method's random numbers."""
        gradients = GradientAccumulator(self.model, self.group, batch_size=batch_size, micro_batches=micro_batches)
        norm, counts = None, {norm: NormCount(seen=0, robust=0) for norm in self.counts}
        indices = self.group.share.of(torch.arange(batch_size))
        pieces = (rows.tensor_split(micro_batches) for rows in (indices, *batch))
        for index, images, labels in zip(*pieces, strict=True):
            # Every micro-batch begins with the same draws, so that all attack the same norm.
            self._draws.set_state(draws)
            shard = Shard(int(index[0]), batch_size)
            found = self._method(self._forward, Batch(images, labels), shard, self.counts)
            gradients.add(found, len(labels))
            norm, counts = found.norm, add_counts(counts, found.counts)
        return _StepResult(gradients.finish(), norm, counts)

    def _combine(self, result: _StepResult, requests: StopRequests) -> _StepResult:
        """Sum the results of all processes, and let all see the requests that any of them has received."""
        if self.group.world_size == 1:
            self.pausing, self.stopping = requests.pause, requests.stop
            return result
        seen = [count.seen for count in result.counts.values()]
        robust = [count.robust for count in result.counts.values()]
        own = torch.tensor([result.loss, requests.pause, requests.stop, *seen, *robust], dtype=torch.float64)
        loss, pause, stop, *sums = self.group.all_reduce(own.to(self.group.device)).tolist()
        self.pausing, self.stopping = pause > 0, stop > 0
        pairs = zip(sums[: len(seen)], sums[len(seen) :], strict=True)
        counts = [NormCount(seen=round(seen), robust=round(robust)) for seen, robust in pairs]
        return _StepResult(loss, result.norm, dict(zip(result.counts, counts, strict=True)))

    def _try_step(self, batch: Batch, images: int) -> None:
        """Take a step on the first images of a batch, to see whether they fit the memory.

        The run is over, so it does not matter that the step changes running statistics and momenta.
        """
        self._optimiser.set_learning_rate(0)
        self.model.zero_grad()
        smaller = Batch(batch.images[:images], batch.labels[:images])
        self._method(self._forward, smaller, whole(smaller), self.counts).total().backward()
        self._optimiser.step()

    def is_finite(self) -> bool:
        """Return whether all weights and buffers are finite."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.model.state_dict().values())

    def state_dict(self) -> TrainerState:
        """Return all that the next step depends on; the tensors are the trainer's own, not copies."""
        counters = TrainerCounters(
            step=self.step,
            epoch=self.epoch,
            seconds=self.seconds,
            counts=dict(self.counts),
            micro_batches=self.micro_batching.count,
        )
        draws = {"norms": self._draws.get_state()}
        parts = {
            "model": self.model.state_dict(),
            "momentum": self._optimiser.state_dict(),
            "random": draws | self._batches.state_dict(self.step) | self._layers.state_dict(),
        }
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        return TrainerState(counters, tensors)

    def load_state_dict(self, state: TrainerState) -> None:
        """Continue from the state of a trainer with the same spec, model and data."""
        counters = state.counters
        self.step, self.counts, self._seconds_before = counters.step, counters.counts, counters.seconds
        self.micro_batching.restore(counters.micro_batches)
        self.model.load_state_dict(_part("model", state.tensors))
        self._optimiser.load_state_dict(_part("momentum", state.tensors))
        random = _part("random", state.tensors)
        self._draws.set_state(random["norms"])
        self._batches.load_state_dict(random)
        self._layers.load_state_dict(random)


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

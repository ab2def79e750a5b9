"""The trainer of a run: one training step after the other, and all state that the next step depends on.

`Trainer.state_dict` returns that state. On a CPU, a run that is interrupted and continues from it ends with the same
bits as a run without interruption.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from core.data.split import Batch
from core.data.training_set import TrainingSet
from core.models.memory import is_out_of_memory, release
from core.models.precision import in_precision
from core.schema.catalog import Norm
from core.schema.errors import OutOfMemory
from core.schema.events import Stepped, Warned
from core.schema.progress import NormCount, Rate
from core.schema.spec import TrainingSpec
from core.signals import StopRequests
from core.training.accumulation import GradientAccumulator
from core.training.auto_compile import AutoCompile
from core.training.batch_sizing import check_batches, fewest_images, find_fitting_size, out_of_memory
from core.training.distributed import ProcessGroup, share_batch_norm
from core.training.methods import build
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.contract import Counts, Shard, add_counts, whole
from core.training.optimisation import Optimiser
from core.training.random_streams import LayerStream, stream


class BestEpoch(BaseModel):
    """The epoch after which the weights were most robust on the held-out images."""

    model_config = ConfigDict(frozen=True)

    step: int
    """Training steps of these weights."""
    union: Rate
    """Held-out images that are robust in every norm at once."""


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
    best: BestEpoch | None
    """The best epoch so far; None where no epoch was monitored."""


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
        self.spec, self.model, self.group = spec, model, group
        self.steps_per_epoch = train.steps(spec.batch_size)
        self.total_steps = spec.epochs * self.steps_per_epoch
        self._train = train
        smallest = train.smallest_batch(spec.batch_size)
        check_batches(
            smallest,
            batch_size=spec.batch_size,
            fewest=self._fewest_images if smallest == 1 else 1,
            world_size=group.world_size,
        )

        self.step = 0
        self.counts: Counts = {norm: NormCount(seen=0, robust=0) for norm in spec.method.norms}
        """Images attacked so far, per norm."""
        self.micro_batches = 1 if spec.accumulate == "auto" else spec.accumulate
        """Micro-batches per batch."""
        self.best: BestEpoch | None = None
        """The best epoch so far, where epochs are monitored."""
        self.pausing = False
        """Whether any process has received a request to pause."""
        self.stopping = False
        """Whether any process has received a request to stop."""

        self._streams = {name: stream(spec.seed, name) for name in ("order", "augmentation", "norms")}
        self._layers = LayerStream(spec.seed, group)
        if group.world_size > 1:
            share_batch_norm(model)
        self._forward = in_precision(model, spec.precision, group.device)
        attacked = AttackedModel()
        self._auto_compile = AutoCompile(spec.compile if spec.method.norms else "never", attacked, group.device)
        self._method = build(spec.method, spec.eps, self._streams["norms"], attacked)
        self._optimiser = Optimiser(model, spec, group.device, self.total_steps)

        self._order: list[Tensor] = []
        self._batches: Iterator[Batch] = iter(())
        self._order_at_epoch = self._streams["order"].get_state()
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
        batch, batch_size = self._next_batch()
        yield from self._auto_compile.before_step(self._forward, batch.images, self.total_steps - self.step)
        rate = self._optimiser.schedule(self.step)
        micro_batches = self.micro_batches
        with self._layers.active():
            result = self._update(batch, batch_size)
        result = self._combine(result, requests)
        self.counts = add_counts(self.counts, result.counts)
        self.step += 1
        self._auto_compile.after_step(time.monotonic())
        if self.micro_batches > micro_batches:
            yield Warned(
                code="accumulating",
                message=f"a batch of {batch_size} images does not fit the memory of {self.group.device}: from now on "
                f"each is computed in {self.micro_batches} micro-batches, with batch norm statistics of their own",
            )
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
        draws = self._streams["norms"].get_state()
        while True:
            count = self._micro_batches_of(batch_size)
            updating = False
            try:
                result = self._compute_gradients(batch, batch_size, count, draws)
                updating = True
                self._optimiser.step()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return result
            # Outside the except block the failed attempt holds nothing any more.
            release(self.group.device)
            # An update that failed halfway cannot be undone.
            most = self._most_micro_batches(batch_size)
            # With several processes the others would wait in the middle of their own micro-batch.
            may_increase = self.spec.accumulate == "auto" and self.group.world_size == 1 and count < most
            if updating or not may_increase:
                raise self._out_of_memory(batch, batch_size)
            self.micro_batches = min(2 * count, most)

    def _compute_gradients(self, batch: Batch, batch_size: int, count: int, draws: Tensor) -> _StepResult:
        """Add up the gradients of `count` micro-batches. draws: the state of the method's random stream."""
        self._optimiser.zero_grad()
        gradients = GradientAccumulator(self.model, self.group, batch_size=batch_size, micro_batches=count)
        norm, counts = None, {norm: NormCount(seen=0, robust=0) for norm in self.counts}
        indices = torch.arange(batch_size).tensor_split(self.group.world_size)[self.group.rank]
        for index, images, labels in zip(*(rows.tensor_split(count) for rows in (indices, *batch)), strict=True):
            # Every micro-batch begins with the same draws, so that all attack the same norm.
            self._streams["norms"].set_state(draws)
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

    def _next_batch(self) -> tuple[Batch, int]:
        """Return this process's share of the next batch, and the size of the whole batch."""
        position = self.step % self.steps_per_epoch
        if position == 0 or not self._order:
            draws = self._streams["order"]
            self._order_at_epoch = draws.get_state()
            self._order = self._train.draw_order(self.spec.batch_size, draws)
            self._batches = self._train.batches(
                self._order[position:],
                self.spec.augmentation,
                self._streams["augmentation"],
                rank=self.group.rank,
                world_size=self.group.world_size,
            )
        return next(self._batches), len(self._order[position])

    @cached_property
    def _fewest_images(self) -> int:
        """The number of images that the network needs at once; batch norm over several processes has enough."""
        if self.group.world_size > 1:
            return 1
        return fewest_images(self.model, self._train.shape, self.group.device)

    def _micro_batches_of(self, batch_size: int) -> int:
        """Return the number of micro-batches of a batch: the same in every process, each large enough to train on."""
        if self.micro_batches == 1:
            return 1
        return min(self.micro_batches, self._most_micro_batches(batch_size))

    def _most_micro_batches(self, batch_size: int) -> int:
        return max(batch_size // self.group.world_size // self._fewest_images, 1)

    def _out_of_memory(self, batch: Batch, batch_size: int) -> OutOfMemory:
        """Build the error for a batch that does not fit, after a search for a size that does.

        The run is over, so it does not matter that the search changes running statistics and momenta.
        """

        def attempt(size: int) -> None:
            smaller = Batch(batch.images[:size], batch.labels[:size])
            self._optimiser.zero_grad()
            self._method(self._forward, smaller, whole(smaller), self.counts).total().backward()
            self._optimiser.step()

        fits = None
        if self.group.world_size == 1:
            self._optimiser.set_learning_rate(0)
            fits = find_fitting_size(attempt, len(batch.labels), fewest=self._fewest_images, device=self.group.device)
        return out_of_memory(
            self.group.device, batch_size=batch_size, fits=fits, accumulates=self.spec.accumulate == "auto"
        )

    def record_epoch(self, union: Rate) -> bool:
        """Record the union accuracy on the held-out images, and return whether the weights are the best so far."""
        if self.best is not None and union.count < self.best.union.count:
            return False
        self.best = BestEpoch(step=self.step, union=union)
        return True

    def state_dict(self) -> TrainerState:
        """Return all that the next step depends on; the tensors are the trainer's own, not copies."""
        random = {name: generator.get_state() for name, generator in self._streams.items()}
        if self.step % self.steps_per_epoch:
            # Within an epoch the order is drawn again, from the state that the epoch began with.
            random["order"] = self._order_at_epoch
        parts = {
            "model": self.model.state_dict(),
            "momentum": self._optimiser.state_dict(),
            "random": random | self._layers.state_dict(),
        }
        return TrainerState(
            TrainerCounters(
                step=self.step,
                epoch=self.epoch,
                seconds=self.seconds,
                counts=dict(self.counts),
                micro_batches=self.micro_batches,
                best=self.best,
            ),
            {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()},
        )

    def load_state_dict(self, state: TrainerState) -> None:
        """Continue from the state of a trainer with the same spec, model and data."""
        counters = state.counters
        self.step, self.micro_batches = counters.step, counters.micro_batches
        self.counts, self.best, self._seconds_before = counters.counts, counters.best, counters.seconds
        self.model.load_state_dict(_part("model", state.tensors))
        self._optimiser.load_state_dict(_part("momentum", state.tensors))
        random = _part("random", state.tensors)
        for name, generator in self._streams.items():
            generator.set_state(random[name])
        self._layers.load_state_dict(random)

    def is_finite(self) -> bool:
        """Return whether all weights and buffers are finite."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.model.state_dict().values())


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

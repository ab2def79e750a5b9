"""The trainer of a run: one training step after the other, and all state that the next step depends on.

`Trainer.state_dict` returns that state. On a CPU, a run that is interrupted and continues from it ends with the same
bits as a run without interruption.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from core.data.split import Batch
from core.data.training_set import TrainingSet
from core.models.memory import ChunkSizer, MemoryRanOut, attempt
from core.models.precision import in_precision
from core.schema.catalog import Norm
from core.schema.cost_model import count_epochs
from core.schema.events import Stepped, Warned
from core.schema.progress import NormCount
from core.schema.recipe import STATISTICS_IMAGES
from core.schema.spec import FineTuneSpec, TrainingSpec
from core.signals import StopRequests
from core.training.accumulation import GradientAccumulator
from core.training.auto_compile import AutoCompile
from core.training.averaging import WeightAverage
from core.training.batch_sizing import MicroBatching
from core.training.batches import Batches
from core.training.distributed import ProcessGroup, share_batch_norm
from core.training.methods import build
from core.training.methods.attacked_model import AttackedModel
from core.training.methods.contract import BatchLoss, Counts, Shard, add_counts
from core.training.optimisation import Optimiser
from core.training.random_streams import LayerStream, stream
from core.training.trainable import TrainablePart
from core.training.weight_perturbation import perturbed, unchanged_buffers

_STATISTICS_BATCH = 128
"""Images per batch when the statistics of batch norm are estimated: the same for every batch size and number of
processes, fewer only where they do not fit the memory."""


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
    """By name: `model/...`, `optimiser/...`, `average/...` for the averaged weights where there are any, and
    `random/...`, the states of the random streams."""


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
        self._spec, self._train = spec, train
        self._batches = Batches(spec, train, group)
        self.steps_per_epoch = self._batches.per_epoch
        self.total_steps = count_epochs(spec) * self.steps_per_epoch
        self._probe_steps = self.total_steps - spec.epochs * self.steps_per_epoch
        """Steps in which the head alone trains, before all others."""
        self.micro_batching = MicroBatching(spec, model, train, group)

        self.step = 0
        """Training steps done."""
        self.counts: Counts = {norm: NormCount(seen=0, robust=0) for norm in spec.method.norms}
        """Images attacked so far, per norm."""
        self.pausing = False
        """Whether any process has received a request to pause."""
        self.stopping = False
        """Whether any process has received a request to stop."""

        self._average = WeightAverage(model, spec.average.decay) if spec.average else None
        if group.world_size > 1:
            share_batch_norm(model)
        self._forward = in_precision(model, spec.precision, group.device)
        attacked = AttackedModel()
        self._auto_compile = AutoCompile(spec.compile if spec.method.norms else "never", attacked, group.device)
        self._draws = stream(spec.seed, "norms")
        """The random numbers of the method."""
        self._method = build(spec.method, spec.eps, self._draws, attacked, label_smoothing=spec.label_smoothing)
        self._layers = LayerStream(spec.seed, group)
        self._part = TrainablePart(model, spec, train.shape)
        self._optimiser = Optimiser(
            model, spec, group.device, self.total_steps - self._probe_steps, self._part.head_parameters()
        )

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

    def start(self) -> None:
        """Put the model into the mode in which it trains, and count the seconds of training from now on."""
        self._part.enter(probing=self.step < self._probe_steps)
        self._since = time.monotonic()

    def take_step(self, requests: StopRequests) -> Iterator[Stepped | Warned]:
        """Train on the next batch, with the model as `start` leaves it, and report the step.

        requests: read after the step, in every process. Raises OutOfMemory, with a batch size that fits.
        """
        batch, batch_size = self._batches.take(self.step)
        yield from self._auto_compile.before_step(self._forward, batch.images, self.total_steps - self.step)
        rate = self._set_learning_rate()
        with self._layers.active():
            result = self._update(batch, batch_size)
        result = self._combine(result, requests)
        self.counts = add_counts(self.counts, result.counts)
        self.step += 1
        if self._average:
            self._average.update(self.step)
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

    def _set_learning_rate(self) -> float:
        """Set the learning rate of the next step, and return it; after a linear probe, train the whole network."""
        if self.step < self._probe_steps:
            self._optimiser.set_learning_rate(self._spec.learning_rate)
            own_rate = self._spec.head_learning_rate if isinstance(self._spec, FineTuneSpec) else None
            return self._spec.learning_rate if own_rate is None else own_rate
        if self.step == self._probe_steps:
            self._part.enter(probing=False)
        return self._optimiser.schedule(self.step - self._probe_steps)

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
        accumulate = partial(
            GradientAccumulator, self.model, self.group, batch_size=batch_size, micro_batches=micro_batches
        )
        gradients, perturbs = accumulate(), self._perturbs()
        norm, counts = None, {norm: NormCount(seen=0, robust=0) for norm in self.counts}
        attacked: list[tuple[Callable[[], BatchLoss], int]] = []
        indices = self.group.share.of(torch.arange(batch_size))
        pieces = (rows.tensor_split(micro_batches) for rows in (indices, *batch))
        for index, images, labels in zip(*pieces, strict=True):
            # Every micro-batch begins with the same draws, so that all attack the same norm.
            self._draws.set_state(draws)
            shard = Shard(int(index[0]), batch_size)
            with unchanged_buffers(self.model) if perturbs else nullcontext():
                found = self._method(self._forward, Batch(images, labels), shard, self.counts)
                gradients.add(found, len(labels))
            if perturbs:
                assert found.again is not None
                attacked.append((found.again, len(labels)))
            norm, counts = found.norm, add_counts(counts, found.counts)
        result = _StepResult(gradients.finish(), norm, counts)
        if perturbs:
            assert self._spec.awp is not None
            with perturbed(self.model, self._spec.awp.strength):
                gradients = accumulate()
                for compute_again, count in attacked:
                    gradients.add(compute_again(), count)
                gradients.finish()
        return result

    def _perturbs(self) -> bool:
        """Return whether the next update takes its gradient at perturbed weights."""
        awp = self._spec.awp
        return awp is not None and self.step >= self._probe_steps + awp.start_epoch * self.steps_per_epoch

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
        smaller = Batch(batch.images[:images], batch.labels[:images])
        self._compute_gradients(smaller, images, self._draws.get_state(), micro_batches=1)
        self._optimiser.step()

    def averaged_model(self) -> nn.Module:
        """Return the model with the averaged weights, in eval mode on the group's device; valid until the next step.

        The statistics of its batch norm are estimated on training images that are drawn with the seed, the same in
        every call, without augmentation. No other process takes part. The run must have an average. Raises OutOfMemory
        where not even one image fits.
        """
        assert self._average is not None
        return ChunkSizer(_STATISTICS_BATCH, self.group.device).fit(self._estimate_averaged_model)

    def _estimate_averaged_model(self, size: int) -> nn.Module:
        """Return the model with the averaged weights, with statistics of batches of `size` images."""
        assert self._average is not None
        order = self._train.draw_order(size, stream(self._spec.seed, "statistics"))
        batches = self._train.batches(order[: max(STATISTICS_IMAGES // size, 1)], "none", torch.Generator())
        still = self._part.still(probing=self.step <= self._probe_steps)
        return self._average.model((images for images, _ in batches), still)

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
            "optimiser": self._optimiser.state_dict(),
            "average": self._average.state_dict() if self._average else {},
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
        self._optimiser.load_state_dict(_part("optimiser", state.tensors))
        if self._average:
            self._average.load_state_dict(_part("average", state.tensors))
        random = _part("random", state.tensors)
        self._draws.set_state(random["norms"])
        self._batches.load_state_dict(random)
        self._layers.load_state_dict(random)


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

"""A training run from step to step: batches in a seeded order, the method's loss, the optimiser, the random streams.

All that the next step depends on goes into a `core.training.resume` file and comes back from it, so that on a CPU a
run that was cut off and went on ends with the same bits as one that was not.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.attacks.compiling import Compiled, pays
from core.data.split import Batch
from core.data.training_set import TrainingSet
from core.models.memory import is_out_of_memory, release
from core.models.precision import in_precision
from core.schema.catalog import Norm
from core.schema.errors import BadInput, OutOfMemory
from core.schema.events import NormCount, Stepped, Warned
from core.schema.spec import FineTuneSpec, Schedule, TrainingSpec
from core.signals import StopRequests
from core.training.distributed import Ranks, share_batch_norm
from core.training.methods import Share, build
from core.training.methods.adversary import Adversary


@dataclass(frozen=True)
class _Outcome:
    """What came of a batch, or of a process's share of it."""

    loss: float
    """Mean over the whole batch of the losses in the share."""
    norm: Norm | None
    """The norm that was attacked."""
    seen: dict[Norm, int]
    """Images attacked, per norm."""
    robust: dict[Norm, int]
    """Those of them that withstood it."""


class Trainer:
    """A run between two steps."""

    def __init__(self, spec: TrainingSpec, model: nn.Module, train: TrainingSet, ranks: Ranks) -> None:
        self.spec, self.model, self.ranks = spec, model, ranks
        self.step = 0
        self.parts = 1
        """In how many parts a batch is computed: 1, or 2 after it was found not to fit the memory."""
        self.pausing = False
        """Whether any process was asked to pause."""
        self.stopping = False
        """Whether any process was asked to stop."""
        self.steps_per_epoch = train.steps(spec.batch_size)
        self.total_steps = spec.epochs * self.steps_per_epoch
        self._train = train
        self._check_batches()
        self._streams = {name: stream(spec.seed, name) for name in ("order", "augmentation", "norms")}
        self._layers = _LayerDraws(spec.seed, ranks)
        self._rule = build(spec.method, spec.eps, self._streams["norms"])
        if ranks.size > 1:
            share_batch_norm(model)
        self._forward = in_precision(model, spec.precision, ranks.device)
        self._optimizer = torch.optim.SGD(
            parameter_groups(model, spec),
            lr=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            fused=ranks.device.type == "cuda",
        )
        self._order: list[Tensor] = []
        self._batches: Iterator[Batch] = iter(())
        self._order_at_epoch = self._streams["order"].get_state()
        self._seconds = 0.0
        self._since = time.monotonic()
        self._pace = Pace()

    @property
    def epoch(self) -> float:
        """Epochs done, as a fraction."""
        return self.step / self.steps_per_epoch

    @property
    def counts(self) -> dict[Norm, NormCount]:
        """The method's counts."""
        return self._rule.counts

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._seconds + time.monotonic() - self._since

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return learning_rate(self.spec.schedule, self.spec.learning_rate, self.step, self.total_steps)

    def start_clock(self) -> None:
        """Count the seconds from now on."""
        self._since = time.monotonic()

    def take_step(self, requests: StopRequests) -> Iterator[Stepped | Warned]:
        """Train on the next batch, with the model in train mode, and say how that went.

        Raises OutOfMemory with a batch size that may fit.
        """
        images, labels, whole = self._next_batch()
        yield from self._compile(images)
        rate = self.learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        parts, counts = self.parts, self.counts
        with self._layers.drawing():
            outcome = self._agree(self._update(images, labels, whole), requests)
        self._rule.counts = {
            norm: NormCount(seen=count.seen + outcome.seen[norm], robust=count.robust + outcome.robust[norm])
            for norm, count in counts.items()
        }
        self.step += 1
        self._pace.tick(time.monotonic())
        if self.parts > parts:
            yield Warned(
                code="batch_halved",
                message=f"a batch of {whole} images does not fit the memory of {self.ranks.device}: each is "
                "computed in two halves from now on, with batch norm statistics of their own",
            )
        yield Stepped(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.epoch,
            loss=outcome.loss,
            learning_rate=rate,
            norm=outcome.norm,
            counts=self.counts,
            seconds=self.seconds,
        )

    def _compile(self, images: Tensor) -> Iterator[Warned]:
        """Compile the network that the attacks look at when that is asked for, or pays; images: the next batch."""
        rule, wish = self._rule, self.spec.compile
        if not isinstance(rule, Adversary) or rule.compiled or wish == "never":
            return
        if wish == "auto":
            pace, left = self._pace.seconds, self.total_steps - self.step
            if self.ranks.device.type != "cuda" or pace is None or not pays(pace=pace, steps=left):
                return
        rule.compiled = Compiled()
        rule.quick(self._forward, images)
        if rule.compiled.refusal:
            yield Warned(
                code="not_compiled",
                message=f"the attacked network could not be compiled and is used as it is: {rule.compiled.refusal}",
            )

    def _next_batch(self) -> tuple[Tensor, Tensor, int]:
        """Take this process's share of the next batch: its images, its labels, and the size of the whole batch."""
        place = self.step % self.steps_per_epoch
        if place == 0 or not self._order:
            draws = self._streams["order"]
            self._order_at_epoch = draws.get_state()
            self._order = self._train.draw_order(self.spec.batch_size, draws)
            self._batches = self._train.batches(
                self._order[place:],
                self.spec.augmentation,
                self._streams["augmentation"],
                rank=self.ranks.rank,
                ranks=self.ranks.size,
            )
        images, labels = next(self._batches)
        return images, labels, len(self._order[place])

    def _check_batches(self) -> None:
        """Refuse batches that are too small to be shared, or for batch norm. Raises BadInput."""
        smallest = self._train.smallest_batch(self.spec.batch_size)
        if smallest < self.ranks.size:
            raise BadInput(
                f"the smallest batch of an epoch has {smallest} images, too few for {self.ranks.size} processes",
                hint="choose another batch_size",
                field="batch_size",
            )
        if smallest == 1 and self._fewest == 2:
            alone = self.spec.batch_size == 1
            raise BadInput(
                "this network cannot train on a batch of one image: batch norm over maps of one pixel needs two",
                hint="set batch_size to 2 or more" if alone else "train on 2 images or more",
                field="batch_size" if alone else "train_examples",
            )

    @cached_property
    def _fewest(self) -> int:
        """How many images the network needs at once: 1, or 2 for batch norm over maps of one pixel."""
        if self.ranks.size > 1:
            return 1  # for batch norm sees those of all processes together
        was, device = self.model.training, self.ranks.device
        self.model.train()
        try:
            # Batch norm remembers what it sees, here in copies; layers such as dropout draw.
            copies = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            image = torch.zeros(1, *self._train.shape, device=device)
            with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                functional_call(self.model, copies, image)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return 2
        finally:
            self.model.train(was)
        return 1

    def _update(self, images: Tensor, labels: Tensor, whole: int) -> _Outcome:
        """Take one step down the method's loss."""
        counts, draws = self.counts, self._streams["norms"].get_state()
        while True:
            stepping = False
            try:
                outcome = self._accumulate(images, labels, whole, counts, draws)
                self.ranks.add_all([weight.grad for weight in self.model.parameters() if weight.grad is not None])
                stepping = True
                self._optimizer.step()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return outcome
            # Only here is what the failed attempt held free again.
            release(self.ranks.device)
            # Half a step of the optimiser cannot be taken back.
            if stepping or not self._may_halve(whole):
                raise self._out_of_memory(images, labels, whole)
            self.parts = 2

    def _accumulate(
        self, images: Tensor, labels: Tensor, whole: int, counts: Mapping[Norm, NormCount], draws: Tensor
    ) -> _Outcome:
        """Add up the gradients of the parts of this process's share, each weighed by its part of the whole batch.

        Every part begins with the same counts and draws, so that all attack the same norm.
        """
        self._optimizer.zero_grad()
        outcome = _Outcome(0.0, None, dict.fromkeys(counts, 0), dict.fromkeys(counts, 0))
        rest = _Rest(self.model)
        places = torch.arange(whole).tensor_split(self.ranks.size)[self.ranks.rank]
        # The last batch may be so small that a half of it would be too small for batch norm.
        count = self.parts if self.parts == 1 or len(images) >= self.parts * self._fewest else 1
        for where, some, answers in zip(*(all_.tensor_split(count) for all_ in (places, images, labels)), strict=True):
            self._rule.counts = dict(counts)
            self._rule.share = Share(int(where[0]), whole)
            self._streams["norms"].set_state(draws)
            result = self._rule(self._forward, some, answers)
            loss = result.loss * (len(answers) / whole)
            if result.some is not None and count == 1:
                loss = loss + result.some / max(self.ranks.count(result.count), 1)
            elif result.some is not None:
                rest.add(result.some, result.count)
            loss.backward()
            outcome = _Outcome(
                loss=outcome.loss + loss.item(),
                norm=result.norm,
                seen={norm: outcome.seen[norm] + self.counts[norm].seen - counts[norm].seen for norm in counts},
                robust={norm: outcome.robust[norm] + self.counts[norm].robust - counts[norm].robust for norm in counts},
            )
        return replace(outcome, loss=outcome.loss + rest.settle())

    def _agree(self, outcome: _Outcome, requests: StopRequests) -> _Outcome:
        """Put together what the processes found, and what each of them was asked for."""
        if self.ranks.size == 1:
            self.pausing, self.stopping = requests.pause, requests.stop
            return outcome
        mine = [outcome.loss, requests.pause, requests.stop, *outcome.seen.values(), *outcome.robust.values()]
        summed = self.ranks.add(torch.tensor(mine, dtype=torch.float64, device=self.ranks.device)).tolist()
        loss, pause, stop, *numbers = summed
        self.pausing, self.stopping = pause > 0, stop > 0
        norms = list(outcome.seen)
        seen, robust = numbers[: len(norms)], numbers[len(norms) :]
        return _Outcome(
            loss,
            outcome.norm,
            {norm: round(number) for norm, number in zip(norms, seen, strict=True)},
            {norm: round(number) for norm, number in zip(norms, robust, strict=True)},
        )

    def _may_halve(self, batch: int) -> bool:
        # With several processes the others would wait for this one's second half in the middle of their first.
        alone = self.spec.halve_batches and self.parts == 1 and self.ranks.size == 1
        return alone and batch >= 2 * self._fewest

    def _out_of_memory(self, images: Tensor, labels: Tensor, batch: int) -> OutOfMemory:
        """Say what does not fit, and a batch size that does."""
        device, fits = self.ranks.device, self._fitting(images, labels)
        may_halve = not self.spec.halve_batches and self.ranks.size == 1 and fits and 2 * fits >= batch
        halve = ", or set halve_batches to true" if may_halve else ""
        if fits is None:
            hint = f"set batch_size to less, such as {max(batch // 2, 1)}; what fits was not tried, for the other "
            hint += "processes had gone on"
        elif fits:
            hint = f"set batch_size to {fits}, which was found to fit{halve}"
        else:
            hint = "not even the smallest batch fits: use a device with more memory, or a smaller network"
        return OutOfMemory(
            f"a batch of {batch} images does not fit the memory of {device}", hint=hint, field="batch_size"
        )

    def _fitting(self, images: Tensor, labels: Tensor) -> int | None:
        """Try smaller and smaller batches until a step on one fits: their size, or 0. The run is over by then, so that
        what this does to running statistics and momenta hurts nobody. None where other processes would have to join."""
        if self.ranks.size > 1:
            return None
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        size = len(images)
        while (size := size // 2) >= self._fewest:
            try:
                self._optimizer.zero_grad()
                self._rule.share = Share()
                self._rule(self._forward, images[:size], labels[:size]).total().backward()
                self._optimizer.step()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return size
            release(self.ranks.device)
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """Give all that the next step depends on, by name; `restore` takes it back."""
        place = self.step % self.steps_per_epoch
        random = {name: source.get_state() for name, source in self._streams.items()} | self._layers.states()
        # Within an epoch the order is drawn anew, from where it was drawn at the epoch's beginning.
        random["order"] = self._order_at_epoch if place else random["order"]
        momenta = {
            str(number): self._optimizer.state[weight]["momentum_buffer"]
            for number, weight in enumerate(self._weights())
            if self._optimizer.state[weight].get("momentum_buffer") is not None
        }
        found = {"model": self.model.state_dict(), "momentum": momenta, "random": random}
        return {f"{part}/{name}": tensor for part, its in found.items() for name, tensor in its.items()}

    def restore(
        self, tensors: Mapping[str, Tensor], *, step: int, parts: int, counts: dict[Norm, NormCount], seconds: float
    ) -> None:
        """Go back to where `tensors` was called, after so many steps."""
        self.step, self.parts, self._seconds = step, parts, seconds
        self._rule.counts = dict(counts)
        self.model.load_state_dict(_under("model", tensors))
        momenta = _under("momentum", tensors)
        for number, weight in enumerate(self._weights()):
            if str(number) in momenta:
                # In the weight's own memory layout.
                buffer = torch.empty_like(weight, requires_grad=False).copy_(momenta[str(number)])
                self._optimizer.state[weight]["momentum_buffer"] = buffer
        random = _under("random", tensors)
        for name, source in self._streams.items():
            source.set_state(random[name])
        self._layers.restore(random)

    def is_finite(self) -> bool:
        """Say whether every weight is a number."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.model.state_dict().values())

    def _weights(self) -> Iterator[nn.Parameter]:
        for group in self._optimizer.param_groups:
            yield from group["params"]


class _Rest:
    """What a batch adds to the gradients divided by a count that is known only after its last part."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._sums: list[Tensor | None] = [None] * len(self._weights)
        self._loss = 0.0
        self._count = 0

    def add(self, some: Tensor, count: int) -> None:
        """Take in a part's sum and count. Its graph stays whole."""
        gradients = torch.autograd.grad(some, self._weights, retain_graph=True, allow_unused=True)
        pairs = zip(self._sums, gradients, strict=True)
        self._sums = [new if old is None else old if new is None else old + new for old, new in pairs]
        self._loss += some.item()
        self._count += count

    def settle(self) -> float:
        """Divide by the count, add to the weights' gradients, and give the loss."""
        for weight, gradient in zip(self._weights, self._sums, strict=True):
            if gradient is not None:
                assert weight.grad is not None
                weight.grad.add_(gradient, alpha=1 / max(self._count, 1))
        return self._loss / max(self._count, 1)


class Pace:
    """How long a step takes, without the first few, which pay for what is done once."""

    first = 5
    enough = 20

    def __init__(self) -> None:
        self._steps = 0
        self._began: float | None = None
        self.seconds: float | None = None
        """Seconds per step, once it is known."""

    def tick(self, now: float) -> None:
        """Take in that a step has ended."""
        self._steps += 1
        if self._steps == self.first:
            self._began = now
        elif self._began is not None and self._steps == self.enough:
            self.seconds = (now - self._began) / (self.enough - self.first)


class _LayerDraws:
    """What layers such as dropout draw from: torch's global stream, but only while the model trains.

    Otherwise the global state is the caller's, and stays as it is. Each process draws for its own images.
    """

    def __init__(self, seed: int, ranks: Ranks) -> None:
        self._gpus = [ranks.device] if ranks.device.type == "cuda" else []
        self._stands_for_all = ranks.first
        name = f"layers/{ranks.rank}"
        self._states = [stream(seed, name).get_state()]
        self._states += [stream(seed, name, gpu).get_state() for gpu in self._gpus]

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let the global stream be this one."""
        with torch.random.fork_rng(devices=self._gpus):
            torch.set_rng_state(self._states[0])
            for gpu, state in zip(self._gpus, self._states[1:], strict=True):
                torch.cuda.set_rng_state(state, gpu)
            yield
            self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)]

    def states(self) -> dict[str, Tensor]:
        """Name the states."""
        return {f"layers-{number}": state for number, state in enumerate(self._states)}

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Go on from those of the first process; another one, or another kind of device, keeps what it began with."""
        names = list(self.states())
        if self._stands_for_all and all(name in states for name in names):
            self._states = [states[name] for name in names]


def _under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def learning_rate(schedule: Schedule, highest: float, step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0, in a run of `total` steps.

    piecewise drops on the last step of a third, as the E-AT code does: its clock reads the end of the step.
    """
    match schedule:
        case "constant":
            return highest
        case "piecewise":
            thirds = 3 * (step + 1) // total
            return highest / 10 ** min(thirds, 2)
        case "one-cycle":
            progress = (step + 0.5) / total
            return highest * min(progress / 0.3, (1 - progress) / 0.7)


def parameter_groups(model: nn.Module, spec: TrainingSpec) -> list[dict]:
    """Group the parameters: from random weights, biases and batch norm are not decayed; every group has one rate.

    The E-AT code schedules only its first group and so trains the second at a constant rate of 1.0; this does not.
    """
    if isinstance(spec, FineTuneSpec):
        return [{"params": list(model.parameters())}]
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make the random stream for one purpose, so that no part of a run disturbs the draws of another."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))

"""fine_tune(): a few epochs of adversarial training, as a generator of events.

By default fine-tuning follows Croce & Hein 2022 (arXiv 2105.12508, section 5): SGD with momentum, a learning rate that
drops in thirds of the run and is set before every step, the cross-entropy of the adversarial batch, and the last
weights; `core.schema.recipe` has the other choices. To stop a run, stop iterating: this frees everything that it holds,
and the same call continues from its last state.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Literal

from torch import nn

from core import checkpoint
from core.data import Dataset
from core.data.draws import draw_held_out_images, draw_training_images
from core.data.labelled_images import LabelledImages
from core.data.split import Split
from core.data.tensors import GivenData
from core.data.training_set import TrainingSet
from core.evaluation.autoattack import evaluate_for_spec, save_reports
from core.evaluation.preflight import preflight
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.evaluation.unseen import check_unseen
from core.inputs import Inputs, load
from core.models.memory import peak_memory
from core.models.precision import full_float32
from core.schema.catalog import OWN_CLASS
from core.schema.errors import BadInput, BadWeights, Diverged
from core.schema.events import STOPPED_EARLY, Entered, Event, Finished, Paused, Resumed, Saved, Stepped, Warned
from core.schema.progress import Weights, add_warnings
from core.schema.report import Delivered, Report, Reports
from core.schema.spec import FineTuneSpec, TrainingSpec, TrainSpec, count_held_out
from core.schema.spec_warnings import average_not_compared, spec_warnings
from core.signals import StopRequests
from core.training import resume
from core.training.distributed import ProcessGroup, process_group
from core.training.monitoring import alarm, monitor
from core.training.random_streams import stream
from core.training.resume import MonitoredWeights, RunState, StateHeader
from core.training.trainer import Trainer

_OVERWRITES = "overwrites"
"""The code of a warning about files of this machine, which is no reason to doubt the result."""
_BEST = "best.safetensors"
_CHECKPOINT = "checkpoint.safetensors"


def fine_tune(
    spec: TrainingSpec,
    output: Path,
    inputs: Inputs | None = None,
    *,
    model: nn.Module | None = None,
    data: GivenData | None = None,
    requests: StopRequests | None = None,
    restart: bool = False,
) -> Iterator[Event]:
    """Fine-tune a base model, or train a network from random weights, and evaluate the result.

    Writes `checkpoint.safetensors` and `report.json` into `output`; `best.safetensors` holds the most robust weights
    after an epoch. State files are written on the way, from which the same call continues after an interruption, and
    removed at the end. The same spec, inputs and device give the same weights.

    model: a network of your own to start from, which maps images in [0, 1] to logits. The run trains a copy: the
    network itself, its mode and its parameters stay as they are. Parameters of it that need no gradient do not train.
    The checkpoint names its class, and `core.checkpoint.load(path, model=Net())` loads the weights. The spec has names
    for it and for the data, which may be any that the catalogue does not have; for a TrainSpec, the architecture is
    "own:" with the module and name of the class. data: images and labels, as `core.data.tensors.from_tensors` takes
    them: (images, labels), of which a fifth is drawn for the test part, ((images, labels), (test_images, test_labels)),
    or a `core.data.Dataset`.

    requests: read after each step. restart: start from the beginning even where there is a state. Of several processes,
    started by torchrun, only the first one yields events and writes files. Raises the errors of `core.schema.errors`.
    """
    if not isinstance(spec, FineTuneSpec | TrainSpec):
        raise BadInput(
            f"the spec is of the type {type(spec).__name__}",
            hint="make one with FineTuneSpec(...) or TrainSpec(...), or of JSON with core.schema.spec.parse",
            field="spec",
        )
    inputs = inputs or Inputs()
    if model is not None:
        inputs = replace(inputs, model=model)
    if data is not None:
        inputs = replace(inputs, tensors=data)
    with full_float32(), process_group(spec.gpus, inputs.device) as group:
        run = _Run(spec, output, replace(inputs, device=group.device), group, requests or StopRequests())
        for event in run.events(restart=restart):
            if isinstance(event, Warned) and event.code != _OVERWRITES:
                run.warnings = add_warnings(run.warnings, event)
            if group.is_first:
                yield event


class _Run:
    """The phases and files of one call of fine_tune, in one process."""

    def __init__(
        self, spec: TrainingSpec, output: Path, inputs: Inputs, group: ProcessGroup, requests: StopRequests
    ) -> None:
        self.begun = time.monotonic()
        checkpoint.make_folder(output)
        self.spec, self.output, self.group, self.requests = spec, output, group, requests
        self.loaded = load(spec, inputs)
        check_unseen(spec.evaluation.unseen, self.loaded.dataset.shape)
        part, held_out = _hold_out(spec, self.loaded.dataset)
        self.held_out = held_out.to(group.device)
        _check_held_out(spec, len(held_out))
        train = TrainingSet(part, self.loaded.dataset.extra, spec.extra_share).to(group.device)
        self.trainer = Trainer(spec, self.loaded.model, train, group)
        self.started = self.loaded.started(
            train_examples=len(train), total_steps=self.trainer.total_steps, held_out_examples=len(held_out)
        )
        self.warnings = spec_warnings(spec)
        """Reasons to doubt the run so far."""
        self.before: Report | None = None
        """The evaluation of the base model, where the spec asks for one."""
        self.best: MonitoredWeights | None = None
        """The most robust weights after an epoch so far, where epochs are monitored."""
        self.last: MonitoredWeights | None = None
        """The more robust ones of the raw and the averaged weights after the last epoch that was monitored."""
        self.stopped_at: int | None = None
        """The step at which the run was stopped early."""
        self.saved: Saved | None = None
        """The last state file that this call has written."""
        self.saved_at = time.monotonic()
        self.evaluation = EvaluationState(output / STATE_FILE, kind="verdicts")

    def events(self, *, restart: bool) -> Iterator[Event]:
        """Prepare or resume, train, evaluate and publish."""
        yield self.started
        found = None if restart else resume.latest(self.output, self.started)
        # No process removes or writes a state file before all have looked for one.
        self.group.barrier()
        if found:
            self._restore(found)
            yield Resumed(step=self.trainer.step, epoch=self.trainer.epoch)
        elif self.group.is_first:
            yield from self._prepare()
        yield Entered(phase="training")
        self.requests.stepping = True
        try:
            yield from self._train()
        finally:
            self.requests.stepping = False
        # A request may have come after the last step.
        if self.trainer.pausing or self.requests.pause:
            yield Paused(step=self.trainer.step, epoch=self.trainer.epoch)
        elif self.group.is_first:
            yield from self._deliver()

    def _prepare(self) -> Generator[Event, None, None]:
        """Check the base model, remove the files of an earlier run, and evaluate the base model if asked to."""
        if (self.output / _CHECKPOINT).exists():
            yield Warned(
                code=_OVERWRITES,
                message=f"{self.output / _CHECKPOINT} of an earlier run is replaced when this one ends",
            )
        yield from self.loaded.warnings()
        yield from preflight(self.loaded, self.started)
        if self.spec.average and self.spec.held_out is None and not len(self.held_out):
            yield Warned(**average_not_compared().model_dump())
        resume.clear(self.output)
        (self.output / _BEST).unlink(missing_ok=True)
        if isinstance(self.spec, FineTuneSpec) and self.spec.evaluates_base:
            self.before = yield from evaluate_for_spec(self.loaded, self.loaded.test, "base", state=self.evaluation)
            yield self._save_state()

    def _restore(self, found: RunState) -> None:
        """Continue from a state file."""
        self.trainer.load_state_dict(found.trainer)
        self.before, self.stopped_at = found.header.before, found.header.stopped_at
        self.warnings, self.last = found.header.warnings, found.header.last
        # Without the best weights, those of the next epoch are the best so far.
        self.best = found.header.best if self._best_weights() else None

    def _train(self) -> Generator[Event, None, None]:
        """Take the remaining steps; after each, monitor and save the state where they are due."""
        trainer = self.trainer
        trainer.start()
        self.saved_at = time.monotonic()
        while trainer.step < trainer.total_steps and self.stopped_at is None and not trainer.pausing:
            for event in trainer.take_step(self.requests):
                if isinstance(event, Stepped) and not isfinite(event.loss):
                    raise self._diverged(f"the loss is {event.loss} at step {event.step}")
                yield event
            if trainer.stopping and trainer.step < trainer.total_steps:
                self.stopped_at = trainer.step
                yield Warned(
                    code=STOPPED_EARLY,
                    message=f"stopped at step {trainer.step} of {trainer.total_steps}, as requested: the best weights "
                    "so far are evaluated and delivered",
                )
            if self.group.is_first:
                yield from self._after_step()
        self.loaded.model.eval()

    def _after_step(self) -> Generator[Event, None, None]:
        """Monitor after an epoch; save the state then, every `save_minutes`, and when the run is to end here."""
        yield from self.loaded.new_warnings()
        trainer = self.trainer
        epoch_ends = trainer.step % trainer.steps_per_epoch == 0 or self.stopped_at is not None
        save_is_due = time.monotonic() - self.saved_at >= 60 * self.spec.save_minutes
        if not (epoch_ends or save_is_due or trainer.pausing):
            return
        if not trainer.is_finite():
            raise self._diverged(f"weights became NaN or infinite at step {trainer.step}")
        if epoch_ends and len(self.held_out):
            yield from self._monitor()
        yield self._save_state()

    def _monitor(self) -> Generator[Event, None, None]:
        """Attack the held-out images, and save the weights, raw or averaged, if they are the best so far."""
        trainer = self.trainer
        averaged = trainer.averaged_model() if self.spec.average else None
        # As many images as this process passes through the model in a training step.
        chunk_size = -(-self.spec.batch_size // (self.group.world_size * trainer.micro_batching.count))
        monitored = monitor(
            self.loaded.model,
            self.held_out,
            self.spec,
            step=trainer.step,
            epoch=trainer.epoch,
            chunk_size=chunk_size,
            averaged=averaged,
        )
        yield monitored
        if warning := alarm(monitored):
            yield warning
        self.last = MonitoredWeights(step=trainer.step, weights="raw", union=monitored.union)
        # Of equals the average.
        if monitored.averaged and monitored.averaged.union.count >= monitored.union.count:
            self.last = MonitoredWeights(step=trainer.step, weights="averaged", union=monitored.averaged.union)
        if self.best is None or self.last.union.count >= self.best.union.count:
            self.best = self.last
            model = averaged if averaged is not None and self.best.weights == "averaged" else self.loaded.model
            yield self._save_weights("best", self.output / _BEST, model, self.best, reports=None)

    def _deliver(self) -> Generator[Event, None, None]:
        """Evaluate the weights that the spec asks for, or the best ones of a run that was stopped early, and write all
        files."""
        delivered = yield from self._load_delivered()
        after = yield from evaluate_for_spec(self.loaded, self.loaded.test, "result", state=self.evaluation)
        reports = Reports(before=self.before, after=after, delivered=delivered, warnings=self.warnings)
        yield Entered(phase="publishing")
        yield self._save_weights("checkpoint", self.output / _CHECKPOINT, self.loaded.model, delivered, reports=reports)
        epoch = delivered.step / self.trainer.steps_per_epoch
        yield save_reports(reports, self.started, self.output, step=delivered.step, epoch=epoch)
        resume.clear(self.output)
        memory = peak_memory(self.loaded.device)
        yield Finished(reports=reports, seconds=time.monotonic() - self.begun, peak_memory_bytes=memory)

    def _load_delivered(self) -> Generator[Event, None, Delivered]:
        """Load the weights to deliver into the model."""
        model = self.loaded.model
        if self.stopped_at is not None or self.spec.deliver == "best":
            if self.best and (kept := self._best_weights()):
                model.load_state_dict(kept[0].state_dict())
                found = kept[1]
                union = self.best.union if self.best.step == found.step else None
                return Delivered(weights=found.weights, step=found.step, held_out=union)
            if self.spec.deliver == "best":
                yield Warned(
                    code="best_weights_lost",
                    message=f"{self.output / _BEST} cannot be read, so the weights after the last step are delivered",
                )
        step = self.trainer.step
        last = self.last if self.last and self.last.step == step else None
        # Where nothing was held out to compare both on, the average is delivered.
        weights: Weights = last.weights if last else "averaged" if self.spec.average else "raw"
        if weights == "averaged":
            model.load_state_dict(self.trainer.averaged_model().state_dict())
        return Delivered(weights=weights, step=step, held_out=last.union if last else None)

    def _save_state(self) -> Saved:
        trainer = self.trainer.state_dict()
        header = StateHeader(
            spec=self.spec,
            base_sha256=self.started.base_sha256,
            data_sha256=self.started.data_sha256,
            trainer=trainer.counters,
            best=self.best,
            last=self.last,
            stopped_at=self.stopped_at,
            before=self.before,
            warnings=self.warnings,
        )
        self.saved = resume.save(self.output, RunState(header, trainer))
        self.saved_at = time.monotonic()
        return self.saved

    def _save_weights(
        self,
        kind: Literal["checkpoint", "best"],
        path: Path,
        model: nn.Module,
        taken: Delivered | MonitoredWeights,
        *,
        reports: Reports | None,
    ) -> Saved:
        header = checkpoint.Header(
            blueprint=self.loaded.blueprint,
            spec=self.spec,
            seed=self.spec.seed,
            step=taken.step,
            weights=taken.weights,
            stopped_at=self.stopped_at,
            reports=reports,
            base_sha256=self.started.base_sha256,
            data_sha256=self.started.data_sha256,
            class_names=self.loaded.dataset.classes,
            versions=self.started.versions,
            commit=self.started.commit,
        )
        sha256 = checkpoint.save_checkpoint(path, model, header)
        return Saved(
            kind=kind,
            path=str(path),
            sha256=sha256,
            size=path.stat().st_size,
            step=taken.step,
            epoch=taken.step / self.trainer.steps_per_epoch,
        )

    def _best_weights(self) -> tuple[nn.Module, checkpoint.Header] | None:
        """Load the best weights; None where there are none, or they belong to another run."""
        with suppress(BadWeights):
            # A class of the user's own is not built, but copied.
            is_own = self.loaded.blueprint.architecture.startswith(OWN_CLASS)
            network = deepcopy(self.loaded.model) if is_own else None
            model, header = checkpoint.load(self.output / _BEST, model=network)
            same = (header.spec, header.base_sha256, header.data_sha256)
            if same == (self.spec, self.started.base_sha256, self.started.data_sha256):
                return model, header
        return None

    def _diverged(self, what: str) -> Diverged:
        kept = f"; the last good state, of step {self.saved.step}, is {self.saved.path}" if self.saved else ""
        return Diverged(what + kept, hint="lower the learning rate", field="learning_rate")


def _training_part(spec: TrainingSpec, part: LabelledImages) -> LabelledImages:
    if spec.train_examples is None or spec.train_examples >= len(part):
        return part
    generator = stream(spec.seed, "subset")
    return part.pick(draw_training_images(part.labels.cpu(), spec.train_examples, spec.split, generator))


def _check_held_out(spec: TrainingSpec, count: int) -> None:
    """Refuse a run that is to deliver the best epoch and holds out no image. Raises BadInput."""
    if spec.deliver == "best" and count == 0:
        raise BadInput(
            "deliver is best, but of so few training images none is held out",
            hint="set held_out to 1 or more, or deliver to last",
            field="deliver",
        )


def _hold_out(spec: TrainingSpec, dataset: Dataset) -> tuple[LabelledImages, Split]:
    """Return the images that train and those that are held out, of the data set's own held-out part where it has one.

    Raises BadInput.
    """
    part = _training_part(spec, dataset.train)
    count = count_held_out(len(part)) if spec.held_out is None else spec.held_out
    generator = stream(spec.seed, "held-out")
    if dataset.held_out is None:
        train, held_out = draw_held_out_images(part.labels.cpu(), count, spec.split, generator)
        return (part.pick(train) if count else part), part.read(held_out)
    own = dataset.held_out
    if count >= len(own):
        return part, own.first(len(own))
    # Where the classes are more than the images asked for, not each is among them.
    draw = spec.split if count >= len(own.labels.unique()) else "uniform"
    return part, own.read(draw_training_images(own.labels.cpu(), count, draw, generator).sort().values)

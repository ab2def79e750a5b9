"""fine_tune(): a few epochs of adversarial training, as a generator of events.

Fine-tuning follows Croce & Hein 2022 (arXiv 2105.12508, section 5): SGD with momentum, a learning rate that drops in
thirds of the run and is set before every step, the cross-entropy of the adversarial batch, the last weights are kept.
To stop a run is to stop iterating: everything it holds is freed with it, and the same call goes on from its last state.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from core import checkpoint
from core.data import Dataset
from core.data.split import Split
from core.data.stream import Stream
from core.data.training_set import TrainingSet
from core.evaluation.autoattack import evaluate_for_spec, save_reports
from core.evaluation.preflight import preflight
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.inputs import Inputs, load
from core.models.memory import peak_memory
from core.models.precision import full_float32
from core.schema.errors import BadInput, BadWeights, Diverged
from core.schema.events import Entered, Event, Finished, Paused, Resumed, Saved, Stepped, Warned
from core.schema.report import Report, Reports
from core.schema.spec import FineTuneSpec, TrainingSpec, count_held_out
from core.signals import StopRequests
from core.training import resume
from core.training.distributed import Ranks, joined
from core.training.monitoring import alarm, monitor
from core.training.resume import Best, Progress, State
from core.training.trainer import Trainer, stream

_BEST = "best.safetensors"
_CHECKPOINT = "checkpoint.safetensors"


def fine_tune(
    spec: TrainingSpec,
    output: Path,
    inputs: Inputs | None = None,
    *,
    requests: StopRequests | None = None,
    restart: bool = False,
) -> Iterator[Event]:
    """Fine-tune a base model, or train a network from random weights, and prove what came of it.

    Writes `checkpoint.safetensors` and `report.json` into `output`, and on the way state files, from which the same
    call goes on when it was cut off; they are removed at the end. `best.safetensors` holds the best epoch's weights.
    The same spec, inputs and device give the same weights. requests: heeded after each step. restart: begin anew where
    there is a state. In several processes, started by torchrun, only the first one reports and writes. Raises the
    errors of `core.schema.errors`.
    """
    inputs = inputs or Inputs()
    with full_float32(), joined(spec.gpus, inputs.device) as ranks:
        run = _Run(spec, output, replace(inputs, device=ranks.device), ranks, requests or StopRequests())
        for event in run.events(restart=restart):
            if ranks.first:
                yield event


class _Run:
    """One call of fine_tune, in one process."""

    def __init__(self, spec: TrainingSpec, output: Path, inputs: Inputs, ranks: Ranks, requests: StopRequests) -> None:
        self.begun = time.monotonic()
        checkpoint.make_folder(output)
        self.spec, self.output, self.ranks, self.requests = spec, output, ranks, requests
        self.loaded = load(spec, inputs)
        part, held_out = _hold_out(spec, _training_part(spec, self.loaded.dataset))
        self.held_out = held_out.to(ranks.device)
        train = TrainingSet(part, self.loaded.dataset.extra, spec.extra_share).to(ranks.device)
        self.trainer = Trainer(spec, self.loaded.model, train, ranks)
        self.started = self.loaded.started(train_examples=len(train), total_steps=self.trainer.total_steps)
        self.before: Report | None = None
        self.best: Best | None = None
        self.stopped_at: int | None = None
        self.saved: Saved | None = None
        """The last state file that this call has written or gone on from."""
        self.saved_at = time.monotonic()
        self.kept = EvaluationState(output / STATE_FILE, kind="verdicts")
        """What an evaluation has found so far."""

    def events(self, *, restart: bool) -> Iterator[Event]:
        """Do everything, and tell it."""
        yield self.started
        found = None if restart else resume.latest(self.output, self.started)
        # Nobody removes or writes a state before everybody has looked for one.
        self.ranks.wait()
        if found:
            self._restore(found)
            yield Resumed(step=self.trainer.step, epoch=self.trainer.epoch)
        elif self.ranks.first:
            yield from self._foretell()
            yield from preflight(self.loaded, self.started)
            resume.clear(self.output)
            (self.output / _BEST).unlink(missing_ok=True)
            if isinstance(self.spec, FineTuneSpec) and self.spec.evaluation.include_base:
                self.before = yield from evaluate_for_spec(
                    self.loaded.model, self.loaded.test, self.spec, "base", state=self.kept
                )
                yield self._save_state()
        yield Entered(phase="training")
        self.requests.stepping = True
        try:
            yield from self._train()
        finally:
            self.requests.stepping = False
        # A wish may have come after the last step was over.
        if self.trainer.pausing or self.requests.pause:
            yield Paused(step=self.trainer.step, epoch=self.trainer.epoch)
        elif self.ranks.first:
            yield from self._deliver()

    def _foretell(self) -> Iterator[Warned]:
        """Say what will be lost: the result of an earlier run in the same folder."""
        if (self.output / _CHECKPOINT).exists():
            yield Warned(
                code="overwrites",
                message=f"{self.output / _CHECKPOINT} of an earlier run is replaced when this one ends",
            )

    def _train(self) -> Generator[Event, None, None]:
        """Take all steps that are left, and after each do what is due."""
        trainer = self.trainer
        trainer.start_clock()
        self.saved_at = time.monotonic()
        self.loaded.model.train()
        while trainer.step < trainer.total_steps and self.stopped_at is None and not trainer.pausing:
            for event in trainer.take_step(self.requests):
                if isinstance(event, Stepped) and not isfinite(event.loss):
                    raise self._diverged(f"the loss is {event.loss} at step {event.step}")
                yield event
            if trainer.stopping and trainer.step < trainer.total_steps:
                self.stopped_at = trainer.step
                yield Warned(
                    code="stopped_early",
                    message=f"stopped at step {trainer.step} of {trainer.total_steps}, as asked: the best weights so "
                    "far are evaluated and delivered",
                )
            if self.ranks.first:
                yield from self._look_back()
        self.loaded.model.eval()

    def _look_back(self) -> Generator[Event, None, None]:
        """Monitor at the end of an epoch, and save the state then, when it is time, and when the run is to end here."""
        ends = self.trainer.step % self.trainer.steps_per_epoch == 0 or self.stopped_at is not None
        due = time.monotonic() - self.saved_at >= 60 * self.spec.save_minutes
        if not (ends or due or self.trainer.pausing):
            return
        if not self.trainer.is_finite():
            raise self._diverged(f"weights are no longer numbers after step {self.trainer.step}")
        if ends and len(self.held_out):
            yield from self._monitor()
        yield self._save_state()

    def _monitor(self) -> Generator[Event, None, None]:
        """Look how the model fares on the held-out images, and keep the best weights."""
        trainer = self.trainer
        # As many images as a training step looks at in this process.
        chunk_size = -(-self.spec.batch_size // (self.ranks.size * trainer.parts))
        seen = monitor(
            self.loaded.model, self.held_out, self.spec, step=trainer.step, epoch=trainer.epoch, chunk_size=chunk_size
        )
        yield seen
        if warning := alarm(seen):
            yield warning
        if self.best is None or seen.union.count >= self.best.union.count:
            self.best = Best(step=trainer.step, union=seen.union)
            yield self._save_weights("best", self.output / _BEST, step=trainer.step, reports=None)

    def _diverged(self, what: str) -> Diverged:
        kept = f"; the last good state, of step {self.saved.step}, is {self.saved.path}" if self.saved else ""
        return Diverged(what + kept, hint="lower the learning rate", field="learning_rate")

    def _save_state(self) -> Saved:
        trainer = self.trainer
        progress = Progress(
            spec=self.spec,
            base_sha256=self.started.base_sha256,
            data_sha256=self.started.data_sha256,
            step=trainer.step,
            epoch=trainer.epoch,
            seconds=trainer.seconds,
            counts=trainer.counts,
            parts=trainer.parts,
            best=self.best,
            stopped_at=self.stopped_at,
            before=self.before,
        )
        self.saved = resume.save(self.output, State(progress, trainer.tensors()))
        self.saved_at = time.monotonic()
        return self.saved

    def _restore(self, found: State) -> None:
        progress = found.progress
        self.trainer.restore(
            found.tensors,
            step=progress.step,
            parts=progress.parts,
            counts=progress.counts,
            seconds=progress.seconds,
        )
        self.before, self.stopped_at = progress.before, progress.stopped_at
        self.best = progress.best if self._best_weights() else None

    def _best_weights(self) -> tuple[nn.Module, checkpoint.Header] | None:
        """Load the best weights, where there are any and they are this run's."""
        with suppress(BadWeights):
            model, header = checkpoint.load(self.output / _BEST)
            same = (header.spec, header.base_sha256, header.data_sha256)
            if same == (self.spec, self.started.base_sha256, self.started.data_sha256):
                return model, header
        return None

    def _deliver(self) -> Generator[Event, None, None]:
        """Evaluate the last weights, or the best ones where the run was stopped early, and write all files."""
        model, step = self.loaded.model, self.trainer.step
        if self.stopped_at is not None and self.best and (kept := self._best_weights()):
            model.load_state_dict(kept[0].state_dict())
            step = kept[1].step
        after = yield from evaluate_for_spec(model, self.loaded.test, self.spec, "result", state=self.kept)
        reports = Reports(before=self.before, after=after)
        yield Entered(phase="publishing")
        yield self._save_weights("checkpoint", self.output / _CHECKPOINT, step=step, reports=reports)
        epoch = step / self.trainer.steps_per_epoch
        yield save_reports(reports, self.started, self.output, step=step, epoch=epoch)
        resume.clear(self.output)
        memory = peak_memory(self.loaded.device)
        yield Finished(reports=reports, seconds=time.monotonic() - self.begun, peak_memory_bytes=memory)

    def _save_weights(
        self, kind: Literal["checkpoint", "best"], path: Path, *, step: int, reports: Reports | None
    ) -> Saved:
        header = checkpoint.Header(
            blueprint=self.loaded.blueprint,
            spec=self.spec,
            seed=self.spec.seed,
            step=step,
            stopped_at=self.stopped_at,
            reports=reports,
            base_sha256=self.started.base_sha256,
            data_sha256=self.started.data_sha256,
            versions=self.started.versions,
            commit=self.started.commit,
        )
        sha256 = checkpoint.save_checkpoint(path, self.loaded.model, header)
        return Saved(
            kind=kind,
            path=str(path),
            sha256=sha256,
            size=path.stat().st_size,
            step=step,
            epoch=step / self.trainer.steps_per_epoch,
        )


def _training_part(spec: TrainingSpec, dataset: Dataset) -> Split | Stream:
    if spec.train_examples is None or spec.train_examples >= len(dataset.train):
        return dataset.train
    order = torch.randperm(len(dataset.train), generator=stream(spec.seed, "subset"))
    return dataset.train.pick(order[: spec.train_examples])


def _hold_out(spec: TrainingSpec, part: Split | Stream) -> tuple[Split | Stream, Split]:
    """Divide the training images into those that train and those that are held out. Raises BadInput."""
    held_out = count_held_out(len(part)) if spec.held_out is None else spec.held_out
    if held_out >= len(part):
        raise BadInput(
            f"{held_out} of {len(part)} training images held out leave none to train on",
            hint=f"set held_out to {count_held_out(len(part))}, or to 0 for none",
            field="held_out",
        )
    order = torch.randperm(len(part), generator=stream(spec.seed, "held-out"))
    kept = part.pick(order[held_out:].sort().values) if held_out else part
    return kept, part.read(order[:held_out].sort().values)

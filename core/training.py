"""fine_tune(): a few epochs of adversarial training, as a generator of events.

Fine-tuning follows Croce & Hein 2022 (arXiv 2105.12508, section 5): SGD with momentum, a learning rate that drops in
thirds of the run and is set before every step, the cross-entropy of the adversarial batch, the last weights are kept.
To stop a run is to stop iterating: everything it holds is freed with it.
"""

import hashlib
import time
from collections.abc import Generator, Iterator
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoint
from core.data import Dataset
from core.data.split import Split
from core.data.stream import Stream
from core.data.training_set import TrainingSet
from core.errors import Diverged, OutOfMemory
from core.evaluation import judge, save_reports
from core.events import Entered, Event, Finished, Reports, Saved, Started, Stepped
from core.inputs import Inputs, Loaded, load
from core.methods import BatchLoss, TrainingRule, build
from core.preflight import preflight
from core.spec import FineTuneSpec, Schedule, TrainingSpec


def fine_tune(spec: TrainingSpec, output: Path, inputs: Inputs | None = None) -> Iterator[Event]:
    """Fine-tune a base model, or train a network from random weights, and prove what came of it.

    Writes `checkpoint.safetensors` and `report.json` into `output`. The same spec, inputs and device give the same
    weights. Raises the errors of `core.errors`.
    """
    begun = time.monotonic()
    checkpoint.make_folder(output)
    loaded = load(spec, inputs or Inputs())
    model, test = loaded.model, loaded.test
    train = TrainingSet(_training_part(spec, loaded.dataset), loaded.dataset.extra, spec.extra_share).to(loaded.device)
    started = loaded.started(train_examples=len(train), total_steps=spec.epochs * train.steps(spec.batch_size))
    yield started
    yield from preflight(loaded, started)
    before = None
    if isinstance(spec, FineTuneSpec) and spec.evaluation.include_base:
        before = yield from judge(model, test, spec, "base")
    yield Entered(phase="training")
    yield from _train(model, train, spec)
    after = yield from judge(model, test, spec, "result")
    reports = Reports(before=before, after=after)
    yield Entered(phase="publishing")
    yield _save(spec, loaded, started, reports, output)
    yield save_reports(reports, started, output, step=started.total_steps, epoch=spec.epochs)
    yield Finished(reports=reports, seconds=time.monotonic() - begun)


def _training_part(spec: TrainingSpec, dataset: Dataset) -> Split | Stream:
    if spec.train_examples is None or spec.train_examples >= len(dataset.train):
        return dataset.train
    order = torch.randperm(len(dataset.train), generator=_stream(spec.seed, "subset"))
    return dataset.train.pick(order[: spec.train_examples])


def _train(model: nn.Module, train: TrainingSet, spec: TrainingSpec) -> Generator[Event, None, None]:
    """Run all training steps, reporting each."""
    begun = time.monotonic()
    order_stream, image_stream = _stream(spec.seed, "order"), _stream(spec.seed, "augmentation")
    rule = build(spec.method, spec.eps, _stream(spec.seed, "norms"))
    optimizer = torch.optim.SGD(
        _parameter_groups(model, spec), lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay
    )
    steps_per_epoch = train.steps(spec.batch_size)
    total = spec.epochs * steps_per_epoch
    step = 0
    model.train()
    for _ in range(spec.epochs):
        order = train.draw_order(spec.batch_size, order_stream)
        for images, labels in train.batches(order, spec.augmentation, image_stream):
            rate = learning_rate(spec.schedule, spec.learning_rate, step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            result = _update(model, optimizer, rule, images, labels)
            step += 1
            loss = result.loss.item()
            if not isfinite(loss):
                raise Diverged(
                    f"the loss is {loss} at step {step}", hint="lower the learning rate", field="learning_rate"
                )
            yield Stepped(
                step=step,
                total_steps=total,
                epoch=step / steps_per_epoch,
                loss=loss,
                learning_rate=rate,
                norm=result.norm,
                counts=rule.counts,
                seconds=time.monotonic() - begun,
            )
    model.eval()


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, rule: TrainingRule, images: Tensor, labels: Tensor
) -> BatchLoss:
    """Take one step down the method's loss. Raises OutOfMemory with a batch size that may fit."""
    try:
        result = rule(model, images, labels)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"a batch of {len(labels)} images does not fit the memory of {images.device}",
            hint=f"set batch_size to {max(len(labels) // 2, 1)} or less",
            field="batch_size",
        ) from error
    return result


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


def _parameter_groups(model: nn.Module, spec: TrainingSpec) -> list[dict]:
    """Group the parameters: from random weights, biases and batch norm are not decayed; every group has one rate.

    The E-AT code schedules only its first group and so trains the second at a constant rate of 1.0; this does not.
    """
    if isinstance(spec, FineTuneSpec):
        return [{"params": list(model.parameters())}]
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def _stream(seed: int, purpose: str) -> torch.Generator:
    """Make the random stream for one purpose, so that no part of a run disturbs the draws of another."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _save(spec: TrainingSpec, loaded: Loaded, started: Started, reports: Reports, output: Path) -> Saved:
    path = output / "checkpoint.safetensors"
    header = checkpoint.Header(
        blueprint=loaded.blueprint,
        spec=spec,
        seed=spec.seed,
        step=started.total_steps,
        reports=reports,
        base_sha256=started.base_sha256,
        data_sha256=started.data_sha256,
        versions=started.versions,
        commit=started.commit,
    )
    sha256 = checkpoint.save_checkpoint(path, loaded.model, header)
    return Saved(
        kind="checkpoint",
        path=str(path),
        sha256=sha256,
        size=path.stat().st_size,
        step=started.total_steps,
        epoch=spec.epochs,
    )

"""Evaluate robustness: AutoAttack per norm, and the union per point.

The points are divided into logical batches of a fixed size, in order. The attacks of a norm run one after the other on
the points of a batch that are still robust, with random numbers of its own for each batch: so the verdicts of a batch
are those of AutoAttack (Croce & Hein 2020, arXiv 2003.01690) on that batch, whatever other batches are computed with
it. A point counts for the union if it is robust in every norm.
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn

from core import checkpoint
from core.attacks import Attack, AttackOptions, AttackResult, Returning, Steps, frozen
from core.attacks.apgd import apgd_ce, apgd_t, depends_on_last_bit
from core.attacks.arguments import balls_of, check_labels, check_points, count_classes
from core.attacks.containment import bring_inside
from core.attacks.fab import fab_t
from core.attacks.forward import classify, predict
from core.attacks.reference import check_classes, reference
from core.attacks.square import square
from core.attacks.threat import LpThreat
from core.data.split import Split
from core.evaluation.checks import flags_of_model
from core.evaluation.preflight import preflight
from core.evaluation.report import make_report, record_points
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.evaluation.row import Row, find_fooled
from core.inputs import Inputs, load
from core.models.folding import folded
from core.models.memory import ChunkSizer, is_out_of_memory, peak_memory
from core.models.precision import full_float32
from core.schema.catalog import Norm
from core.schema.errors import BadInput, OutOfMemory
from core.schema.events import Attacked, Entered, Evaluated, Event, Finished, Resumed, Saved
from core.schema.progress import Flag, Subject, add_warnings
from core.schema.protocols import (
    DEFAULT_PROTOCOL,
    FAST_STEPS,
    LOGICAL_BATCH,
    TARGETS,
    AttackName,
    Engine,
    Protocol,
    settings_of,
)
from core.schema.report import AttackRecord, Part, Provenance, Report, Reports
from core.schema.spec import AnySpec, EvaluateSpec
from core.schema.spec_warnings import spec_warnings
from core.schema.suggestions import did_you_mean
from core.signals import Interrupted

_ATTACKS: dict[AttackName, Attack[LpThreat, ...]] = {
    "apgd-ce": apgd_ce,
    "apgd-t": apgd_t,
    "fab-t": fab_t,
    "square": square,
}
# A group of points is attacked together: as many whole logical batches as stay within these numbers of points and
# bytes, since an attack holds, and saves in its state, several tensors of that size.
_GROUP_POINTS = 1024
_GROUP_BYTES = 256 * 2**20
# Points that go through the model together. More overflow the caches of a CPU; a GPU needs many.
_CHUNK_SIZE = {"cpu": 256, "cuda": 1024}


def attacks_of(protocol: Protocol, norm: Norm, engine: Engine = "temper") -> dict[AttackName, Attack[LpThreat, ...]]:
    """Give the attacks of a protocol in the order in which they run, with AutoAttack's settings for the norm."""
    attacks = settings_of(protocol, norm)
    if engine == "reference":
        steps = FAST_STEPS if protocol == "fast" else None
        return {name: reference.with_settings(name=name, steps=steps) for name in attacks}
    return {name: _ATTACKS[name].with_settings(**settings) for name, settings in attacks.items()}


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Mapping[Norm, float],
    *,
    protocol: Protocol = DEFAULT_PROTOCOL,
    engine: Engine = "temper",
    seed: int = 0,
    batch_size: int = LOGICAL_BATCH,
) -> Report:
    """Measure clean, per-norm and union accuracy by AutoAttack, in float32 throughout, without TF32.

    model maps images to logits (batch, classes). images (examples, channels, height, width) in [0, 1] and labels
    (examples,) lie on the model's device; eps gives a radius per norm in pixel units. batch_size: points per logical
    batch, which share one stream of random numbers: a change of it changes verdicts as a change of the seed does. The
    verdicts of a logical batch are those of pyautoattack on that batch alone. One call of pyautoattack on several
    batches forms new ones of the robust points before each attack, and differs in a few verdicts (1 of 240 at batches
    of 50).

    Raises BadInput for wrong arguments, before anything is attacked.
    """
    options = Options(protocol=protocol, engine=engine, seed=seed, batch_size=batch_size)
    options.check()
    check_points(images, labels)
    balls_of(eps, images.shape[1:])
    with frozen(model), full_float32():
        check_labels(labels, count_classes(model, images[:1]))
    steps = iter_evaluate(model, images, labels, eps, options=options, subject="result")
    return Returning(steps).finish()


@dataclass(frozen=True)
class Options:
    """The settings of an evaluation, as in `core.schema.spec.Evaluation`, its share of the points, and its state."""

    protocol: Protocol
    engine: Engine
    seed: int
    batch_size: int
    part: Part | None = None
    """The shard that the points are; None for a whole evaluation."""
    state: EvaluationState = field(default_factory=EvaluationState)
    """Where results are saved on the way, so that an interrupted evaluation can continue."""

    def check(self) -> None:
        """Raise BadInput for a setting that is not known or makes no sense."""
        known: dict[str, tuple[str, ...]] = {"protocol": get_args(Protocol), "engine": get_args(Engine)}
        for name, choices in known.items():
            value = getattr(self, name)
            if value not in choices:
                raise BadInput(
                    f"there is no {name} {value!r}", hint=did_you_mean(str(value), choices), field=f"evaluation.{name}"
                )
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise BadInput(
                f"the logical batch has {self.batch_size!r} points",
                hint="give a whole number from 1 on",
                field="evaluation.batch_size",
            )


def iter_evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Mapping[Norm, float],
    *,
    options: Options,
    subject: Subject,
) -> Generator[Attacked | Resumed | Saved, None, Report]:
    """Do what `evaluate` does, with an event after each attack. Raises OutOfMemory where not even one point fits."""
    begun = time.monotonic()
    threats = balls_of(eps, images.shape[1:])
    with frozen(model), full_float32():
        if options.engine == "reference":
            check_classes(predict(model, images[:1]).shape[1], targeted=options.protocol != "fast")
        search = _Search(model, images, labels, eps, options)
        # The state of a training run is resumed from a step of its training.
        if search.resumes and options.state.kind == "state":
            yield Resumed(step=options.state.saves, epoch=0)
        flags = []
        if not options.part or options.part.first == 0:
            flags = search.check_model()
        clean = search.predict_clean()
        records: list[AttackRecord] = []
        rows: dict[str, Row] = {}
        total = sum(len(settings_of(options.protocol, threat.norm)) for threat in threats)
        for threat in threats:
            rows[threat.id] = Row.of(clean)
            for name, attack in attacks_of(options.protocol, threat.norm, options.engine).items():
                records.append((yield from search.run(name, attack, threat, rows[threat.id])))
                yield Attacked(
                    subject=subject,
                    norm=threat.norm,
                    attack=name,
                    robust=records[-1].robust,
                    examples=len(labels),
                    done=len(records),
                    total=total,
                )
        options.state.close()
    return make_report(
        protocol=options.protocol,
        engine=options.engine,
        seed=options.seed,
        batch_size=options.batch_size,
        eps=dict(eps),
        points=record_points(images, labels, {"clean": clean, **{key: row.predicted for key, row in rows.items()}}),
        records=records,
        flags=flags,
        seconds=time.monotonic() - begun,
        part=options.part,
    )


class _Search:
    """Attacks on a model's points, one group of logical batches at a time."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, eps: Mapping[Norm, float], options: Options
    ) -> None:
        self._model, self._images, self._labels, self._eps, self._options = model, images, labels, eps, options
        self._chunks = ChunkSizer(_CHUNK_SIZE.get(images.device.type, 256), images.device)
        self._folded = folded(model, images[:8]) if options.engine == "temper" else model
        self._state = options.state
        self.resumes = self._state.begin(self._identity)

    def check_model(self) -> list[Flag]:
        """Run the sanity checks on the first logical batch."""
        images, labels = (points[: self._options.batch_size] for points in (self._images, self._labels))
        protocol = self._options.protocol
        return self._chunks.fit(
            lambda chunk_size: list(
                flags_of_model(self._model, images, labels, protocol, targets=TARGETS, chunk_size=chunk_size)
            )
        )

    def predict_clean(self) -> Tensor:
        """Classify the images: (examples,). A saved result is not computed again: another device may round
        differently, and the saved states of attacks belong to the points that were right then."""
        saved = self._state.get("clean")
        if saved is not None:
            return saved.to(self._labels.device)
        predicted = self._predict(self._images)
        self._state.put({"clean": predicted})
        return predicted

    def run(
        self, name: AttackName, attack: Attack[LpThreat, ...], threat: LpThreat, row: Row
    ) -> Generator[Saved, None, AttackRecord]:
        """Run one attack on the points that are still robust, and enter into the row what it finds."""
        begun = time.monotonic()
        attacked = int((row.predicted == self._labels).sum())
        batch_size = self._options.batch_size
        fitting = min(_GROUP_POINTS, _GROUP_BYTES // self._images[0].nbytes)
        size = max(fitting // batch_size, 1) * batch_size
        for first in range(0, len(self._labels), size):
            key = f"{threat.id}/{name}/{first}"
            group = row.part(slice(first, first + size))
            if group.restore(self._state, key):
                continue
            try:
                yield from self._attack_group(key, name, attack, threat, first, group)
            except Interrupted:
                yield from self._state.snapshot(now=True)
                raise
            self._state.put(group.columns(key))
            yield from self._state.snapshot()
        seconds = time.monotonic() - begun
        return row.record(self._labels, threat=threat.id, attack=name, attacked=attacked, seconds=seconds)

    def _attack_group(
        self, key: str, name: AttackName, attack: Attack[LpThreat, ...], threat: LpThreat, first: int, group: Row
    ) -> Generator[Saved, None, None]:
        """Attack the logical batches that begin at point `first`; `group`: their part of the row."""
        robust = group.predicted == self._labels[first : first + len(group.predicted)]
        indices = robust.nonzero().squeeze(1)
        if len(indices) == 0:
            return
        images, labels = self._images[first + indices], self._labels[first + indices]
        counts = [int(batch.sum()) for batch in robust.split(self._options.batch_size)]
        sizes = tuple(count for count in counts if count)
        # Attacks search on a copy that is faster to compute; what they find is judged by the model itself.
        searched = self._model if depends_on_last_bit(name, threat) else self._folded
        while True:
            state = self._state.get_attack(key)
            options = AttackOptions(self._options.seed, sizes, self._chunks.chunk_size, state, checked=True)
            try:
                with closing(attack.steps(searched, images, labels, threat, options)) as steps:
                    result = yield from self._take(steps, key)
                break
            except RuntimeError as error:
                self._check(error, max(sizes))
            # After the except block, which held on to the memory of the failed attempt.
            self._chunks.halve()
        found = self._predict(result.adversarial)
        fooled = find_fooled(name, threat, images, labels, result, found)
        _, outside = self._chunks.fit(
            lambda chunk_size: bring_inside(
                self._model, images, labels, result.adversarial, fooled, threat, chunk_size=chunk_size
            )
        )
        group.enter(indices, result, found, fooled, outside)

    def _take(self, steps: Steps, key: str) -> Generator[Saved, None, AttackResult]:
        """Take an attack's steps, and save its state when that is due."""
        attack = Returning(steps)
        for state in attack:
            if self._state.is_due:
                self._state.put_attack(key, state())
                yield from self._state.snapshot()
        return attack.value

    def _predict(self, images: Tensor) -> Tensor:
        """Classify images with the model itself: (examples,); NO_CLASS where a logit is not finite."""
        return classify(self._chunks.fit(lambda chunk_size: predict(self._model, images, chunk_size=chunk_size)))

    def _check(self, error: RuntimeError, size: int) -> None:
        """Raise an error of an attack, unless it can be tried again with a smaller chunk size.

        size: points of the largest logical batch, which pyautoattack computes as a whole.
        """
        if self._options.engine == "reference" and is_out_of_memory(error):
            raise OutOfMemory(
                f"pyautoattack on a logical batch of {size} points does not fit the memory of {self._images.device}",
                hint="leave evaluation.engine at temper, which computes as many at once as fit, or make "
                "evaluation.batch_size smaller, which changes the random numbers",
                field="evaluation.batch_size",
            ) from error
        self._chunks.check(error)

    def _identity(self) -> str:
        """Hash what the verdicts depend on."""
        asked = (self._options.protocol, self._options.engine, self._options.seed, self._options.batch_size)
        digest = hashlib.sha256(
            repr(
                (asked, dict(self._eps), self._options.part, checkpoint.verdict_versions(checkpoint.versions()))
            ).encode()
        )
        tensors = [self._images, self._labels, *self._model.state_dict().values()]
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def run_evaluation(
    spec: EvaluateSpec, output: Path, inputs: Inputs | None = None, *, shard: tuple[int, int] | None = None
) -> Iterator[Event]:
    """Evaluate the base model of a spec, and write `report.json` into `output`.

    shard: (number, count) to evaluate one of `count` shards of the logical batches, numbered from 1;
    `core.evaluation.report.merge` merges their reports. Raises BadInput where there are fewer logical batches than
    shards.
    """
    begun = time.monotonic()
    checkpoint.make_folder(output)
    loaded = load(spec, inputs or Inputs())
    part, test = (
        (None, loaded.test) if shard is None else _select_shard(loaded.test, spec.evaluation.batch_size, *shard)
    )
    started = loaded.started(train_examples=0, total_steps=0)
    yield started
    warnings = spec_warnings(spec)
    with full_float32():
        for warned in chain(loaded.warnings(), loaded.new_warnings(), preflight(loaded, started)):
            warnings = add_warnings(warnings, warned)
            yield warned
    state = EvaluationState(output / STATE_FILE, kind="state")
    report = yield from evaluate_for_spec(loaded.model, test, spec, "result", state=state, part=part)
    reports = Reports(before=None, after=report, warnings=warnings)
    yield Entered(phase="publishing")
    yield save_reports(reports, started, output, step=0, epoch=0)
    memory = peak_memory(loaded.device)
    yield Finished(reports=reports, seconds=time.monotonic() - begun, peak_memory_bytes=memory)


def _select_shard(test: Split, batch_size: int, number: int, count: int) -> tuple[Part, Split]:
    """Select the logical batches of one shard: shards differ by one batch at most, and follow each other."""
    batches = -(-len(test) // batch_size)
    if count > batches:
        raise BadInput(
            f"{len(test)} points in logical batches of {batch_size} cannot be cut into {count} shards",
            hint=f"use {batches} shards or fewer, or a smaller evaluation.batch_size",
            field="shard",
        )
    first, end = (batches * edge // count * batch_size for edge in (number - 1, number))
    return Part(index=number, count=count, first=first), test.pick(torch.arange(first, min(end, len(test))))


def evaluate_for_spec(
    model: nn.Module,
    test: Split,
    spec: AnySpec,
    subject: Subject,
    *,
    state: EvaluationState,
    part: Part | None = None,
) -> Generator[Event, None, Report]:
    """Evaluate a model on test points with the settings of a spec, with an event after each attack.

    state: where results are saved on the way. part: the shard that the points are.
    """
    yield Entered(phase="evaluating", subject=subject)
    asked = spec.evaluation
    options = Options(asked.protocol, asked.engine, spec.seed, asked.batch_size, part=part, state=state)
    report = yield from iter_evaluate(model, test.images(), test.labels, spec.eps, options=options, subject=subject)
    yield Evaluated(subject=subject, report=report)
    return report


def save_reports(reports: Reports, run: Provenance | None, output: Path, *, step: int, epoch: float) -> Saved:
    """Write the evaluations of a run into `report.json`, with its provenance."""
    path = output / "report.json"
    content = reports.model_copy(update={"run": run}).model_dump_json(indent=1).encode()
    sha256 = checkpoint.write_file(path, content)
    return Saved(kind="report", path=str(path), sha256=sha256, size=len(content), step=step, epoch=epoch)

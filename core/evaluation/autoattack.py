"""Evaluate robustness: AutoAttack per norm, and the union per point.

The points are divided into logical batches of a fixed size, in order. The attacks of a norm run one after the other on
the points of a batch that are still robust, with random numbers of its own for each batch: so the verdicts of a batch
are those of AutoAttack (Croce & Hein 2020, arXiv 2003.01690) on that batch, whatever other batches are computed with
it. A point counts for the union if it is robust in every norm.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoint
from core.attacks import Attack, Returning, frozen
from core.attacks.apgd import apgd_ce, apgd_t
from core.attacks.arguments import balls_of, check_labels, count_classes
from core.attacks.fab import fab_t
from core.attacks.forward import predict
from core.attacks.reference import check_classes, reference
from core.attacks.square import square
from core.attacks.threat import LpThreat
from core.data.points import check_points
from core.data.split import Split
from core.evaluation.preflight import preflight
from core.evaluation.report import make_report, record_points
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.evaluation.row import Row
from core.evaluation.search import Options, Search
from core.evaluation.unseen import (
    Corruptions,
    GeneratedCorruptions,
    Progress,
    check_unseen,
    corruptions_of,
    count_unseen,
    iter_unseen,
    read_unseen,
)
from core.inputs import Inputs, Loaded, load
from core.models.memory import peak_memory
from core.models.precision import full_float32
from core.schema.catalog import Norm
from core.schema.errors import BadInput
from core.schema.events import Attacked, Entered, Evaluated, Event, Finished, Resumed, Saved
from core.schema.progress import Subject, add_warnings
from core.schema.protocols import (
    DEFAULT_PROTOCOL,
    FAST_STEPS,
    LOGICAL_BATCH,
    AttackName,
    Engine,
    Protocol,
    settings_of,
)
from core.schema.report import AttackRecord, Part, Provenance, Report, Reports
from core.schema.spec import EvaluateSpec
from core.schema.spec_warnings import spec_warnings
from core.schema.unseen import Unseen

_ATTACKS: dict[AttackName, Attack[LpThreat, ...]] = {
    "apgd-ce": apgd_ce,
    "apgd-t": apgd_t,
    "fab-t": fab_t,
    "square": square,
}


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
    unseen: str | Sequence[object] | Unseen | None = None,
) -> Report:
    """Measure clean, per-norm and union accuracy by AutoAttack, in float32 throughout, without TF32.

    model maps images to logits (batch, classes). images (examples, channels, height, width) in [0, 1] and labels
    (examples,) lie on the model's device; eps gives a radius per norm in pixel units. batch_size: points per logical
    batch, which share one stream of random numbers: a change of it changes verdicts as a change of the seed does. The
    verdicts of a logical batch are those of pyautoattack on that batch alone. One call of pyautoattack on several
    batches forms new ones of the robust points before each attack, and differs in a few verdicts (1 of 240 at batches
    of 50). unseen: threats that no training prepares for, as `evaluation.unseen` of a spec: the name of a preset, or a
    list; the section `unseen` of the report has them.

    Raises BadInput for wrong arguments, before anything is attacked.
    """
    asked = read_unseen(unseen)
    options = Options(protocol=protocol, engine=engine, seed=seed, batch_size=batch_size, unseen=asked)
    options.check()
    check_points(images, labels)
    balls_of(eps, images.shape[1:])
    check_unseen(asked, images.shape[1:])
    with frozen(model), full_float32():
        check_labels(labels, count_classes(model, images[:1]))
    steps = iter_evaluate(model, images, labels, eps, options=options, subject="result")
    return Returning(steps).finish()


def iter_evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Mapping[Norm, float],
    *,
    options: Options,
    subject: Subject,
    corruptions: Corruptions | None = None,
) -> Generator[Attacked | Resumed | Saved, None, Report]:
    """Do what `evaluate` does, with an event after each attack. Raises OutOfMemory where not even one point fits.

    corruptions: where the images of common corruptions come from; by default they are made.
    """
    begun = time.monotonic()
    threats = balls_of(eps, images.shape[1:])
    with frozen(model), full_float32():
        if options.engine == "reference":
            check_classes(predict(model, images[:1]).shape[1], targeted=options.protocol != "fast")
        search = Search(model, images, labels, eps, options)
        # The state of a training run is resumed from a step of its training.
        if search.resumes and options.state.kind == "state":
            yield Resumed(step=options.state.saves, epoch=0)
        flags = []
        if not options.part or options.part.first == 0:
            flags = search.check_model()
        clean = search.predict_clean()
        records: list[AttackRecord] = []
        rows: dict[str, Row] = {}
        asked = options.unseen
        total = sum(len(settings_of(options.protocol, threat.norm)) for threat in threats) + count_unseen(asked)
        for threat in threats:
            rows[threat.id] = Row.of(clean)
            for name, attack in attacks_of(options.protocol, threat.norm, options.engine).items():
                records.append((yield from search.run(name, attack, threat, rows[threat.id], row_id=threat.id)))
                yield Attacked(
                    subject=subject,
                    threat=threat.id,
                    attack=name,
                    robust=records[-1].robust,
                    examples=len(labels),
                    done=len(records),
                    total=total,
                )
        found = None
        if asked:
            progress = Progress(subject, done=len(records), total=total)
            sources = corruptions or GeneratedCorruptions(options.seed, images.shape[1:])
            found = yield from iter_unseen(search, asked, labels, clean, sources, progress)
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
        unseen=found,
        part=options.part,
    )


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
    check_unseen(spec.evaluation.unseen, loaded.dataset.shape)
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
    report = yield from evaluate_for_spec(loaded, test, "result", state=state, part=part)
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
    loaded: Loaded,
    test: Split,
    subject: Subject,
    *,
    state: EvaluationState,
    part: Part | None = None,
) -> Generator[Event, None, Report]:
    """Evaluate the model of a run on test points with the settings of its spec, with an event after each attack.

    state: where results are saved on the way. part: the shard that the points are.
    """
    yield Entered(phase="evaluating", subject=subject)
    spec = loaded.spec
    asked = spec.evaluation
    options = Options(
        asked.protocol, asked.engine, spec.seed, asked.batch_size, part=part, unseen=asked.unseen, state=state
    )
    report = yield from iter_evaluate(
        loaded.model,
        test.images(),
        test.labels,
        spec.eps,
        options=options,
        subject=subject,
        corruptions=corruptions_of(loaded, first=part.first if part else 0),
    )
    yield Evaluated(subject=subject, report=report)
    return report


def save_reports(reports: Reports, run: Provenance | None, output: Path, *, step: int, epoch: float) -> Saved:
    """Write the evaluations of a run into `report.json`, with its provenance."""
    path = output / "report.json"
    content = reports.model_copy(update={"run": run}).model_dump_json(indent=1).encode()
    sha256 = checkpoint.write_file(path, content)
    return Saved(kind="report", path=str(path), sha256=sha256, size=len(content), step=step, epoch=epoch)

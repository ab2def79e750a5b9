"""How robust a model is: AutoAttack per norm, and the union per point.

The points are cut into logical batches of a fixed size, in order. Each norm's attacks run one after the other on the
points of a batch that are still right, with random numbers seeded anew for each batch: so the verdicts of a batch are
those of AutoAttack (Croce & Hein 2020, arXiv 2003.01690) on that batch, whatever other batches are computed with it. A
point counts for the union if it is right under every norm.
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoint
from core.attacks import Attack, AttackOptions, AttackResult, Returning, Steps, frozen
from core.attacks.apgd import apgd_ce, apgd_t, depends_on_last_bit
from core.attacks.fab import fab_t
from core.attacks.forward import predict
from core.attacks.reference import check_classes, reference
from core.attacks.square import square
from core.attacks.threat import LpThreat
from core.data.split import Split
from core.evaluation import report as verdicts
from core.evaluation.checks import doubts_about
from core.evaluation.preflight import preflight
from core.evaluation.resume import STATE_FILE, EvaluationState
from core.inputs import Inputs, load
from core.models.folding import folded
from core.models.memory import Room, is_out_of_memory, peak_memory
from core.models.precision import full_float32
from core.schema.catalog import NORMS, Norm
from core.schema.errors import BadInput, OutOfMemory
from core.schema.events import (
    Attacked,
    AttackRecord,
    Entered,
    Evaluated,
    Event,
    Finished,
    Flag,
    Part,
    Report,
    Reports,
    Resumed,
    Saved,
    Started,
    Subject,
)
from core.schema.protocols import FAST_STEPS, TARGETS, AttackName, Engine, Protocol, settings_of
from core.schema.spec import AnySpec, EvaluateSpec
from core.signals import Interrupted

_ATTACKS: dict[AttackName, Attack[...]] = {"apgd-ce": apgd_ce, "apgd-t": apgd_t, "fab-t": fab_t, "square": square}
# What is attacked together: as many whole logical batches as fit into so many points, and into so many bytes of images,
# since an attack holds, and keeps for a broken evaluation to go on, several tensors of that size.
_GROUP = 1024
_GROUP_BYTES = 256 * 2**20
# Points that go through the model together. More make a CPU's caches overflow; a GPU wants many.
_CHUNK_SIZE = {"cpu": 256, "cuda": 1024}


def attacks_of(protocol: Protocol, norm: Norm, engine: Engine = "temper") -> dict[AttackName, Attack[...]]:
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
    protocol: Protocol = "paper",
    engine: Engine = "temper",
    seed: int = 0,
    batch_size: int = 250,
) -> Report:
    """Measure clean, per-norm and union accuracy, in float32 throughout: TF32 is off meanwhile.

    images (examples, channels, height, width) in [0, 1] and labels (examples,) lie on the model's device; eps gives a
    radius per norm in pixel units. batch_size: points that share one stream of random numbers.
    """
    options = Options(protocol=protocol, engine=engine, seed=seed, batch_size=batch_size)
    steps = iter_evaluate(model, images, labels, eps, options=options, subject="result")
    return Returning(steps).finish()


@dataclass(frozen=True)
class Options:
    """How an evaluation is made, as `core.schema.spec.Evaluation` says it, and how much of it."""

    protocol: Protocol
    engine: Engine
    seed: int
    batch_size: int
    part: Part | None = None
    """Which part of an evaluation this is."""
    keep: EvaluationState = field(default_factory=EvaluationState)
    """Where what is found on the way is kept, so that a broken evaluation goes on with it."""


def iter_evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Mapping[Norm, float],
    *,
    options: Options,
    subject: Subject,
) -> Generator[Attacked | Resumed | Saved, None, Report]:
    """Do as `evaluate` does, reporting after each attack. Raises OutOfMemory where not even one point fits."""
    begun = time.monotonic()
    norms = [norm for norm in NORMS if norm in eps]
    with frozen(model), full_float32():
        if options.engine == "reference":
            check_classes(model(images[:1]).shape[1], targeted=options.protocol != "fast")
        search = _Search(model, images, labels, eps, options)
        # In a training run, what it goes on from is a step of its training.
        if search.resumes and options.keep.kind == "state":
            yield Resumed(step=options.keep.steps, epoch=0)
        doubts = []
        if not options.part or options.part.first == 0:
            doubts = search.doubts()
        clean = search.clean()
        records: list[AttackRecord] = []
        robust: dict[Norm, Tensor] = {}
        total = sum(len(attacks_of(options.protocol, norm, options.engine)) for norm in norms)
        for norm in norms:
            robust[norm] = clean.clone()
            for name, attack in attacks_of(options.protocol, norm, options.engine).items():
                records.append((yield from search.run(name, attack, norm, robust[norm])))
                yield Attacked(
                    subject=subject,
                    norm=norm,
                    attack=name,
                    robust=records[-1].robust,
                    examples=len(labels),
                    done=len(records),
                    total=total,
                )
        options.keep.close()
    return verdicts.report(
        protocol=options.protocol,
        engine=options.engine,
        seed=options.seed,
        batch_size=options.batch_size,
        eps=dict(eps),
        clean=verdicts.digits(clean),
        robust={norm: verdicts.digits(points) for norm, points in robust.items()},
        records=records,
        flags=doubts,
        seconds=time.monotonic() - begun,
        part=options.part,
    )


class _Search:
    """Attacks on a model's points, a group of logical batches at a time."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, eps: Mapping[Norm, float], options: Options
    ) -> None:
        self._model, self._images, self._labels, self._eps, self._options = model, images, labels, eps, options
        self._room = Room(_CHUNK_SIZE.get(images.device.type, 256), images.device)
        self._quick = folded(model, images[:8]) if options.engine == "temper" else model
        self._keep = options.keep
        self.resumes = self._keep.begin(self._identity)

    def doubts(self) -> list[Flag]:
        """Look for reasons to doubt the evaluation, on the first logical batch."""
        images, labels = (points[: self._options.batch_size] for points in (self._images, self._labels))
        protocol = self._options.protocol
        return self._room.fit(
            lambda chunk_size: list(
                doubts_about(self._model, images, labels, protocol, targets=TARGETS, chunk_size=chunk_size)
            )
        )

    def clean(self) -> Tensor:
        """Say of each point (examples,) whether the model classifies it right. What is known of it stays: another
        device may round otherwise, and the states of attacks are of the points that stood then."""
        known = self._keep.get("clean")
        if known is not None:
            return known.to(self._labels.device)
        right = self._right(self._images, self._labels)
        self._keep.put("clean", right)
        return right

    def run(
        self, name: AttackName, attack: Attack[...], norm: Norm, robust: Tensor
    ) -> Generator[Saved, None, AttackRecord]:
        """Run one attack on the points that are still right, and cross out in `robust` those that fall."""
        begun = time.monotonic()
        attacked = int(robust.sum())
        size = self._options.batch_size
        fitting = min(_GROUP, _GROUP_BYTES // self._images[0].nbytes)
        group = max(fitting // size, 1) * size
        for first in range(0, len(robust), group):
            key = f"{norm}/{name}/{first}"
            part = slice(first, first + group)
            known = self._keep.get(key)
            if known is not None:
                robust[part] = known.to(robust.device)
                continue
            try:
                yield from self._attack_group(key, name, attack, norm, first, robust[part])
            except Interrupted:
                yield from self._keep.copy(now=True)
                raise
            self._keep.put(key, robust[part])
            yield from self._keep.copy()
        return AttackRecord(
            norm=norm, attack=name, attacked=attacked, robust=int(robust.sum()), seconds=time.monotonic() - begun
        )

    def _attack_group(
        self, key: str, name: AttackName, attack: Attack[...], norm: Norm, first: int, robust: Tensor
    ) -> Generator[Saved, None, None]:
        """Attack the logical batches that begin at point `first`, and cross out those points of theirs that fall."""
        standing = robust.nonzero().squeeze(1)
        if len(standing) == 0:
            return
        images, labels = self._images[first + standing], self._labels[first + standing]
        threat = LpThreat(norm, self._eps[norm])
        counts = [int(batch.sum()) for batch in robust.split(self._options.batch_size)]
        sizes = tuple(count for count in counts if count)
        # Attacks search on a copy that is faster to compute; what they find is judged by the model itself.
        searched = self._model if depends_on_last_bit(name, threat) else self._quick
        while True:
            options = AttackOptions(self._options.seed, sizes, self._room.chunk_size, self._keep.state(key))
            try:
                with closing(attack.steps(searched, images, labels, threat, options)) as steps:
                    result = yield from self._take(steps, key)
                break
            except RuntimeError as error:
                self._check(error, max(sizes))
            # Only here is what the failed attempt held free again.
            self._room.halve()
        # The verdict is a fresh look at what the attack hands over, not the attack's own word.
        right = self._right(result.adversarial, labels)
        allowed = threat.contains(images[~right], result.adversarial[~right])
        assert bool(allowed.all()), f"{name} left {threat} at {int((~allowed).sum())} points"
        robust[standing] = right

    def _take(self, steps: Steps, key: str) -> Generator[Saved, None, AttackResult]:
        """Take an attack's steps, and keep its state now and then."""
        attack = Returning(steps)
        for state in attack:
            if self._keep.due:
                self._keep.stand(key, state())
                yield from self._keep.copy()
        return attack.value

    def _right(self, images: Tensor, labels: Tensor) -> Tensor:
        """Say of each point (examples,) whether the model classifies it right."""
        return (
            self._room.fit(lambda chunk_size: predict(self._model, images, chunk_size=chunk_size)).argmax(1) == labels
        )

    def _check(self, error: RuntimeError, size: int) -> None:
        """Raise what went wrong in an attack, unless it may be tried again with fewer points at once.

        size: points of the largest logical batch, which pyautoattack computes as a whole.
        """
        if self._options.engine == "reference" and is_out_of_memory(error):
            raise OutOfMemory(
                f"pyautoattack on a logical batch of {size} points does not fit the memory of {self._images.device}",
                hint="leave evaluation.engine at temper, which computes as many at once as fit, or make "
                "evaluation.batch_size smaller, which changes the random numbers",
                field="evaluation.batch_size",
            ) from error
        self._room.check(error)

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

    shard: (number, count) to evaluate one of `count` shares of the logical batches, numbered from 1; `verdicts.merge`
    puts their reports together. Raises BadInput where there are fewer logical batches than shards.
    """
    begun = time.monotonic()
    checkpoint.make_folder(output)
    loaded = load(spec, inputs or Inputs())
    part, test = (None, loaded.test) if shard is None else _share(loaded.test, spec.evaluation.batch_size, *shard)
    started = loaded.started(train_examples=0, total_steps=0)
    yield started
    with full_float32():
        yield from preflight(loaded, started)
    kept = EvaluationState(output / STATE_FILE, kind="state")
    report = yield from evaluate_for_spec(loaded.model, test, spec, "result", keep=kept, part=part)
    reports = Reports(before=None, after=report)
    yield Entered(phase="publishing")
    yield save_reports(reports, started, output, step=0, epoch=0)
    memory = peak_memory(loaded.device)
    yield Finished(reports=reports, seconds=time.monotonic() - begun, peak_memory_bytes=memory)


def _share(test: Split, batch_size: int, number: int, count: int) -> tuple[Part, Split]:
    """Cut out the logical batches of one shard: shards differ by one batch at most, and follow each other."""
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
    keep: EvaluationState,
    part: Part | None = None,
) -> Generator[Event, None, Report]:
    """Evaluate a model on test points as a spec asks for, reporting all the while.

    keep: where what is found on the way is kept. part: which part of the evaluation these points are.
    """
    yield Entered(phase="evaluating", subject=subject)
    asked = spec.evaluation
    options = Options(asked.protocol, asked.engine, spec.seed, asked.batch_size, part=part, keep=keep)
    report = yield from iter_evaluate(model, test.images(), test.labels, spec.eps, options=options, subject=subject)
    yield Evaluated(subject=subject, report=report)
    return report


def save_reports(reports: Reports, started: Started | None, output: Path, *, step: int, epoch: float) -> Saved:
    """Write the evaluations of a run into `report.json`, with what the run was."""
    path = output / "report.json"
    content = reports.model_copy(update={"run": started}).model_dump_json(indent=1).encode()
    sha256 = checkpoint.write_file(path, content)
    return Saved(kind="report", path=str(path), sha256=sha256, size=len(content), step=step, epoch=epoch)

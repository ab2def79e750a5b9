"""How robust a model is: AutoAttack per norm, and the union per point.

Each norm's attacks run one after the other on the points that are still right, in logical batches formed anew before
each attack, with a generator seeded anew for each batch: so a seed and a batch size give the verdicts of AutoAttack
(Croce & Hein 2020, arXiv 2003.01690). A point counts for the union if it is right under every norm.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoint
from core.attacks import AttackResult, frozen
from core.attacks.apgd import apgd_ce, apgd_t
from core.attacks.losses import dlr
from core.attacks.reference import fab_t, square
from core.catalog import NORMS, Norm
from core.data.split import Split
from core.events import (
    Attacked,
    AttackRecord,
    Entered,
    Evaluated,
    Event,
    Finished,
    Flag,
    Rate,
    Report,
    Reports,
    Saved,
    Started,
    Subject,
)
from core.geometry import length
from core.inputs import Inputs, load
from core.preflight import preflight
from core.spec import AnySpec, EvaluateSpec, Protocol

Attack = Callable[..., AttackResult]

_TARGETS = 9


def attacks_of(protocol: Protocol, norm: Norm) -> dict[str, Attack]:
    """Name the attacks of a protocol in the order they run, with AutoAttack's settings for the norm."""
    if protocol == "fast":
        return {"apgd-ce": partial(apgd_ce, steps=20)}
    restarts, targets = (5, 5) if norm == "l1" else (1, _TARGETS)
    attacks: dict[str, Attack] = {
        "apgd-ce": partial(apgd_ce, restarts=restarts),
        "apgd-t": partial(apgd_t, targets=targets),
    }
    if protocol == "standard":
        attacks |= {"fab-t": partial(fab_t, targets=_TARGETS), "square": square}
    return attacks


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Mapping[Norm, float],
    *,
    protocol: Protocol = "paper",
    seed: int = 0,
    batch_size: int = 250,
) -> Report:
    """Measure clean, per-norm and union accuracy.

    images (examples, channels, height, width) in [0, 1] and labels (examples,) lie on the model's device; eps gives a
    radius per norm in pixel units. batch_size: points that share one stream of random numbers.
    """
    steps = evaluating(
        model, images, labels, eps, subject="result", protocol=protocol, seed=seed, batch_size=batch_size
    )
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            report: Report = stop.value
            return report


def evaluating(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Mapping[Norm, float],
    *,
    subject: Subject,
    protocol: Protocol,
    seed: int,
    batch_size: int,
) -> Generator[Attacked, None, Report]:
    """Do as `evaluate` does, reporting after each attack."""
    begun = time.monotonic()
    norms = [norm for norm in NORMS if norm in eps]
    with frozen(model):
        clean = _right(model, images, labels, batch_size)
        flags = _doubts(model, images[:batch_size], labels[:batch_size], protocol)
        records: list[AttackRecord] = []
        robust: dict[Norm, Tensor] = {}
        total = sum(len(attacks_of(protocol, norm)) for norm in norms)
        for norm in norms:
            robust[norm] = clean.clone()
            for name, attack in attacks_of(protocol, norm).items():
                record = _run(name, attack, model, images, labels, norm, eps[norm], robust[norm], seed, batch_size)
                records.append(record)
                yield Attacked(
                    subject=subject,
                    norm=norm,
                    attack=name,
                    robust=record.robust,
                    examples=len(labels),
                    done=len(records),
                    total=total,
                )
    union = torch.stack(list(robust.values())).all(0)
    return Report(
        protocol=protocol,
        examples=len(labels),
        seed=seed,
        batch_size=batch_size,
        eps=dict(eps),
        clean=rate(int(clean.sum()), len(labels)),
        robust={norm: rate(int(points.sum()), len(labels)) for norm, points in robust.items()},
        union=rate(int(union.sum()), len(labels)),
        average=sum(int(points.sum()) for points in robust.values()) / (len(robust) * len(labels)),
        attacks=tuple(records),
        flags=(*flags, *_square_flags(records, len(labels))),
        verdicts={name: _digits(points) for name, points in [("clean", clean), *robust.items(), ("union", union)]},
        seconds=time.monotonic() - begun,
    )


def _digits(right: Tensor) -> str:
    return "".join("01"[verdict] for verdict in right.tolist())


def _run(
    name: str,
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: Norm,
    eps: float,
    robust: Tensor,
    seed: int,
    batch_size: int,
) -> AttackRecord:
    """Run one attack on the points that are still right, and cross out in `robust` those that fall."""
    begun = time.monotonic()
    standing = robust.nonzero().squeeze(1)
    for batch in standing.split(batch_size):
        points, answers = images[batch], labels[batch]
        generator = torch.Generator().manual_seed(seed)
        result = attack(model, points, answers, norm, eps, generator=generator)
        # The verdict is a fresh look at what the attack hands over, not the attack's own word.
        robust[batch] = _right(model, result.adversarial, answers, batch_size)
        found = result.adversarial[~robust[batch]]
        excess = length(found - points[~robust[batch]], norm) / eps - 1
        assert not (excess > 1e-4).any(), f"{name} left the {norm} ball by {excess.max():.1e} of its radius"
        assert not ((found < 0) | (found > 1)).any(), f"{name} left the box"
    return AttackRecord(
        norm=norm,
        attack=name,
        attacked=len(standing),
        robust=int(robust.sum()),
        seconds=time.monotonic() - begun,
    )


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """Say of each point (examples,) whether the model classifies it right."""
    logits = torch.cat([model(batch) for batch in images.split(batch_size)])
    return logits.argmax(1) == labels


def rate(count: int, total: int) -> Rate:
    """Turn a count into a share with its 95 % score interval (Wilson 1927)."""
    z = 1.959964
    share = count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # The share itself, where rounding would leave it outside its own interval.
    low = max(0.0, centre - spread) if count else 0.0
    high = min(1.0, centre + spread) if count < total else 1.0
    return Rate(value=share, count=count, total=total, low=low, high=high)


def _doubts(model: nn.Module, images: Tensor, labels: Tensor, protocol: Protocol) -> list[Flag]:
    """Look for what makes such an evaluation unreliable, as AutoAttack's checks do, on the first batch."""
    flags = []
    with torch.no_grad():
        answers = [model(images) for _ in range(5)]
    logits = answers[0]
    directions = [answer / (answer.norm(dim=1, keepdim=True) + 1e-10) for answer in answers]
    if any((direction - directions[0]).norm(dim=1).max() > 1e-4 for direction in directions):
        flags.append(
            Flag(
                code="randomized",
                message="the model answers differently each time; attacks that expect one answer overrate it",
            )
        )
    if logits.min() > -1e-5 and logits.max() < 1 + 1e-5 and (logits.sum(1) - 1).abs().max() < 1e-5:
        flags.append(
            Flag(
                code="probabilities", message="the model returns probabilities; attacks need logits, before the softmax"
            )
        )
    if still := _points_without_gradient(model, images, labels):
        flags.append(
            Flag(
                code="zero_gradients",
                message=f"{still} of {len(labels)} points have no gradient; gradient-based attacks cannot move them",
            )
        )
    classes = logits.shape[1]
    if protocol != "fast" and classes <= _TARGETS:
        scale = "" if classes > 3 else "; the DLR loss, defined for four classes, uses the logits there are"
        flags.append(
            Flag(
                code="few_classes",
                message=f"with {classes} classes, targeted attacks have {classes - 1} targets, not {_TARGETS}{scale}",
            )
        )
    return flags


def _points_without_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    points = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = model(points)
        (gradient,) = torch.autograd.grad(dlr(logits, labels, labels).sum(), points)
    # Where the model is wrong to begin with, this loss may be flat and nothing is amiss.
    right = logits.argmax(1) == labels
    return int((right & (gradient.flatten(1).abs().sum(1) == 0)).sum())


def _square_flags(records: list[AttackRecord], examples: int) -> Iterator[Flag]:
    for record in records:
        if record.attack == "square" and (record.attacked - record.robust) / examples > 0.002:
            yield Flag(
                code="square_improves",
                message=f"Square, without gradients, fooled {record.attacked - record.robust} points that the "
                "gradient-based attacks did not: their gradients may be masked",
                norm=record.norm,
            )


def score(spec: EvaluateSpec, output: Path, inputs: Inputs | None = None) -> Iterator[Event]:
    """Evaluate the base model of a spec, and write `report.json` into `output`."""
    begun = time.monotonic()
    checkpoint.make_folder(output)
    loaded = load(spec, inputs or Inputs())
    started = loaded.started(train_examples=0, total_steps=0)
    yield started
    yield from preflight(loaded, started)
    report = yield from judge(loaded.model, loaded.test, spec, "result")
    reports = Reports(before=None, after=report)
    yield Entered(phase="publishing")
    yield save_reports(reports, started, output, step=0, epoch=0)
    yield Finished(reports=reports, seconds=time.monotonic() - begun)


def judge(model: nn.Module, test: Split, spec: AnySpec, subject: Subject) -> Generator[Event, None, Report]:
    """Evaluate a model on test points as a spec asks for, reporting all the while."""
    yield Entered(phase="evaluating", subject=subject)
    report = yield from evaluating(
        model,
        test.images(),
        test.labels,
        spec.eps,
        subject=subject,
        protocol=spec.evaluation.protocol,
        seed=spec.seed,
        batch_size=spec.evaluation.batch_size,
    )
    yield Evaluated(subject=subject, report=report)
    return report


def save_reports(reports: Reports, started: Started, output: Path, *, step: int, epoch: float) -> Saved:
    """Write the evaluations of a run into `report.json`, with what the run was."""
    path = output / "report.json"
    content = reports.model_copy(update={"run": started}).model_dump_json(indent=1).encode()
    sha256 = checkpoint.write_file(path, content)
    return Saved(kind="report", path=str(path), sha256=sha256, size=len(content), step=step, epoch=epoch)

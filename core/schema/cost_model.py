"""What a run costs, in passes of single images through its network, counted from the spec alone. No torch.

Training costs what its attacks and updates do, to the pass; of a method that draws a norm for each batch, the mean of
its norms. Evaluations cost at most what is counted here: an attack spends no pass on a point that has fallen. What is
done once and on a few points, such as the inspection of a base model, is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from core.schema.catalog import DATASETS, NORMS, Norm
from core.schema.spec import AnySpec, EvaluateSpec, FineTuneSpec, Method, Protocol, TrainingSpec, count_held_out

_PERCEPTUAL_STEPS = 10
_MONITOR_STEPS = 20
_STEPS = {"fast": 20, "paper": 100, "standard": 100}
_TARGETS = 9
_L1_TRIES = 5
_QUERIES = 5000


@dataclass(frozen=True)
class Passes:
    """Images that go through the network."""

    forward: float = 0
    backward: float = 0

    @property
    def total(self) -> float:
        """Both kinds together."""
        return self.forward + self.backward

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> "Passes":
        return Passes(self.forward * times, self.backward * times)


@dataclass(frozen=True)
class Size:
    """How large a data set is."""

    train_examples: int
    test_examples: int
    classes: int | None = None
    """None where nobody has counted them."""

    @classmethod
    def of(cls, dataset: str) -> "Size | None":
        """Look a data set up in the catalogue."""
        entry = DATASETS.get(dataset)
        return cls(entry.train_examples, entry.test_examples, entry.classes) if entry else None


def passes_of_run(spec: AnySpec, size: Size) -> Passes:
    """Count all that a run does on a data set of this size."""
    points = min(spec.evaluation.examples, size.test_examples)
    evaluation = passes_of_evaluation(spec, points, classes=size.classes)
    if isinstance(spec, EvaluateSpec):
        return evaluation
    images = min(spec.train_examples or size.train_examples, size.train_examples)
    held_out = count_held_out(images) if spec.held_out is None else spec.held_out
    epoch = passes_of_training(spec.method) * _images_of_epoch(spec, max(images - held_out, 0))
    epoch += passes_of_monitoring(spec) * held_out
    twice = isinstance(spec, FineTuneSpec) and spec.evaluation.include_base
    return epoch * spec.epochs + evaluation * (2 if twice else 1)


def passes_of_training(method: Method) -> Passes:
    """Count what a method does with one image of a batch: its attacks, and the update on what they have found."""
    with_clean = 1 if method.loss == "trades" else 0
    attacks = [_attack(method.steps[norm], looks_first=with_clean) for norm in method.norms]
    match method.name:
        case "nat":
            return _update(1)
        case "pat":
            return Passes(2 * _PERCEPTUAL_STEPS + 2, _PERCEPTUAL_STEPS) + _update(1)
        case "msd":
            rounds = max(method.steps.values())
            tries = sum(method.steps.values())
            return Passes(rounds + tries + with_clean, rounds) + _update(1 + with_clean)
        case "avg" | "ramp":
            return _sum(attacks) + _update(len(attacks) + with_clean)
        case "max":
            return _sum(attacks) + _update(1 + with_clean)
        case _:
            return _sum(attacks) * (1 / len(attacks)) + _update(1 + with_clean)


def passes_of_monitoring(spec: TrainingSpec) -> Passes:
    """Count at most what is done with one held-out image after an epoch."""
    strong = [Passes(1) + _run(_MONITOR_STEPS, norm) for norm in spec.eps]
    own = [_attack(spec.method.steps[norm]) for norm in spec.method.norms]
    return _sum([*strong, *own])


def passes_of_evaluation(spec: AnySpec, points: int, *, classes: int | None) -> Passes:
    """Count at most what one evaluation does on so many points, of so many classes: ten or more where that is None."""
    asked = spec.evaluation
    attacks = _sum([_sum(attacks_on_a_point(asked.protocol, norm, classes=classes).values()) for norm in spec.eps])
    looks = len(spec.eps) * len(attacks_on_a_point(asked.protocol, NORMS[0], classes=classes))
    # Reasons to doubt are looked for on one batch: five looks, and two that ask for a gradient.
    return (Passes(1 + looks) + attacks) * points + Passes(7, 2) * min(points, asked.batch_size)


def attacks_on_a_point(protocol: Protocol, norm: Norm, *, classes: int | None) -> dict[str, Passes]:
    """Count at most what each attack of a protocol does on one point, in AutoAttack's settings for the norm."""
    targets = min(_TARGETS, classes - 1) if classes else _TARGETS
    one = _run(_STEPS[protocol], norm)
    if protocol == "fast":
        return {"apgd-ce": Passes(1) + one}
    tries = _L1_TRIES if norm == "l1" else 1
    targeted = min(targets, _L1_TRIES) if norm == "l1" else targets
    found = {"apgd-ce": Passes(1) + one * tries, "apgd-t": Passes(1) + one * targeted}
    if protocol == "standard":
        found["fab-t"] = Passes(1) + Passes(2, 1) * (_STEPS[protocol] * targets)
        found["square"] = Passes(_QUERIES + 2)
    return found


def _attack(steps: int, *, looks_first: int = 0) -> Passes:
    """APGD in training: a look at the start with its gradient, and one after each step; none is needed at the last."""
    return Passes(steps + 1 + looks_first, steps)


def _run(steps: int, norm: Norm) -> Passes:
    """APGD in evaluation; for l1 in three stages, in ever smaller balls."""
    early = ceil(0.3 * steps)
    stages = [early, early, steps - 2 * early] if norm == "l1" else [steps]
    return _sum([_attack(each) for each in stages])


def _update(images: int) -> Passes:
    return Passes(images, images)


def _images_of_epoch(spec: TrainingSpec, images: int) -> float:
    """Count the images of all batches of an epoch, those of a second data set included."""
    if not spec.extra_dataset:
        return images
    extra = min(max(round(spec.batch_size * spec.extra_share), 1), spec.batch_size - 1)
    return images * spec.batch_size / (spec.batch_size - extra)


def _sum(parts: Iterable[Passes]) -> Passes:
    return sum(parts, Passes())

"""Cost of a run in passes of single images through its network, counted from the spec alone. No torch.

The passes of training, its attacks and updates, are counted exactly; for a method that draws a norm for each batch, as
the mean over its norms. The passes of an evaluation are an upper bound: an attack spends none on a point that is
fooled. Checks on a few points, such as those of a base model, are left out.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from core.schema.catalog import DATASETS, Norm
from core.schema.method import Method
from core.schema.protocols import FAST_STEPS, PERCEPTUAL_STEPS, AttackName, Protocol, apgd_stages, settings_of
from core.schema.recipe import STATISTICS_IMAGES
from core.schema.spec import AnySpec, EvaluateSpec, FineTuneSpec, TrainingSpec, count_held_out
from core.schema.threats import THREATS, ThreatKind
from core.schema.unseen import Unseen, UnseenThreat


@dataclass(frozen=True)
class Passes:
    """A number of images that go through the network."""

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
    """None where it is not known."""

    @classmethod
    def of(cls, dataset: str) -> "Size | None":
        """Look up a data set in the catalogue."""
        entry = DATASETS.get(dataset)
        return cls(entry.train_examples, entry.test_examples, entry.classes) if entry else None


def passes_of_run(spec: AnySpec, size: Size) -> Passes:
    """Count the passes of a run on a data set of this size."""
    points = min(spec.evaluation.examples, size.test_examples)
    evaluation = passes_of_evaluation(spec, points, classes=size.classes)
    if isinstance(spec, EvaluateSpec):
        return evaluation
    images = min(spec.train_examples or size.train_examples, size.train_examples)
    held_out = count_held_out(images) if spec.held_out is None else spec.held_out
    trained = _images_of_epoch(spec, max(images - held_out, 0))
    epoch = passes_of_training(spec.method) * trained + passes_of_monitoring(spec) * held_out
    twice = isinstance(spec, FineTuneSpec) and spec.evaluates_base
    once = evaluation * (2 if twice else 1)
    epochs = count_epochs(spec)
    if spec.awp:
        # The loss of the same adversarial images once more.
        once += passes_of_update(spec.method) * trained * (spec.epochs - spec.awp.start_epoch)
    if spec.average:
        # Where no image is held out, the averaged weights are used at the end alone.
        once += Passes(min(STATISTICS_IMAGES, trained)) * (epochs if held_out else 1)
    return epoch * epochs + once


def passes_of_training(method: Method) -> Passes:
    """Count the passes per image of a training batch: the method's attacks and its update."""
    return _COSTS_OF_METHODS[method.name](method) + passes_of_update(method)


def passes_of_update(method: Method) -> Passes:
    """Count the passes per image of an update: of its adversarial images, and for TRADES of the clean one."""
    adversarial = len(method.norms) if method.name in _UPDATED_IN_EVERY_NORM else 1
    images = adversarial + _clean(method)
    return Passes(images, images)


def _one_norm(method: Method) -> Passes:
    attacks = _training_attacks(method)
    return _sum(attacks) * (1 / len(attacks))


def _every_norm(method: Method) -> Passes:
    return _sum(_training_attacks(method))


def _steepest_norm(method: Method) -> Passes:
    rounds, tries = max(method.steps.values()), sum(method.steps.values())
    return Passes(rounds + tries + _clean(method), rounds)


def _perceptual(method: Method) -> Passes:
    del method
    return Passes(2 * PERCEPTUAL_STEPS + 2, PERCEPTUAL_STEPS)


def _none(method: Method) -> Passes:
    del method
    return Passes()


_COSTS_OF_METHODS: Mapping[str, Callable[[Method], Passes]] = {
    "nat": _none,
    "single": _one_norm,
    "sat": _one_norm,
    "avg": _every_norm,
    "max": _every_norm,
    "msd": _steepest_norm,
    "e-at": _one_norm,
    "ramp": _every_norm,
    "pat": _perceptual,
}
"""The passes of the attacks per image of a training batch, by the name of the method."""
_UPDATED_IN_EVERY_NORM = ("avg", "ramp")
"""The methods whose update passes the adversarial images of every norm through the network."""


def _training_attacks(method: Method) -> list[Passes]:
    """Count the passes of the attack in each norm; TRADES looks at the clean images first."""
    return [_attack(method.steps[norm], looks_first=_clean(method)) for norm in method.norms]


def _clean(method: Method) -> int:
    """Return how often a step passes the clean images through the network beside the adversarial ones."""
    return 1 if method.loss == "trades" else 0


def passes_of_monitoring(spec: TrainingSpec) -> Passes:
    """Bound the passes per held-out image after an epoch, through the model and the one with averaged weights."""
    strong = _sum(Passes(1) + _run(FAST_STEPS, norm) for norm in spec.eps)
    own = _sum(_attack(spec.method.steps[norm]) for norm in spec.method.norms)
    return strong * (2 if spec.average else 1) + own


def passes_of_evaluation(spec: AnySpec, points: int, *, classes: int | None) -> Passes:
    """Bound the passes of one evaluation on `points` points. classes: None for ten or more."""
    asked = spec.evaluation
    attacks = [
        passes for norm in spec.eps for passes in attacks_on_a_point(asked.protocol, norm, classes=classes).values()
    ]
    unseen = passes_of_unseen(asked.unseen) if asked.unseen else Passes()
    # The sanity checks take five forward passes on one logical batch, and two with a gradient.
    return (Passes(1 + len(attacks)) + _sum(attacks) + unseen) * points + Passes(7, 2) * min(points, asked.batch_size)


def passes_of_unseen(asked: Unseen) -> Passes:
    """Bound the passes per point under threats that no training prepares for. Each budget of a sweep is a search of its
    own, whose result the model itself is asked about."""
    return _sum(_COSTS_OF_THREATS[THREATS[threat.name].kind](threat) * len(threat.budgets) for threat in asked.threats)


def _search(threat: UnseenThreat) -> Passes:
    return Passes((threat.queries or 0) + 2)


def _ascent(threat: UnseenThreat) -> Passes:
    steps = threat.steps or 0
    return Passes(steps + 3, steps)


def _corruption(threat: UnseenThreat) -> Passes:
    del threat
    return Passes(1)


_COSTS_OF_THREATS: Mapping[ThreatKind, Callable[[UnseenThreat], Passes]] = {
    "search": _search,
    "ascent": _ascent,
    "corruption": _corruption,
}
"""The passes on one point for one budget, by how a threat is searched."""


def attacks_on_a_point(protocol: Protocol, norm: Norm, *, classes: int | None) -> dict[AttackName, Passes]:
    """Bound the passes of each attack of a protocol on one point, with AutoAttack's settings for the norm."""
    attacks = settings_of(protocol, norm)
    return {name: _COSTS_OF_ATTACKS[name](norm, classes, **settings) for name, settings in attacks.items()}


def _apgd_ce(norm: Norm, classes: int | None, *, restarts: int, steps: int) -> Passes:
    del classes
    return Passes(1) + _run(steps, norm) * restarts


def _apgd_t(norm: Norm, classes: int | None, *, targets: int, steps: int) -> Passes:
    return Passes(1) + _run(steps, norm) * _wrong_classes(targets, classes)


def _fab_t(norm: Norm, classes: int | None, *, targets: int, steps: int) -> Passes:
    del norm
    return Passes(1) + Passes(2, 1) * (steps * _wrong_classes(targets, classes))


def _square(norm: Norm, classes: int | None, *, queries: int) -> Passes:
    del norm, classes
    return Passes(queries + 2)


_COSTS_OF_ATTACKS: Mapping[AttackName, Callable[..., Passes]] = {
    "apgd-ce": _apgd_ce,
    "apgd-t": _apgd_t,
    "fab-t": _fab_t,
    "square": _square,
}
"""The passes on one point, by the name of the attack; each takes its settings in `core.schema.protocols`."""


def _wrong_classes(targets: int, classes: int | None) -> int:
    return min(targets, classes - 1) if classes else targets


def _attack(steps: int, *, looks_first: int = 0) -> Passes:
    """APGD in training: one forward pass at the start and after each step, each but the last with its gradient."""
    return Passes(steps + 1 + looks_first, steps)


def _run(steps: int, norm: Norm) -> Passes:
    """APGD in evaluation."""
    return _sum(_attack(stage.steps) for stage in apgd_stages(norm, steps))


def count_steps(spec: TrainingSpec, train_examples: int) -> int:
    """Count the steps of a training run on a data set of this size."""
    images = min(spec.train_examples or train_examples, train_examples)
    held_out = count_held_out(images) if spec.held_out is None else spec.held_out
    extra = _extra_images(spec)
    full = spec.batch_size - extra
    steps, rest = divmod(max(images - held_out, 0), full)
    # A single image joins the batch before it.
    joins = steps > 0 and rest + round(rest * extra / full) == 1
    return count_epochs(spec) * (steps + (rest > 0 and not joins))


def count_epochs(spec: TrainingSpec) -> int:
    """Count the epochs of a training run, those of a linear probe included."""
    return spec.epochs + (spec.linear_probe_epochs if isinstance(spec, FineTuneSpec) else 0)


def _images_of_epoch(spec: TrainingSpec, images: int) -> float:
    """Count the images of all batches of an epoch, including those of a second data set."""
    return images * spec.batch_size / (spec.batch_size - _extra_images(spec))


def _extra_images(spec: TrainingSpec) -> int:
    """Count the images of a batch that come from a second data set."""
    if not spec.extra_dataset:
        return 0
    return min(max(round(spec.batch_size * spec.extra_share), 1), spec.batch_size - 1)


def _sum(parts: Iterable[Passes]) -> Passes:
    return sum(parts, Passes())

"""Check a base model on a few test points before a run spends hours on it.

A model that would make the run worthless is refused: non-finite logits, probabilities in place of logits, no gradient
at the images, another number of classes than the data set. Anything doubtful is a warning whose code begins with
preflight_. Nothing is drawn at random and the model is not changed, so a run gives the same weights with these checks
and without.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from core.attacks import CHECKED, frozen
from core.attacks.apgd import apgd
from core.attacks.forward import loss_and_gradient, predict
from core.attacks.losses import cross_entropy, margin
from core.attacks.threat import LpThreat
from core.checkpoint import RobustnessClaim
from core.data.split import Split
from core.evaluation.checks import are_probabilities, depends_on_batch
from core.inputs import Loaded
from core.models import Blueprint
from core.schema.catalog import OWN_CLASS, Norm, find_architecture
from core.schema.errors import BadWeights, DoesNotFit
from core.schema.events import Started, Warned
from core.schema.recipe import usual_learning_rate
from core.schema.spec import FineTuneSpec, TrainSpec

_POINTS = 128
_ATTACKED = 64
# Points per pass: fewer than in any training step, so that the checks fit into memory wherever the run does.
_CHUNK_SIZE = 32
_STEPS = 10
# The look at attacked images: enough to meet an answer that is missing at many of them.
_FEW, _FEW_STEPS = 16, 5
# The ball for it where no run names one: the usual one of CIFAR-10.
_SOME_BALL: Mapping[Norm, float] = {"linf": 8 / 255}
# A difference of accuracies, or a shortfall, counts from three standard deviations: in a thousand sound models, one.
_DEVIATIONS = 3
# With fewer points no conclusion is drawn.
_ENOUGH = 20

_Statistics = tuple[float, ...]


def preflight(loaded: Loaded, started: Started) -> Iterator[Warned]:
    """Check the base model of a run that has started, and yield warnings.

    Raises BadWeights and DoesNotFit for a model that is refused.
    """
    header, spec = loaded.header, loaded.spec
    if isinstance(spec, TrainSpec):
        return
    if isinstance(spec, FineTuneSpec) and spec.head == "new":
        # It was drawn a moment ago: neither accuracy nor claims can be checked.
        yield from _inspect_unlabelled(
            loaded.model, loaded.test.first(_POINTS).images(), loaded.blueprint.classes, spec.eps
        )
    else:
        at_home = header is not None and header.trained_on(spec.dataset, started.data_sha256)
        claims = {
            norm: RobustnessClaim(claim.eps, claim.robust if at_home else None)
            for norm, claim in (header.claims() if header else {}).items()
        }
        yield from inspect(loaded.model, loaded.test, loaded.blueprint, claims, spec.eps)
    is_own = loaded.blueprint.architecture.startswith(OWN_CLASS)
    entry = None if is_own else find_architecture(loaded.blueprint.architecture)
    if not isinstance(spec, FineTuneSpec) or entry is None:
        return
    usual = usual_learning_rate(entry, spec.optimizer)
    if spec.learning_rate > 10 * usual:
        yield Warned(
            code="preflight_learning_rate",
            message=f"the learning rate is {spec.learning_rate:g}; {entry.name} is fine-tuned by {spec.optimizer} with "
            f"{usual:g} at most",
            remedy=f"set learning_rate, such as to {usual:g}",
        )


def inspect(
    model: nn.Module,
    test: Split,
    blueprint: Blueprint,
    claims: Mapping[Norm, RobustnessClaim],
    eps: Mapping[Norm, float] = _SOME_BALL,
) -> Iterator[Warned]:
    """Check a model on the first test points, and yield warnings.

    claims: its claimed robustness per norm; eps: the balls at whose images its answers are looked at. Raises BadInput
    where the model answers with anything but logits, BadWeights and DoesNotFit for a model that is refused.
    """
    part = test.first(_POINTS)
    images, labels = part.images(), part.labels
    with frozen(model):
        logits = predict(model, images, chunk_size=_CHUNK_SIZE)
        _refuse(model, images, logits, blueprint.classes)
        yield from _check_repeatability(model, images[:_CHUNK_SIZE], logits[:_CHUNK_SIZE])
        right = logits.argmax(1) == labels
        yield from _check_gradients(model, images[:_ATTACKED], labels[:_ATTACKED])
        yield from _check_attacked(model, images[:_FEW], labels[:_FEW], eps)
        yield from _check_scaling(model, images, labels, right, blueprint)
        for norm, claim in claims.items():
            yield from _check_claim(model, images[:_ATTACKED], labels[:_ATTACKED], norm, claim)


def inspect_on_noise(model: nn.Module, blueprint: Blueprint) -> Iterator[Warned]:
    """Run the checks that need neither images nor labels, and yield warnings.

    Raises BadWeights and DoesNotFit for a model that is refused.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(_CHUNK_SIZE, *blueprint.shape, generator=generator)
    yield from _inspect_unlabelled(model, images, blueprint.classes, _SOME_BALL)


def _inspect_unlabelled(model: nn.Module, images: Tensor, classes: int, eps: Mapping[Norm, float]) -> Iterator[Warned]:
    with frozen(model):
        logits = predict(model, images, chunk_size=_CHUNK_SIZE)
        _refuse(model, images, logits, classes)
        yield from _check_repeatability(model, images[:_CHUNK_SIZE], logits[:_CHUNK_SIZE])
        yield from _check_gradients(model, images[:_ATTACKED], logits[:_ATTACKED].argmax(1))
        yield from _check_attacked(model, images[:_FEW], logits[:_FEW].argmax(1), eps)


def _refuse(model: nn.Module, images: Tensor, logits: Tensor, classes: int) -> None:
    if logits.dim() != 2 or logits.shape[1] != classes:
        raise DoesNotFit(
            f"the model answers with {list(logits.shape[1:])} numbers per image, the data set has {classes} classes",
            hint="choose a data set with the model's classes, or a model for this data set",
            field="base_model",
        )
    if not torch.isfinite(logits).all():
        raise BadWeights(
            "the model's logits are not all numbers",
            hint="its weights have diverged, or its normalisation divides by 0: use other weights",
            field="base_model",
        )
    last = "softmax" if are_probabilities(logits) else "sigmoid" if _are_squashed(model, images, logits) else None
    if last:
        raise BadWeights(
            f"the model returns probabilities: training and attacks need logits, before the {last}",
            hint=f"leave the {last} out of the network and import its weights again",
            field="base_model",
        )


def _are_squashed(model: nn.Module, images: Tensor, logits: Tensor) -> bool:
    """Check whether all outputs are in [0, 1], on extreme images too, and differ by more than untrained ones do."""
    if logits.min() < 0 or logits.max() > 1:
        return False
    few = images[: _CHUNK_SIZE // 4]
    extreme = torch.cat([100 * few, -100 * few, 1 - few, torch.zeros_like(few)])
    answers = torch.cat([logits, predict(model, extreme, chunk_size=_CHUNK_SIZE)])
    # The outputs of an untrained network may be small and of one sign, but they are all similar.
    return bool(answers.min() >= 0 and answers.max() <= 1 and answers.max() - answers.min() > 0.5)


def _check_repeatability(model: nn.Module, images: Tensor, logits: Tensor) -> Iterator[Warned]:
    limit = 1e-3 * logits.abs().max().clamp(min=1e-6)
    if (predict(model, images) - logits).abs().max() > limit:
        yield Warned(
            code="preflight_randomized",
            message="the model answers the same images differently each time: attacks that expect one answer overrate "
            "it, and a run cannot be repeated",
            remedy="use a network that draws nothing when it is evaluated",
        )
        return
    if depends_on_batch(model, images):
        yield Warned(
            code="preflight_batch_dependent",
            message="the model's answer to an image depends on the images beside it: its batch norm has no running "
            "statistics, so no robust accuracy is its own",
            remedy="use weights that hold them",
        )


def _check_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Warned]:
    parts = zip(images.split(_CHUNK_SIZE), labels.split(_CHUNK_SIZE), strict=True)
    still = sum(_count_without_gradient(model, points, answers) for points, answers in parts)
    if still == len(images):
        raise BadWeights(
            "no gradient reaches the images through the model: nothing can be trained on attacks that need one",
            hint="a network of rounded, detached or saturated values hides its gradient: use other weights",
            field="base_model",
        )
    if still > len(images) / 10:
        yield Warned(
            code="preflight_gradients",
            message=f"{still} of {len(images)} images have no gradient: attacks cannot move them, and overrate "
            "the model",
            remedy="use a network without rounded, detached or saturated values",
        )
    else:
        yield from _check_saturation(model, images, labels)


def _check_saturation(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Warned]:
    """Check the cross-entropy, which training and fast attacks use, and which is flat where logits are too large."""
    found = loss_and_gradient(model, images, cross_entropy, labels, labels, chunk_size=_CHUNK_SIZE)
    right = found.logits.argmax(1) == labels
    flat = int((right & (found.gradient.flatten(1).abs().amax(1) == 0)).sum())
    if flat > len(images) / 10:
        yield Warned(
            code="preflight_saturated",
            message="the logits are so large that the cross-entropy has no gradient at "
            f"{flat} of {len(images)} images: training on it learns nothing there, and the fast protocol overrates "
            "the model",
            remedy="divide the last layer by a constant, which changes no answer",
        )


def _count_without_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Count the images at which the margin of the right class has no gradient."""
    # Not the cross-entropy, whose gradient is rounded to zero where a sound model is very sure.
    gradient = loss_and_gradient(model, images, margin, labels, labels).gradient
    return int((gradient.flatten(1).abs().amax(1) == 0).sum())


def _check_attacked(model: nn.Module, images: Tensor, labels: Tensor, eps: Mapping[Norm, float]) -> Iterator[Warned]:
    """Check the answers to images that are attacked for a few steps, and the gradients on the way."""
    for norm, radius in eps.items():
        found = apgd(model, images, labels, LpThreat(norm, radius), CHECKED, steps=_FEW_STEPS)
        lost, blind = int(found.not_finite.sum()), int(found.nan_gradients.sum())
        if lost:
            yield Warned(
                code="preflight_not_finite",
                message=f"{_FEW_STEPS} steps of APGD in {norm} at {radius:.4g} turn {lost} of {len(images)} images "
                "into ones whose logits are NaN or infinite: their robustness cannot be measured, and training on them "
                "diverges",
                remedy="use a network without the operation that overflows or divides by zero there",
                threat=norm,
            )
        if blind:
            yield Warned(
                code="preflight_nan_gradients",
                message=f"the gradient at {blind} of {len(images)} images attacked in {norm} contains NaN, as that of "
                "sqrt(x) does at 0: attacks take it as zero and overrate the model",
                remedy="use a network with a small constant inside such an operation",
                threat=norm,
            )
        if lost or blind:
            return


@dataclass(frozen=True)
class _Scaling:
    """Another way to feed images to a network: (images - mean) / std before the model."""

    words: str
    mean: _Statistics
    std: _Statistics
    reverse: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        images = images.flip(1) if self.reverse else images
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def remedy(self, blueprint: Blueprint) -> str:
        if self.reverse:
            return "convert its first layer to red, green, blue"
        inner_mean = blueprint.mean or (0.0,) * len(self.mean)
        inner_std = blueprint.std or (1.0,) * len(self.std)
        mean = [outer + scale * inner for outer, scale, inner in zip(self.mean, self.std, inner_mean, strict=True)]
        std = [outer * inner for outer, inner in zip(self.std, inner_std, strict=True)]
        if all(abs(value) < 1e-6 for value in mean) and all(abs(value - 1) < 1e-6 for value in std):
            return "import its weights again without normalisation"
        said = [",".join(f"{value:.4g}" for value in values) for values in (mean, std)]
        if blueprint.architecture.startswith(OWN_CLASS):
            return "let it compute (images - mean) / std first, with mean {} and std {}".format(*said)
        return "import its weights again with --mean {} --std {}".format(*said)


def _scalings(images: Tensor, blueprint: Blueprint) -> Iterator[_Scaling]:
    channels = images.shape[1]
    none, one = (0.0,) * channels, (1.0,) * channels
    yield _Scaling("scaled to 0 to 255", none, (1 / 255,) * channels)
    yield _Scaling("scaled to -1 to 1", (0.5,) * channels, (0.5,) * channels)
    own = images.transpose(0, 1).flatten(1)
    yield _Scaling(
        "normalised by their own mean and deviation", _tuple(own.mean(1)), _tuple(own.std(1).clamp(min=1e-3))
    )
    if blueprint.mean:
        inverse = tuple(-mean / std for mean, std in zip(blueprint.mean, blueprint.std, strict=True))
        yield _Scaling("not normalised at all", inverse, tuple(1 / std for std in blueprint.std))
    if channels == 3:
        yield _Scaling("normalised as for ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        yield _Scaling("in the order blue, green, red", none, one, reverse=True)


def _tuple(values: Tensor) -> _Statistics:
    return tuple(values.tolist())


def _check_scaling(
    model: nn.Module, images: Tensor, labels: Tensor, right: Tensor, blueprint: Blueprint
) -> Iterator[Warned]:
    """Check whether the model classifies better with another scaling of its images, and better than by chance."""
    total, count = len(labels), int(right.sum())
    found: dict[int, _Scaling] = {}
    # Where nearly all are right, no other scaling can be noticeably better.
    for scaling in _scalings(images, blueprint) if total - count > total / 20 else ():
        other = predict(model, scaling(images), chunk_size=_CHUNK_SIZE).argmax(1) == labels
        won, lost = int((other & ~right).sum()), int((right & ~other).sum())
        if won - lost > max(_DEVIATIONS * sqrt(won + lost), total / 20):
            found.setdefault(int(other.sum()), scaling)
    if found:
        best = max(found)
        yield Warned(
            code="preflight_scaling",
            message=f"{count} of {total} images are right as they are, {best} when {found[best].words}: the model "
            "expects another normalisation than it is given",
            remedy=found[best].remedy(blueprint),
        )
        return
    chance = 1 / blueprint.classes
    if total >= _ENOUGH and count <= total * chance + _DEVIATIONS * sqrt(total * chance * (1 - chance)):
        yield Warned(
            code="preflight_chance",
            message=f"{count} of {total} images are right, which is no better than guessing among {blueprint.classes} "
            "classes",
            remedy="check that these are the model's classes in its order, its images and its normalisation, and "
            "import its weights again where they are not",
        )


def _check_claim(
    model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, claim: RobustnessClaim
) -> Iterator[Warned]:
    """Check whether a fast attack, which is weaker than AutoAttack, already refutes the claimed robustness."""
    parts = list(zip(images.split(_CHUNK_SIZE), labels.split(_CHUNK_SIZE), strict=True))
    attacks = (apgd(model, *part, LpThreat(norm, claim.eps), CHECKED, steps=_STEPS, goal="error") for part in parts)
    robust, total = sum(int(attack.robust.sum()) for attack in attacks), len(labels)
    if claim.robust is None:
        clean = int((predict(model, images, chunk_size=_CHUNK_SIZE).argmax(1) == labels).sum())
        # Adversarially trained models keep half of their accuracy or more, others next to none.
        least, said = clean / 5 if clean >= _ENOUGH else 0, "is said to be robust"
    else:
        spread = sqrt(total * claim.robust * (1 - claim.robust))
        least, said = total * claim.robust - _DEVIATIONS * spread, f"is said to be {claim.robust:.0%} robust"
    if robust < least:
        yield Warned(
            code="preflight_claim",
            message=f"the model {said} to {norm} at {claim.eps:.4g}, but {_STEPS} steps of APGD leave {robust} of "
            f"{total} images right",
            remedy="check that these are its weights, its data set and its normalisation, or import it with the claim "
            "that it keeps",
            threat=norm,
        )

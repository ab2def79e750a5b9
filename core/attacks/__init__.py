"""The contract of all attacks.

    attack(model, images, labels, threat, options, **settings) -> AttackResult

model       maps images to logits (batch, classes); it is attacked in eval mode and given back in the mode it was in,
            with its parameters' gradients and `requires_grad` untouched
images      (batch, channels, height, width) in [0, 1]
labels      (batch,) class indices
threat      what the attacker may do, such as `LpThreat("linf", 8 / 255)` (`core.attacks.threat`)
options     random numbers, memory and resuming: the same for every attack (`AttackOptions`)
settings    what an attack has of its own, such as steps, restarts or queries

A wrong argument raises BadInput before anything is computed. A point where the logits are NaN or infinite is not
fooled, and a slope that is NaN is taken as zero; the result says at which points that happened.

An attack is a pure function: its random numbers come from `options` alone, and it neither reads nor changes the global
random state. Attacks made with `@Attack` also have `attack.steps(...)`, a generator with the same arguments: after each
step it yields a function that returns the attack's state, from which a later call continues to the same result, bit for
bit. The steps check no argument, and their result holds points as AutoAttack finds them, which may lie outside the
threat by rounding.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, update_wrapper
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from core.attacks.arguments import check_labels
from core.attacks.containment import bring_inside
from core.attacks.forward import classify, loss_of
from core.attacks.losses import Loss
from core.attacks.rng import Noise
from core.attacks.threat import LpThreat, Threat
from core.data.points import check_points

State = dict[str, Tensor]
"""State from which an attack continues, in addition to the arguments of its call."""


@dataclass(frozen=True)
class AttackOptions:
    """Options that all attacks share."""

    seed: int = 0
    """Seed of the random numbers; each logical batch has a stream of its own that starts from it."""
    batch_sizes: tuple[int, ...] | None = None
    """Points per logical batch, in the order in which they lie; None for one logical batch of all points. Points of a
    logical batch share a stream of random numbers, as a batch of AutoAttack does."""
    chunk_size: int | None = None
    """How many points go through the model together, None for all. It changes time and memory, not the verdicts."""
    state: State | None = None
    """The state of an earlier call on the same points, to continue from."""
    checked: bool = False
    """Whether the caller has checked images, labels and threat, so that the attack need not."""

    def noise(self, points: int) -> Noise:
        """Start the streams of random numbers for this number of points."""
        return Noise(self.seed, self.batch_sizes or [points])


DEFAULTS = AttackOptions()
CHECKED = AttackOptions(checked=True)
"""The defaults, for a caller that has checked images, labels and threat."""

_NOWHERE = torch.tensor(False)


@dataclass(frozen=True)
class AttackResult:
    """The result of an attack, per point."""

    adversarial: Tensor
    """(batch, channels, height, width): the point found, one that the threat allows."""
    robust: Tensor
    """(batch,) bool: whether the model was right at every point that the attack tried."""
    loss: Tensor
    """(batch,): the loss at `adversarial`; the attack says which loss."""
    not_finite: Tensor = _NOWHERE
    """(batch,) bool: whether the model's logits were NaN or infinite at a point that the attack tried; () where the
    attack does not tell."""
    nan_gradients: Tensor = _NOWHERE
    """(batch,) bool: whether a gradient contained NaN, which the attack took as zero; () where it does not tell."""
    late: Tensor = _NOWHERE
    """(batch,) bool: whether the point was fooled in the last tenth of the search, so that a longer search might fool
    more; () where the attack does not tell."""
    no_gradient: Tensor = _NOWHERE
    """(batch,) bool: whether the gradient was zero at every point that the attack tried; () where it does not tell."""


@dataclass
class RunningResult:
    """The result of an attack under way, updated in place."""

    adversarial: Tensor
    robust: Tensor
    loss: Tensor
    not_finite: Tensor = field(init=False)
    nan_gradients: Tensor = field(init=False)
    late: Tensor = field(init=False)
    no_gradient: Tensor = field(init=False)

    _FLAGS: ClassVar = ("not_finite", "nan_gradients", "late", "no_gradient")
    _PER_POINT: ClassVar = ("robust", "loss", *_FLAGS)

    def __post_init__(self) -> None:
        for name in self._FLAGS:
            setattr(self, name, torch.zeros_like(self.robust))

    def finish(self) -> AttackResult:
        """Give the result of the attack."""
        return AttackResult(**vars(self))

    def state(self, images: Tensor) -> State:
        """Give it as part of a state. images (batch, ...): what is attacked; points that equal theirs are left out."""
        changed = (self.adversarial != images).flatten(1).any(1).nonzero().squeeze(1)
        per_point = {name: getattr(self, name) for name in self._PER_POINT}
        return {**per_point, "found": changed, "adversarial": self.adversarial[changed]}

    def restore(self, state: State) -> None:
        """Take over the result so far from a state."""
        for name in self._PER_POINT:
            getattr(self, name).copy_(state[name])
        self.adversarial[state["found"].to(self.robust.device)] = state["adversarial"].to(self.adversarial)


def begin(images: Tensor, labels: Tensor, logits: Tensor, loss: Loss, options: AttackOptions) -> RunningResult:
    """Begin the result of an attack with the images themselves, given their logits (batch, classes).

    An image that the model does not classify correctly is not robust. Raises BadInput for a label that is no class.
    """
    if not options.checked:
        check_labels(labels, logits.shape[1])
    return RunningResult(images.clone(), classify(logits) == labels, loss_of(loss, logits, labels, labels))


Steps = Generator[Callable[[], State], None, AttackResult]
"""Yields after each step a function that gives the state, valid until the next step; its tensors may be the attack's
own."""

_Threat = TypeVar("_Threat", bound=Threat)
_Settings = ParamSpec("_Settings")
_Yielded = TypeVar("_Yielded")
_Returned = TypeVar("_Returned")


class Returning(Generic[_Yielded, _Returned]):
    """Iterate over a generator, and have what it returned as `value` afterwards."""

    value: _Returned

    def __init__(self, generator: Generator[_Yielded, None, _Returned]) -> None:
        self._generator = generator

    def __iter__(self) -> Iterator[_Yielded]:
        self.value = yield from self._generator

    def finish(self) -> _Returned:
        """Iterate to the end and give what the generator returned."""
        for _ in self:
            pass
        return self.value


class Attack(Generic[_Threat, _Settings]):
    """An attack, made of the generator function that takes its steps."""

    def __init__(self, steps: Callable[Concatenate[nn.Module, Tensor, Tensor, _Threat, _Settings], Steps]) -> None:
        self.steps = steps
        update_wrapper(self, steps)

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: _Threat,
        *options_first: _Settings.args,
        **settings: _Settings.kwargs,
    ) -> AttackResult:
        """Take all steps. Points outside a ball by rounding are replaced by their exact projections, where these fool
        the model as well. Raises BadInput for wrong arguments."""
        options = cast("AttackOptions", options_first[0] if options_first else settings.get("options", DEFAULTS))
        if not options.checked:
            check_points(images, labels)
            threat.check(images.shape[1:])
        found = Returning(self.steps(model, images, labels, threat, *options_first, **settings)).finish()
        if not isinstance(threat, LpThreat):
            return found
        with frozen(model):
            inside, _ = bring_inside(
                model, images, labels, found.adversarial, ~found.robust, threat, chunk_size=options.chunk_size
            )
        return replace(found, adversarial=inside)

    def with_settings(self, **settings: Any) -> "Attack[_Threat, ...]":
        """Give the attack with some of its settings fixed."""
        return Attack(partial(self.steps, **settings))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode without parameter gradients, and restore every flag afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)

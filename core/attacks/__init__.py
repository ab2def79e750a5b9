"""Attacks: pure functions with one contract.

    attack(model, images, labels, norm, eps, *, noise, chunk_size, state, ...) -> AttackResult

model       maps images to logits (batch, classes); it is attacked in eval mode and handed back in the mode it was in,
            with its parameters' gradients and `requires_grad` untouched
images      (batch, channels, height, width) in [0, 1]
labels      (batch,) class indices
norm, eps   the ball: "linf", "l2" or "l1", and its radius in pixel units of images in [0, 1]
noise       the only source of randomness, a stream per logical batch (`core.attacks.rng`): the global random state is
            neither read nor changed
chunk_size     how many points go through the model together; changes time and memory, not the verdicts
state       what an earlier call on the same points had come to: it goes on from there

`attack.steps(...)` takes the same and is a generator: after each step the state can be had, from which another call
goes on to the very same result.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, Generic, ParamSpec

from torch import Tensor, nn


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, per point."""

    adversarial: Tensor
    """(batch, channels, height, width): the point found, inside ball and box."""
    robust: Tensor
    """(batch,) bool: whether the model stayed right at every point that the attack looked at."""
    loss: Tensor
    """(batch,): the loss at `adversarial`; the attack says which loss."""

    def state(self, images: Tensor) -> "State":
        """Give it as part of a state. images (batch, ...): what was attacked; where nothing is found it is left out."""
        found = (self.adversarial != images).flatten(1).any(1).nonzero().squeeze(1)
        return {"robust": self.robust, "loss": self.loss, "found": found, "adversarial": self.adversarial[found]}

    def restore(self, state: "State") -> None:
        """Put what was found into the result of an attack that has just begun."""
        self.robust.copy_(state["robust"])
        self.loss.copy_(state["loss"])
        self.adversarial[state["found"].to(self.robust.device)] = state["adversarial"].to(self.adversarial)


State = dict[str, Tensor]
"""All that an attack needs to go on from where it was, besides what it is called with."""

Steps = Generator[Callable[[], State], None, AttackResult]
"""After each step comes a function that gives the state, until the next step; its tensors may be the attack's own."""

_Asked = ParamSpec("_Asked")


class Attack(Generic[_Asked]):
    """An attack, made of the generator that takes its steps."""

    def __init__(self, steps: Callable[_Asked, Steps]) -> None:
        self.steps = steps
        update_wrapper(self, steps)

    def __call__(self, *args: _Asked.args, **options: _Asked.kwargs) -> AttackResult:
        """Take all steps."""
        steps = self.steps(*args, **options)
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                result: AttackResult = stop.value
                return result

    def set(self, **options: Any) -> "Attack[...]":
        """Settle some of its options."""
        return Attack(partial(self.steps, **options))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode without parameter gradients, and put back every flag as it was."""
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

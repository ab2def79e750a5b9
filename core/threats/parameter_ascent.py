"""Sign ascent on the parameters of a differentiable distortion (Kang et al. 2019, arXiv 1908.08016).

The loss is the cross-entropy of the true class. Its gradient with respect to the image comes from the model, and is
pulled back through the distortion to the parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from core.attacks import AttackOptions, RunningResult, State, Steps, begin, frozen
from core.attacks.forward import fools, is_answered, loss_and_gradient, loss_of, predict
from core.attacks.losses import cross_entropy
from core.geometry import per_image
from core.threats.random_numbers import PointNumbers

STEPS = 100
"""The default number of steps, as in `core/schema/threats.toml`."""


@dataclass(frozen=True)
class Distortion(ABC):
    """A distortion of a number of points: what it needs beside their images and parameters.

    Every field that is a tensor has the points as first dimension.
    """

    @abstractmethod
    def apply(self, images: Tensor, parameters: Tensor, *, first: bool) -> Tensor:
        """Distort images (points, channels, height, width) to images in [0, 1], differentiably in the parameters.

        first: whether these are the parameters that the ascent starts from.
        """

    @abstractmethod
    def restrict(self, parameters: Tensor) -> Tensor:
        """Bring parameters (points, ...) back into their range."""

    def pick(self, indices: Tensor | slice) -> Self:
        """Give the distortion of some of the points; indices: (n,), a mask (points,) or a slice."""
        return replace(self, **{name: tensor[indices] for name, tensor in self._tensors().items()})

    def join(self, others: "list[Self]") -> Self:
        """Give the distortion of its points and those of others, in this order."""
        parts = [self, *others]
        return replace(self, **{name: torch.cat([part._tensors()[name] for part in parts]) for name in self._tensors()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


class Drawn(NamedTuple):
    """What is drawn at random for a number of points before the ascent."""

    distortion: Distortion
    parameters: Tensor
    """(points, ...): where the ascent starts, in their range."""


Draw = Callable[[Tensor, PointNumbers], Drawn]
"""Draws for images (points, channels, height, width), with their numbers. In compat the points are a logical batch."""


def climb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    draw: Draw,
    options: AttackOptions,
    *,
    steps: int,
    reach: float,
    compat: bool,
) -> Steps:
    """Take `steps` steps of reach / sqrt(steps) along the sign of the gradient, from parameters drawn at random.

    reach: half the width of the parameters' range. (The authors give eps here, even where a range has another width;
    so does compat.) `loss` is the cross-entropy. A point leaves at its first iterate that fools the model, which is
    `adversarial`; for a robust point that is the iterate of highest loss. compat: all points stay to the end, and the
    last iterate alone counts; points of a logical batch are distorted together; a pixel that the distortion makes NaN
    is that of the image.

    `late` tells of the last tenth of the iterates; `no_gradient` and `nan_gradients` are about the gradient with
    respect to the parameters. An image that the model does not classify correctly is not robust, and `adversarial`
    itself.
    """
    size = reach / sqrt(max(steps, 1))
    with frozen(model):
        logits = predict(model, images, chunk_size=options.chunk_size)
        result = begin(images, labels, logits, cross_entropy, options)
        right = result.robust.clone()
        numbers = PointNumbers(options.seed, images)
        batches = list(options.batch_sizes or [len(images)]) if compat else None
        done = 0
        indices = torch.arange(len(images), device=images.device)[slice(None) if compat else right]
        if state := options.state:
            result.restore(state)
            done, indices = int(state["done"]), state["indices"].to(images.device)
        if len(indices) == 0 or not bool(right.any()):
            return result.finish()
        points = _Points.draw(indices, images, labels, numbers, draw, batches, options.chunk_size)
        if state:
            points.parameters = state["parameters"].to(points.parameters)

        def state_now() -> State:
            progress = {"done": torch.tensor(done), "indices": points.indices, "parameters": points.parameters}
            return {**result.state(images), **progress}

        while len(points.indices):
            found = points.look(model, first=done == 0, slope=done < steps)
            is_late = 10 * done > 9 * steps
            stays = _enter(found, points, result, right, is_first=done == 0, is_late=is_late, compat=compat)
            if done == steps:
                break
            points.parameters = points.distortion.restrict(points.parameters + size * found.slope.sign())
            points.keep(stays)
            done += 1
            yield state_now
        return result.finish()


class _Look(NamedTuple):
    """What the model says of the distorted images of a number of points."""

    distorted: Tensor
    logits: Tensor
    loss: Tensor
    slope: Tensor
    """(points, ...): of the loss, with respect to the parameters; (points, 0) where it was not asked for."""
    nan_gradients: Tensor
    """(points,) bool."""


@dataclass
class _Points:
    """The points under attack."""

    indices: Tensor
    """(points,): among all points."""
    images: Tensor
    labels: Tensor
    distortion: Distortion
    parameters: Tensor
    batches: list[int] | None
    """Points of each logical batch, which are distorted together; None where each is by itself."""
    chunk_size: int | None

    @classmethod
    def draw(
        cls,
        indices: Tensor,
        images: Tensor,
        labels: Tensor,
        numbers: PointNumbers,
        draw: Draw,
        batches: list[int] | None,
        chunk_size: int | None,
    ) -> Self:
        """Draw for the points at `indices`; images, labels and numbers are of all points."""
        parts = [indices[part] for part in _parts(len(indices), batches, chunk_size)]
        drawn = [draw(images[part], numbers.pick(part)) for part in parts]
        first, *others = (part.distortion for part in drawn)
        parameters = torch.cat([part.parameters for part in drawn])
        return cls(indices, images[indices], labels[indices], first.join(others), parameters, batches, chunk_size)

    def look(self, model: nn.Module, *, first: bool, slope: bool) -> _Look:
        """Classify the distorted images, with the slope of the loss if it is asked for."""
        parts = _parts(len(self.images), self.batches, self.chunk_size)
        looks = [self._look(model, part, first=first, slope=slope) for part in parts]
        return looks[0] if len(looks) == 1 else _Look(*map(torch.cat, zip(*looks, strict=True)))

    def _look(self, model: nn.Module, part: slice, *, first: bool, slope: bool) -> _Look:
        images, labels = self.images[part], self.labels[part]
        parameters = self.parameters[part].detach().requires_grad_(slope)
        with torch.set_grad_enabled(slope):
            distorted = self.distortion.pick(part).apply(images, parameters, first=first)
        seen = distorted.detach()
        if self.batches is not None:
            seen = images.where(seen.isnan(), seen)
        if not slope:
            logits = predict(model, seen, chunk_size=self.chunk_size)
            loss = loss_of(cross_entropy, logits, labels, labels)
            return _Look(
                seen, logits, loss, images.new_zeros(len(images), 0), torch.zeros_like(labels, dtype=torch.bool)
            )
        logits, loss, gradient, nan_gradients = loss_and_gradient(
            model, seen, cross_entropy, labels, labels, chunk_size=self.chunk_size
        )
        (pulled,) = torch.autograd.grad(distorted, parameters, gradient)
        nan_gradients = nan_gradients | pulled.isnan().flatten(1).any(1)
        return _Look(seen, logits, loss, pulled.nan_to_num(nan=0.0), nan_gradients)

    def keep(self, which: Tensor) -> None:
        """Drop all points but those marked in `which` (points,)."""
        if bool(which.all()):
            return
        self.indices, self.images, self.labels = self.indices[which], self.images[which], self.labels[which]
        self.distortion, self.parameters = self.distortion.pick(which), self.parameters[which]


def _parts(points: int, batches: list[int] | None, chunk_size: int | None) -> Iterator[slice]:
    """Cut the points into what is distorted together: logical batches, or chunks, which change no result."""
    chunk = chunk_size or points
    start = 0
    for size in batches or [chunk] * ceil(points / chunk):
        yield slice(start, start + size)
        start += size


def _enter(
    found: _Look,
    points: _Points,
    result: RunningResult,
    right: Tensor,
    *,
    is_first: bool,
    is_late: bool,
    compat: bool,
) -> Tensor:
    """Enter an iterate of the points into the result, and mark those that stay under attack, (points,) bool.

    right (batch,): whether the model classifies the images correctly.
    """
    indices = points.indices
    fooled = fools(found.logits, points.labels)
    result.not_finite[indices] |= ~is_answered(found.logits)
    if found.slope.shape[1]:
        result.nan_gradients[indices] |= found.nan_gradients
        without = (found.slope == 0).flatten(1).all(1)
        result.no_gradient[indices] = without if is_first else result.no_gradient[indices] & without
    counts = right[indices] & (True if compat or is_first else fooled | (found.loss > result.loss[indices]))
    result.loss[indices] = found.loss.where(counts, result.loss[indices])
    result.adversarial[indices] = found.distorted.where(per_image(counts, found.distorted), result.adversarial[indices])
    newly = result.robust[indices] & fooled
    result.late[indices] = (result.late[indices] | (newly & is_late)) & fooled
    result.robust[indices] = right[indices] & ~fooled
    return torch.ones_like(fooled) if compat else ~fooled

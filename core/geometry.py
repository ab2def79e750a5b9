"""Geometry of linf, l2 and l1: length, steepest ascent, projection and random starts.

Images are (batch, channels, height, width) in [0, 1]; every function treats each image of a batch independently, and
none makes the host wait for the device. The l1 geometry follows Croce & Hein, "Mind the box" (ICML 2021, arXiv
2103.01208). The steps of FAB onto planes are in `core.attacks.planes`.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from core.schema.catalog import Norm

Rounding = Literal["exact", "autoattack"]
"""The ways to compute the l1 projection. exact: by halving, fast on large images, and inside the box. autoattack: by
sorting, with the bits of AutoAttack, which may lie outside the box by rounding."""

_TINY = 1e-12
# 26 halvings bring the threshold of the l1 projection below float32 resolution, whatever the number of pixels, and 55
# below that of float64, which only the exact projection needs.
_HALVINGS, _EXACT_HALVINGS = 26, 55


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Reshape values (batch,) so that they broadcast over the images."""
    return values.view(-1, *[1] * (images.dim() - 1))


def length(delta: Tensor, norm: Norm) -> Tensor:
    """Measure each perturbation: (batch, ...) -> (batch,)."""
    flat = delta.flatten(1)
    match norm:
        case "linf":
            return flat.abs().amax(1)
        case "l2":
            return flat.square().sum(1).sqrt()
        case "l1":
            return flat.abs().sum(1)


def is_sparse(norm: Norm) -> bool:
    """Tell whether the longest steps uphill in a norm change few pixels, so that an attack chooses how many."""
    return norm == "l1"


def count_changed(delta: Tensor) -> Tensor:
    """Count the pixels that each perturbation changes: (batch, ...) -> (batch,) of the perturbation's dtype."""
    return (delta.flatten(1) != 0).sum(1).to(delta.dtype)


def rescale(delta: Tensor, norm: Norm) -> Tensor:
    """Give each perturbation length one in the norm; a zero perturbation stays zero."""
    return delta / (per_image(length(delta, norm), delta) + _TINY)


def ascend(gradient: Tensor, norm: Norm, size: Tensor, *, topk_fraction: Tensor | None = None) -> Tensor:
    """Return the step of length `size` (batch,) along which a linear function with this gradient grows most.

    For l1 that is one pixel; spreading the step evenly over the pixels of largest gradient is what works on networks.
    topk_fraction: (batch,) share of pixels, in [0, 1], that an l1 step may change; at least one pixel always is.
    """
    by = per_image(size, gradient)
    match norm:
        case "linf":
            return by * gradient.sign()
        case "l2":
            return by * rescale(gradient, "l2")
        case "l1":
            signs = gradient.sign() * _largest(gradient.abs(), topk_fraction)
            # In this order, which rounds as AutoAttack does.
            return by * signs / (per_image(length(signs, "l1"), signs) + 1e-10)


def _largest(sizes: Tensor, topk_fraction: Tensor | None) -> Tensor:
    """Mark the entries not smaller than the one at quantile 1 - topk_fraction of their image."""
    flat = sizes.flatten(1)
    pixels = flat.shape[1]
    if topk_fraction is None:
        threshold = flat.amax(1, keepdim=True)
    else:
        rank = ((1 - topk_fraction) * pixels).clamp(0, pixels - 1).long()
        threshold = _nth_largest(flat, (pixels - rank)[:, None])
    return sizes >= per_image(threshold.squeeze(1), sizes)


def _nth_largest(sizes: Tensor, n: Tensor) -> Tensor:
    """Find the n-th largest entry (batch, 1) of sizes (batch, pixels), none negative; n (batch, 1) counts from 1."""
    if sizes.device.type == "cpu":
        # Partial sorting is quickest, but the host has to know how far to sort: on a GPU it would wait for that.
        return sizes.topk(int(n.max()), 1).values.gather(1, n - 1)
    return _nth_largest_by_bits(sizes, n)


def _nth_largest_by_bits(sizes: Tensor, n: Tensor) -> Tensor:
    """Numbers that are not negative are ordered as their bits are: build the answer up from its highest bit."""
    kind = torch.int32 if sizes.dtype == torch.float32 else torch.int64
    bits = sizes.contiguous().view(kind)
    found = torch.zeros_like(n, dtype=kind)
    for bit in reversed(range(31 if kind == torch.int32 else 63)):
        larger = found | (1 << bit)
        found = torch.where((bits >= larger).sum(1, keepdim=True) >= n, larger, found)
    return found.view(sizes.dtype)


def project(images: Tensor, perturbed: Tensor, norm: Norm, eps: float, *, rounding: Rounding = "exact") -> Tensor:
    """Project perturbed images onto the eps-ball around `images` intersected with the box [0, 1].

    linf and l1 give the closest point of the intersection; l2 shrinks the perturbation, then clips to the box, as APGD
    does (Croce & Hein 2020), which lies inside both but need not be the closest. rounding: matters in l1 alone, where
    the next step of an attack depends on which pixels it has changed at all: with other bits than AutoAttack's, three
    verdicts of 200 on CIFAR-10 differ from AutoAttack's.
    """
    match norm:
        case "linf":
            return perturbed.clamp(images - eps, images + eps).clamp(0, 1)
        case "l2":
            delta = perturbed - images
            radius = per_image(length(delta, "l2"), delta).clamp(max=eps)
            return (images + rescale(delta, "l2") * radius).clamp(0, 1)
        case "l1" if rounding == "autoattack":
            delta = perturbed - images
            return images + delta + l1_correction(images, delta, eps)
        case "l1":
            return _project_l1(images, perturbed, eps)


def project_inside(images: Tensor, perturbed: Tensor, norm: Norm, eps: float) -> Tensor:
    """Project as `project` does, in float64, and round each pixel towards its image: no result is outside by rounding.

    Such a result has at most the length eps, to within rounding of float64, when it is measured in float64.
    """
    exact = images.double()
    if norm == "l1":
        aim = _project_l1(exact, perturbed.double(), eps, _EXACT_HALVINGS)
    else:
        aim = project(exact, perturbed.double(), norm, eps)
    found = aim.to(images.dtype)
    too_far = (found.double() - exact).abs() > (aim - exact).abs()
    return torch.where(too_far, found.nextafter(images), found)


def into_ball(images: Tensor, start: Tensor, norm: Norm, eps: float) -> Tensor:
    """Bring starting points into ball and box, in l1 with the rounding of AutoAttack."""
    match norm:
        case "linf" | "l2":
            return project(images, start, norm, eps)
        case "l1":
            return start + l1_correction(images, start - images, eps)


def _project_l1(images: Tensor, perturbed: Tensor, eps: float, halvings: int = _HALVINGS) -> Tensor:
    """Find the closest point of the l1 ball intersected with the box.

    By the optimality conditions that point shortens every pixel's change by one common threshold, down to zero and no
    further out than the box allows. The kept length falls piecewise linearly with the threshold: halving brackets it
    between two kinks, and the linear piece in between gives it in closed form.
    """
    delta = perturbed - images
    size = delta.abs().flatten(1)
    room = torch.where(delta > 0, 1 - images, images).flatten(1)
    low, high = torch.zeros_like(size[:, :1]), size.amax(1, keepdim=True)
    for _ in range(halvings):
        middle = (low + high) / 2
        too_long = (size - middle).clamp_(min=0).minimum(room).sum(1, keepdim=True) > eps
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    middle = (low + high) / 2
    at_the_box = size - middle >= room
    shortened = (size > middle) & ~at_the_box
    kept = torch.where(at_the_box, room, size * shortened).sum(1, keepdim=True)
    threshold = (kept - eps) / shortened.sum(1, keepdim=True).clamp(min=1)
    threshold = threshold.minimum(high).maximum(low)
    fits_already = size.minimum(room).sum(1, keepdim=True) <= eps
    threshold = threshold.masked_fill(fits_already, 0)
    change = (size - threshold).clamp_(min=0).minimum(room).view_as(delta)
    return images + delta.sign() * change


def l1_correction(images: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Compute the change that brings images + delta into the l1 ball and the box, with the bits of AutoAttack.

    images, delta (batch, ...); returns (batch, ...). AutoAttack adds it to images + delta in a step and to the starting
    point itself in a start, which rounds differently. It sorts the thresholds at which a pixel comes off the edge of
    the box or reaches zero, and sums how much the pieces in between shorten ("Mind the box", section 3.1), which costs
    more than halving on large images.
    """
    image, change = images.flatten(1), delta.flatten(1)
    size = change.abs()
    outside = torch.minimum(1 - image - change, image + change).clamp(max=0)
    kinks, order = (-torch.cat([outside, -size], dim=1)).sort(dim=1)
    # A pixel starts to be shortened at its first kink and ends at its second.
    shortened = torch.where(order < size.shape[1], 1.0, -1.0).cumsum(1)
    pieces = (kinks.diff(dim=1) * shortened[:, :-1]).cumsum(1)
    cut_by_the_box = -outside.sum(1, keepdim=True)
    cut = torch.cat([cut_by_the_box, cut_by_the_box + pieces], dim=1)
    missing = eps - size.sum(1, keepdim=True)
    last = ((cut + missing < 0).sum(1, keepdim=True) - 1).clamp(min=0)
    threshold = (-cut.gather(1, last) - missing) / shortened.gather(1, last) + kinks.gather(1, last)
    too_long = cut_by_the_box + missing < 0
    shift = torch.where(too_long, -torch.minimum(torch.maximum(-outside, threshold), size), outside)
    return (change.sign() * shift).view_as(images)


class Draws(Protocol):
    """A source of random numbers for some of a set of points, such as `core.attacks.rng.Noise`."""

    def normal(self, indices: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (len(indices), *shape) standard normal numbers."""

    def uniform(self, indices: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw (len(indices), *shape) numbers, uniform in [0, 1)."""


def random_start(images: Tensor, norm: Norm, eps: float, draws: Draws, indices: Tensor) -> Tensor:
    """Draw a starting point in ball and box as APGD does: at distance eps, then projected onto the box.

    indices (batch,): the indices of these images among all points, for the draws.
    """
    shape = images.shape[1:]
    match norm:
        case "linf":
            noise = 2 * draws.uniform(indices, shape) - 1
        case "l2" | "l1":
            noise = draws.normal(indices, shape)
    noise = noise.to(images)
    if norm == "l1":
        return into_ball(images, images + noise, norm, eps)
    return (images + eps * rescale(noise, norm)).clamp(0, 1)

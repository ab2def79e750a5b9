"""Norm geometry against closed forms and against a slow solver."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pyautoattack.autopgd_base import L1_projection
from torch import Tensor

from core import geometry
from core.attacks.rng import Noise
from core.geometry import (
    ascend,
    count_changed,
    l1_correction,
    length,
    project,
    project_inside,
    random_start,
    rescale,
)
from core.schema.catalog import NORMS, Norm

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


@st.composite
def points(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """Images in the box, points anywhere around them, and a radius."""
    shape = (draw(st.integers(1, 4)), 1, draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    pixel = st.floats(0, 1, width=32)
    images = draw(arrays.arrays(np.float32, shape, elements=pixel))
    moved = draw(arrays.arrays(np.float32, shape, elements=st.floats(-2, 3, width=32)))
    return torch.from_numpy(images), torch.from_numpy(moved), draw(st.floats(0.01, 4))


@pytest.mark.parametrize("norm", NORMS)
@given(points())
def test_projected_points_lie_in_ball_and_box(norm: Norm, case: tuple[Tensor, Tensor, float]) -> None:
    images, moved, eps = case
    projected = project(images, moved, norm, eps)
    assert (length(projected - images, norm) <= eps * (1 + 1e-5) + 1e-6).all()
    assert (projected >= -1e-6).all()
    assert (projected <= 1 + 1e-6).all()


@pytest.mark.parametrize("norm", NORMS)
@given(points())
def test_projecting_twice_is_projecting_once(norm: Norm, case: tuple[Tensor, Tensor, float]) -> None:
    images, moved, eps = case
    once = project(images, moved, norm, eps)
    torch.testing.assert_close(project(images, once, norm, eps), once, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@given(points())
def test_points_already_inside_stay_where_they_are(norm: Norm, case: tuple[Tensor, Tensor, float]) -> None:
    images, moved, eps = case
    inside = images + 0.9 * (project(images, moved, norm, eps) - images)
    torch.testing.assert_close(project(images, inside, norm, eps), inside, atol=1e-6, rtol=1e-5)


@given(points())
def test_sorting_projects_as_halving_does(case: tuple[Tensor, Tensor, float]) -> None:
    images, moved, eps = case
    sorted_out = project(images, moved, "l1", eps, rounding="autoattack")
    torch.testing.assert_close(sorted_out, project(images, moved, "l1", eps), atol=1e-5, rtol=0)


def test_sorting_projects_with_the_bits_of_autoattack() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 12, 12, generator=generator)
    delta = torch.randn(images.shape, generator=generator) * torch.logspace(-3, 0.5, 40).view(-1, 1, 1, 1)
    theirs = images + delta + L1_projection(images, delta, 12.0)
    assert torch.equal(images + delta + l1_correction(images, delta, 12.0), theirs)


@settings(max_examples=40)
@pytest.mark.parametrize("norm", ["linf", "l1"])
@given(points())
def test_no_point_of_ball_and_box_is_closer_than_the_projection(norm: Norm, case: tuple[Tensor, Tensor, float]) -> None:
    images, moved, eps = case
    projected = project(images, moved, norm, eps).flatten(1).double().numpy()
    clean, target = images.flatten(1).double().numpy(), moved.flatten(1).double().numpy()
    for image, point, ours in zip(clean, target, projected, strict=True):
        slow = _closest_by_dykstra(image, point, norm, eps)
        assert np.linalg.norm(ours - point) <= np.linalg.norm(slow - point) + 1e-4
        np.testing.assert_allclose(ours, slow, atol=2e-3)


def _closest_by_dykstra(image: np.ndarray, point: np.ndarray, norm: Norm, eps: float) -> np.ndarray:
    """Project onto two convex sets in turn with Dykstra's corrections, which converges to the closest common point."""
    into_ball = {"l1": _into_l1_ball, "linf": lambda delta, eps: np.clip(delta, -eps, eps)}[norm]
    current, ball_correction, box_correction = point.copy(), np.zeros_like(point), np.zeros_like(point)
    for _ in range(3000):
        in_ball = image + into_ball(current + ball_correction - image, eps)
        ball_correction = current + ball_correction - in_ball
        current = np.clip(in_ball + box_correction, 0, 1)
        box_correction = in_ball + box_correction - current
        if np.abs(current - in_ball).max() < 1e-9:
            break
    return current


def _into_l1_ball(delta: np.ndarray, eps: float) -> np.ndarray:
    """Shrink all entries by one threshold (Duchi et al. 2008, figure 1)."""
    if np.abs(delta).sum() <= eps:
        return delta
    sizes = np.sort(np.abs(delta))[::-1]
    thresholds = (np.cumsum(sizes) - eps) / np.arange(1, len(sizes) + 1)
    threshold = thresholds[np.nonzero(sizes > thresholds)[0][-1]]
    return np.sign(delta) * np.maximum(np.abs(delta) - threshold, 0)


@pytest.mark.parametrize("norm", NORMS)
@given(points())
def test_no_projection_inside_is_outside_by_rounding(norm: Norm, case: tuple[Tensor, Tensor, float]) -> None:
    images, perturbed, eps = case
    found = project_inside(images, perturbed, norm, eps)
    assert found.dtype == images.dtype
    assert ((found >= 0) & (found <= 1)).all()
    assert (length(found.double() - images.double(), norm) <= eps * (1 + 1e-12)).all()
    torch.testing.assert_close(found, project(images, perturbed, norm, eps), rtol=0, atol=2e-5)


def test_projections_of_large_images_are_inside_where_those_of_autoattack_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 224, 224, generator=generator)
    delta = 0.2 * torch.randn(images.shape, generator=generator)
    theirs = images + delta + l1_correction(images, delta, 255.0)
    assert (length(theirs.double() - images.double(), "l1") > 255 * (1 + 1e-6)).any()
    inside = project_inside(images, theirs, "l1", 255.0)
    distance = length(inside.double() - images.double(), "l1")
    assert ((distance > 254.99) & (distance <= 255)).all()


def test_l2_projection_is_the_closest_point_where_the_box_does_not_bind() -> None:
    images = torch.full((8, 3, 4, 4), 0.5)
    moved = images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    delta = moved - images
    expected = images + delta * (0.4 / delta.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(project(images, moved, "l2", 0.4), expected)


def test_l1_projection_of_a_large_batch_uses_up_the_radius() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 32, 32, generator=generator)
    moved = images + torch.randn(images.shape, generator=generator)
    used = length(project(images, moved, "l1", 12.0) - images, "l1")
    torch.testing.assert_close(used, torch.full((16,), 12.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_ascent_reaches_the_dual_norm(norm: Norm) -> None:
    gradient = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    size = torch.arange(1.0, 6.0)
    step = ascend(gradient, norm, size)
    torch.testing.assert_close(length(step, norm), size)
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), size * length(gradient, _DUAL[norm]))


def test_an_l1_step_changes_the_asked_share_of_pixels_evenly() -> None:
    gradient = torch.randn(3, 1, 10, 10, generator=torch.Generator().manual_seed(2))
    step = ascend(gradient, "l1", torch.ones(3), topk_fraction=torch.tensor([0.05, 0.2, 0.5]))
    assert count_changed(step).tolist() == [5, 20, 50]
    smallest_changed = gradient.abs().masked_fill(step == 0, 9).flatten(1).amin(1)
    largest_unchanged = gradient.abs().masked_fill(step != 0, 0).flatten(1).amax(1)
    assert (smallest_changed > largest_unchanged).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_perturbation_has_no_direction(norm: Norm) -> None:
    assert rescale(torch.zeros(2, 1, 3, 3), norm).abs().max() == 0


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_lie_in_ball_and_box_and_repeat_with_the_seed(norm: Norm) -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    first, again, other = (random_start(images, norm, 0.3, Noise(seed, [6]), torch.arange(6)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (length(first - images, norm) <= 0.3 * (1 + 1e-4)).all()
    # In l1 by AutoAttack's rounding.
    assert first.min() >= -1e-6
    assert first.max() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_nth_largest_is_the_one_that_sorting_gives(dtype: torch.dtype, on_cpu: bool) -> None:
    sizes = torch.rand(8, 50, generator=torch.Generator().manual_seed(0), dtype=dtype)
    sizes[0] = 0
    sizes[1, :30] = 0.25
    n = torch.tensor([1, 20, 50, 1, 2, 25, 49, 50])[:, None]
    expected = sizes.sort(1, descending=True).values.gather(1, n - 1)
    found = geometry._nth_largest(sizes, n) if on_cpu else geometry._nth_largest_by_bits(sizes, n)
    assert torch.equal(found, expected)

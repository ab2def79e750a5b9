"""Steps onto planes against a linear program and against pyautoattack."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from scipy.optimize import linprog
from torch import Tensor

from core.attacks.planes import step_onto_plane
from core.geometry import per_image
from core.schema.catalog import NORMS, Norm

_THEIRS = {"linf": projection_linf, "l2": projection_l2, "l1": projection_l1}


@st.composite
def planes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Points in the box, and slopes and heights of linear functions, many of them flat, tied or out of reach."""
    shape = (draw(st.integers(1, 4)), 1, draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    pixels = draw(arrays.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    slopes = draw(arrays.arrays(np.float32, shape, elements=st.integers(-16, 16))) / 8
    heights = draw(arrays.arrays(np.float32, shape[:1], elements=st.floats(-4, 4, width=32)))
    return torch.from_numpy(pixels), torch.from_numpy(slopes), torch.from_numpy(heights)


@settings(max_examples=60)
@pytest.mark.parametrize("norm", NORMS)
@given(planes())
def test_no_step_inside_the_box_onto_the_plane_is_shorter(norm: Norm, case: tuple[Tensor, Tensor, Tensor]) -> None:
    points, slopes, heights = case
    steps = step_onto_plane(points, slopes, heights, norm)
    assert (points + steps >= -1e-6).all()
    assert (points + steps <= 1 + 1e-6).all()
    assert (steps[slopes == 0] == 0).all()
    left = heights + (slopes * steps).flatten(1).sum(1)
    room = torch.where(per_image(heights > 0, slopes) == (slopes > 0), points, 1 - points)
    most = (slopes.abs() * room).flatten(1).sum(1)
    torch.testing.assert_close(left.abs(), (heights.abs() - most).clamp(min=0), atol=1e-5, rtol=1e-5)
    for point, slope, height, step, reach in zip(points, slopes, heights, steps, most, strict=True):
        # The linear program holds its equations to 1e-7, and takes a smaller height than that for out of reach.
        if 1e-5 < abs(height) < 0.999 * reach:
            _check_shortest(*(tensor.flatten().double().numpy() for tensor in (point, slope, height, step)), norm)


def _check_shortest(point: np.ndarray, slope: np.ndarray, height: np.ndarray, step: np.ndarray, norm: Norm) -> None:
    """Ask a linear program for the least length.

    For l2 it is asked for the step with the least product with ours: the shortest of a convex set has none below its
    own with itself.
    """
    pixels = len(point)
    bounds = list(zip(-point, 1 - point, strict=True))
    match norm:
        case "l2":
            least = linprog(step, A_eq=slope[None], b_eq=-height, bounds=bounds).fun
            assert least >= step @ step * (1 - 1e-4) - 1e-6
        case "linf":
            sizes = np.block([[np.eye(pixels), -np.ones((pixels, 1))], [-np.eye(pixels), -np.ones((pixels, 1))]])
            goal, plane = np.append(np.zeros(pixels), 1), np.append(slope, 0)[None]
            least = linprog(
                goal, A_ub=sizes, b_ub=np.zeros(2 * pixels), A_eq=plane, b_eq=-height, bounds=[*bounds, (0, None)]
            ).fun
            np.testing.assert_allclose(np.abs(step).max(), least, atol=1e-5)
        case "l1":
            up_and_down = [(0, high) for _, high in bounds] + [(0, -low) for low, _ in bounds]
            plane = np.concatenate([slope, -slope])[None]
            least = linprog(np.ones(2 * pixels), A_eq=plane, b_eq=-height, bounds=up_and_down).fun
            np.testing.assert_allclose(np.abs(step).sum(), least, atol=1e-5)


@pytest.mark.parametrize("pixels", [64, 3072])
@pytest.mark.parametrize("norm", NORMS)
def test_steps_onto_planes_are_those_of_pyautoattack(norm: Norm, pixels: int) -> None:
    generator = torch.Generator().manual_seed(4)
    points = (1.6 * torch.rand(40, 1, pixels // 8, 8, generator=generator) - 0.3).clamp(0, 1)
    slopes = torch.randn(points.shape, generator=generator)
    # From next to the plane to twice as far as most of the box.
    heights = (
        torch.logspace(-3, 0, 40) * 0.5 * slopes.abs().sum((1, 2, 3)) * torch.randn(40, generator=generator).sign()
    )
    expected = _THEIRS[norm](points.flatten(1), slopes.flatten(1), (slopes * points).sum((1, 2, 3)) - heights)
    steps = step_onto_plane(points, slopes, heights, norm)
    torch.testing.assert_close(steps.flatten(1), expected, atol=2e-4, rtol=1e-3)
    # Stacked points give what each gives by itself.
    others = points.flip(0)
    stacked = step_onto_plane(torch.stack([points, others]), slopes, torch.stack([heights, -heights]), norm)
    torch.testing.assert_close(stacked[0], steps)
    torch.testing.assert_close(stacked[1], step_onto_plane(others, slopes, -heights, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_onto_a_plane_is_exact_where_pixels_end_at_every_scale(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(5)
    points, slopes = (10 ** (-6 * torch.rand(50, 1, 8, 8, generator=generator)) for _ in range(2))
    heights = (points * slopes).sum((1, 2, 3)) * torch.linspace(0.01, 0.99, 50)
    steps = step_onto_plane(points, slopes, heights, norm)
    torch.testing.assert_close((slopes * -steps).sum((1, 2, 3)), heights, atol=0, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_no_slope_means_no_step(norm: Norm) -> None:
    points = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    steps = step_onto_plane(points, torch.zeros_like(points), torch.tensor([1.0, -1.0, 0.0]), norm)
    assert torch.equal(steps, torch.zeros_like(points))


def _usual(slopes: Tensor, noise: Tensor) -> Tensor:
    return slopes


def _spread(slopes: Tensor, noise: Tensor) -> Tensor:
    return slopes * 10 ** (-10 * noise)


def _nearly_flat(slopes: Tensor, noise: Tensor) -> Tensor:
    return slopes * 1e-8


def _tied(slopes: Tensor, noise: Tensor) -> Tensor:
    return slopes.sign()


def _sparse(slopes: Tensor, noise: Tensor) -> Tensor:
    return slopes * (noise < 0.3)


@pytest.mark.parametrize("pixels", [1, 64, 49])
@pytest.mark.parametrize("kind", [_usual, _spread, _nearly_flat, _tied, _sparse])
@pytest.mark.parametrize("norm", NORMS)
def test_steps_have_the_bits_of_pyautoattack(norm: Norm, kind: Callable[[Tensor, Tensor], Tensor], pixels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = (1.8 * torch.rand(200, 1, 1, pixels, generator=generator) - 0.4).clamp(0, 1)
    slopes = kind(torch.randn(points.shape, generator=generator), torch.rand(points.shape, generator=generator))
    heights = 0.5 * torch.randn(200, generator=generator) * torch.logspace(-3, 0, 200) * slopes.abs().sum((1, 2, 3))
    products = (slopes * points).flatten(1).sum(1)
    constants = products - heights
    expected = _THEIRS[norm](points.flatten(1), slopes.flatten(1), constants)
    assert torch.equal(step_onto_plane(points, slopes, products - constants, norm).flatten(1), expected)

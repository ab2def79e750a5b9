"""The diamond-square algorithm (Fournier et al. 1982): fractal maps, for fog and frost."""

import torch
from torch import Tensor


def diamond_square(offsets: Tensor, side: int, *, amplitude: float, falloff: float, shift: int = 1) -> Tensor:
    """Draw maps (points, side, side), periodic in both directions, from offsets in [0, 1].

    offsets (points, side² - 1): three for each point of a level's grid, level by level. `side` is a power of two. Each
    level doubles the grid: a new point is the mean of its four neighbours, plus its offset, scaled to (-1, 1) times an
    amplitude that is divided by `falloff` from level to level. shift: how far away the fourth neighbour of the points
    below grid points is; 2 repeats the mistake that `core.threats.fog` describes.
    """
    points = len(offsets)
    grid = offsets.new_zeros(points, 1, 1)
    start = 0
    while (size := grid.shape[1]) < side:
        end = start + 3 * size**2
        noise = (2 * offsets[:, start:end] - 1).view(points, 3, size, size) * amplitude
        rows = grid + grid.roll(-1, 1)
        columns = grid + grid.roll(-1, 2)
        centres = (rows + rows.roll(-1, 2)) / 4 + noise[:, 0]
        across = (columns + centres + centres.roll(1, 1)) / 4 + noise[:, 1]
        down = (rows + centres + centres.roll(shift, 2)) / 4 + noise[:, 2]
        upper = torch.stack([grid, across], 3).flatten(2)
        lower = torch.stack([down, centres], 3).flatten(2)
        grid = torch.stack([upper, lower], 2).flatten(1, 2)
        start, amplitude = end, amplitude / falloff
    return grid

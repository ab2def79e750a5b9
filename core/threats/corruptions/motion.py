"""Motion blur along a line, as ImageMagick's MotionBlurImage computes it."""

import torch
from torch import Tensor


def blur_along(images: Tensor, degrees: Tensor, *, radius: float, sigma: float) -> Tensor:
    """Average each pixel with those that lie in a direction from it, with the weights of half a Gaussian.

    images (points, channels, height, width); degrees (points,): the direction for each, from the x axis to the y axis,
    which points down. The line has 2 `radius` + 1 pixels. Outside the image are its border pixels.
    """
    height, width = images.shape[2:]
    steps = range(int(2 * radius + 1))
    weights = (-0.5 * (torch.tensor(steps).double() / sigma) ** 2).exp()
    weights /= weights.sum()
    radians = degrees.double().deg2rad()
    directions = torch.stack([radians.sin(), radians.cos()])
    points = torch.arange(len(images), device=images.device)[:, None, None]
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    # Indices beside a slice put the channels last.
    blurred = torch.zeros_like(images).permute(0, 2, 3, 1)
    for step, weight in zip(steps, weights.tolist(), strict=True):
        down, right = (step * directions - 0.5).ceil().long()
        from_row = (rows + down[:, None]).clamp(0, height - 1)[:, :, None]
        from_column = (columns + right[:, None]).clamp(0, width - 1)[:, None, :]
        blurred += weight * images[points, :, from_row, from_column]
    return blurred.permute(0, 3, 1, 2)

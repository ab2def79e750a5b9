"""Augmentation on the device: which images can come of one."""

import torch

from core.data.augmentation import augment


def test_crop_flip_shifts_and_mirrors_whole_images() -> None:
    images = torch.arange(1, 65.0).view(1, 1, 8, 8).repeat(200, 2, 1, 1) / 64
    seen = augment(images, "crop-flip", torch.Generator().manual_seed(0))
    assert seen.shape == images.shape
    padded = torch.nn.functional.pad(images[0], [1] * 4)
    windows = [padded[:, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    known = {window.numpy().tobytes(): 0 for shifted in windows for window in (shifted, shifted.flip(2))}
    for image in seen:
        known[image.contiguous().numpy().tobytes()] += 1
    assert len(known) == 18
    assert min(known.values()) >= 1, "each of 9 shifts, plain and mirrored, comes up in 200 draws"


def test_no_augmentation_is_no_change() -> None:
    images = torch.rand(2, 1, 8, 8)
    assert augment(images, "none", torch.Generator()) is images


def test_resized_crops_have_the_areas_and_aspect_ratios_of_the_recipe() -> None:
    rows, columns = torch.arange(12.0)[:, None].expand(12, 16), torch.arange(16.0)[None].expand(12, 16)
    # Each pixel says where it is, so that an image tells which box it shows.
    images = (torch.stack([rows, columns]) / 16).repeat(300, 1, 1, 1)
    seen = augment(images, "resized-crop-flip", torch.Generator().manual_seed(0))
    assert seen.shape == images.shape
    mirrored = seen[:, 1, 5, 2] > seen[:, 1, 5, 9]
    assert 100 < mirrored.sum() < 200
    seen = torch.where(mirrored[:, None, None, None], seen.flip(3), seen) * 16
    # Bilinear sampling of a ramp is the ramp itself, but for the border: from two points inside, the whole box.
    down, across = 12 * (seen[:, 0, 7, 5] - seen[:, 0, 5, 5]) / 2, 16 * (seen[:, 1, 5, 9] - seen[:, 1, 5, 7]) / 2
    areas, shapes = down * across / (12 * 16), across / down
    assert (areas > 0.07).all()
    assert (areas < 1.001).all()
    assert (shapes > 0.74).all()
    assert (shapes < 1.35).all()
    top = seen[:, 0, 5, 5] + 0.5 - 5.5 * down / 12
    left = seen[:, 1, 5, 7] + 0.5 - 7.5 * across / 16
    assert min(top.min(), left.min()) > -1e-3
    assert (top + down).max() < 12.001
    assert (left + across).max() < 16.001

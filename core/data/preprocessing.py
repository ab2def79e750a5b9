"""Bring images to the size that a model takes, as `core.schema.preprocessing` describes."""

import numpy as np
import torch
from PIL import Image

from core.data.labelled_images import LabelledImages
from core.data.split import Split
from core.schema.errors import BadInput
from core.schema.preprocessing import Interpolation, Preprocessing

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return an image as evaluations see it. Pillow's filters are antialiased; the mode of the image stays the same."""
    size = preprocessing.image_size
    if size is None:
        return image
    match preprocessing.resize:
        case "crop":
            return centre(image, size, preprocessing.shorter_side or size, preprocessing.interpolation)
        case "pad":
            return _pad(image, size, preprocessing.interpolation)
        case "stretch":
            return image.resize((size, size), _FILTERS[preprocessing.interpolation])


def centre(image: Image.Image, size: int, shorter_side: int, interpolation: Interpolation) -> Image.Image:
    """Resize the shorter side, and cut out the central `size` x `size` pixels, rounded as torchvision does."""
    width, height = image.size
    if width <= height:
        width, height = shorter_side, int(shorter_side * height / width)
    else:
        width, height = int(shorter_side * width / height), shorter_side
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), _FILTERS[interpolation])
    return resized.crop((left, top, left + size, top + size))


def _pad(image: Image.Image, size: int, interpolation: Interpolation) -> Image.Image:
    """Resize the longer side to `size`, and centre the image on a black square."""
    longer = max(image.size)
    width, height = (max(round(size * side / longer), 1) for side in image.size)
    square = Image.new(image.mode, (size, size))
    square.paste(image.resize((width, height), _FILTERS[interpolation]), ((size - width) // 2, (size - height) // 2))
    return square


def resize(part: LabelledImages, preprocessing: Preprocessing) -> Split:
    """Bring the images of a part in memory to the size that is asked for. Raises BadInput for pixels of other units."""
    if not isinstance(part, Split) or part.white != 255:
        raise BadInput(
            "the images of this data set cannot be resized: their pixels do not go from 0 to 255",
            hint="leave image_size out",
            field="preprocessing.image_size",
        )
    grey = part.shape[0] == 1
    rows = part.pixels[:, 0] if grey else part.pixels.permute(0, 2, 3, 1)
    resized = [
        np.asarray(preprocess(Image.fromarray(np.ascontiguousarray(row)), preprocessing)) for row in rows.numpy()
    ]
    pixels = torch.from_numpy(np.stack(resized))
    return Split(pixels[:, None] if grey else pixels.permute(0, 3, 1, 2).contiguous(), part.labels)

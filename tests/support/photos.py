"""Photos as people have them: of mixed size, some transparent, some turned by EXIF, some grey."""

import io

import numpy as np
from PIL import Image


def photo(number: int, *, seed: int = 0) -> bytes:
    """Encode a photo of 64 to 300 pixels; `number` decides its kind, and with the seed its content."""
    numbers = np.random.default_rng((seed, number))
    width, height = (int(side) for side in numbers.integers(64, 301, 2))
    small = Image.fromarray(numbers.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    picture, content = small.resize((width, height), Image.Resampling.BICUBIC), io.BytesIO()
    match number % 4:
        case 0:
            picture.putalpha(128)
            picture.save(content, "PNG")
        case 1:
            exif = Image.Exif()
            exif[0x0112] = 6
            picture.save(content, "JPEG", exif=exif)
        case 2:
            picture.convert("L").save(content, "JPEG")
        case _:
            picture.save(content, "JPEG")
    return content.getvalue()


def photos(train: int, test: int) -> dict[str, bytes]:
    """Make photos of two classes in class folders."""
    return {
        f"photos/{part}/{label}/{number:03}.jpg": photo(number, seed=10 * row + (part == "test"))
        for row, label in enumerate(("cat", "dog"))
        for part, count in (("train", train), ("test", test))
        for number in range(count)
    }

"""Tiny data sets of files, as tests write them."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def image(value: int, *, size: tuple[int, int] = (6, 5), mode: str = "RGB", kind: str = "PNG") -> bytes:
    """Encode an image of one colour."""
    content = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(content, kind)
    return content.getvalue()


def wide(values: int | np.ndarray, *, size: tuple[int, int] = (6, 5)) -> bytes:
    """Encode a grey PNG of 16 bits; values: one for all pixels, or (height, width) of them."""
    content = io.BytesIO()
    pixels = np.full(size[::-1], values, dtype=np.uint16) if isinstance(values, int) else values
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def two_classes() -> dict[str, bytes]:
    """Two classes, three training images and one test image each; the red channel numbers them."""
    return {
        f"{part}/{label}/{number}.png": image(100 * row + 10 * number + (part == "test"))
        for row, label in enumerate(("cat", "dog"))
        for part, count in (("train", 3), ("test", 1))
        for number in range(count)
    }


def write(files: dict[str, bytes], root: Path, how: str) -> Path:
    """Write files as a folder, a zip or a tar archive; return its path."""
    match how:
        case "folder":
            for name, content in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
            return root
        case "zip":
            with zipfile.ZipFile(root / "data.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return root / "data.zip"
        case _:
            with tarfile.open(root / f"data.{how}", f"w:{how.partition('.')[2]}") as archive:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
            return root / f"data.{how}"

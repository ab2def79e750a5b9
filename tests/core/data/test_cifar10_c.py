"""The official files of CIFAR-10-C, with few points: what is read, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from core.data.cifar10_c import CorruptedFiles
from core.schema.errors import BadInput

_POINTS = 60


def _test_part() -> tuple[Tensor, Tensor]:
    """Make labels and images of bytes in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_POINTS, 3, 8, 8), generator=generator) / 255
    return torch.arange(_POINTS) % 3, images


def _write(folder: Path, **replaced: np.ndarray) -> Path:
    labels, images = _test_part()
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy().astype(int)
    files = {
        "labels": np.tile(labels.numpy().astype(np.uint8), 5),
        "brightness": np.concatenate([(pixels + 13 * severity).clip(0, 255) for severity in range(1, 6)]),
        "fog": np.concatenate([pixels // (severity + 1) for severity in range(1, 6)]),
    }
    folder.mkdir(exist_ok=True)
    for name, array in {**{name: array.astype(np.uint8) for name, array in files.items()}, **replaced}.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_images_are_read_by_corruption_severity_and_point(tmp_path: Path) -> None:
    labels, images = _test_part()
    files = CorruptedFiles.open(_write(tmp_path), ["fog"])
    assert files.shape == (3, 8, 8)
    assert torch.equal(files.labels, labels)
    chosen = torch.tensor([7, 0, 59, 7])
    for severity in (1, 4, 5):
        found = files.images("fog", severity, chosen)
        expected = (images[chosen] * 255).round() // (severity + 1) / 255
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32


def test_the_test_part_of_the_files_is_accepted_with_losses_too(tmp_path: Path) -> None:
    labels, images = _test_part()
    files = CorruptedFiles.open(_write(tmp_path), ["fog"])
    files.check_order(labels, images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    files.check_order(labels, (images + 0.05 * noise).clamp(0, 1))


def test_equal_images_may_change_places(tmp_path: Path) -> None:
    labels, images = _test_part()
    folder = _write(tmp_path)
    brightness = np.load(folder / "brightness.npy")
    brightness.reshape(5, _POINTS, 8, 8, 3)[:, 3:30:3] = brightness.reshape(5, _POINTS, 8, 8, 3)[:, :1]
    np.save(folder / "brightness.npy", brightness)
    images[3:30:3] = images[0]
    CorruptedFiles.open(folder, ["fog"]).check_order(labels, images)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda labels, images: (labels.flip(0), images.flip(0)), "has the label 2 at point 0, where labels.npy has 0"),
        (lambda labels, images: (labels, images.roll(3, 0)), "has other images at 60 of 60 points"),
        (lambda labels, images: (labels[:50], images[:50]), r"has 50 images of 3 x 8 x 8, but the files are for 60"),
        (lambda labels, images: (labels, images[..., :7]), r"has 60 images of 3 x 8 x 7, but the files are for 60"),
    ],
    ids=["other labels", "another order within each class", "a part", "another size"],
)
def test_another_order_or_test_part_is_refused(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], told: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=told) as caught:
        CorruptedFiles.open(_write(tmp_path), ["fog"]).check_order(*change(*_test_part()))
    assert caught.value.field == "corruptions"
    assert "torchvision" in caught.value.hint


def test_all_files_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    with pytest.raises(BadInput, match=r"lacks snow\.npy, frost\.npy$") as caught:
        CorruptedFiles.open(folder, ["fog", "snow", "frost"])
    assert "leave these corruptions out" in caught.value.hint
    (folder / "brightness.npy").unlink()
    (folder / "labels.npy").unlink()
    with pytest.raises(BadInput, match=r"lacks labels\.npy, brightness\.npy$") as caught:
        CorruptedFiles.open(folder, ["fog"])
    assert "leave" not in caught.value.hint
    with pytest.raises(BadInput, match="is not a folder"):
        CorruptedFiles.open(folder / "fog.npy", ["fog"])


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("fog", np.zeros((5 * _POINTS, 8, 8, 3), np.float32), "fog.npy has float32 of shape"),
        ("fog", np.zeros((5 * _POINTS, 3, 8, 8), np.uint8), r"fog.npy has uint8 of shape \(300, 3, 8, 8\)"),
        ("fog", np.zeros((4 * _POINTS, 8, 8, 3), np.uint8), r"fog.npy has uint8 of shape \(240, 8, 8, 3\)"),
        ("brightness", np.zeros(3, np.uint8), r"brightness.npy has uint8 of shape \(3,\)"),
        ("labels", np.zeros(5 * _POINTS, np.float32), "labels.npy has float32"),
        ("labels", np.zeros(301, np.uint8), r"labels.npy has uint8 of shape \(301,\)"),
        ("labels", np.zeros(0, np.uint8), r"labels.npy has uint8 of shape \(0,\)"),
        ("labels", np.arange(5 * _POINTS), "labels.npy has other labels for one severity than for another"),
    ],
)
def test_files_of_another_format_are_refused(name: str, array: np.ndarray, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=told) as caught:
        CorruptedFiles.open(_write(tmp_path, **{name: array}), ["fog"])
    assert caught.value.field == "corruptions"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", pickle.dumps(["fog"])])
def test_a_file_that_is_no_array_is_refused(content: bytes, tmp_path: Path) -> None:
    (_write(tmp_path) / "fog.npy").write_bytes(content)
    with pytest.raises(BadInput, match=r"cannot read .*fog\.npy: "):
        CorruptedFiles.open(tmp_path, ["fog"])


def test_a_cut_off_file_and_an_archive_are_refused(tmp_path: Path) -> None:
    file = _write(tmp_path) / "fog.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"cannot read .*fog\.npy: "):
        CorruptedFiles.open(tmp_path, ["fog"])
    with file.open("wb") as archive:
        np.savez(archive, fog=np.zeros(3))
    with pytest.raises(BadInput, match=r"cannot read .*fog\.npy: "):
        CorruptedFiles.open(tmp_path, ["fog"])


def test_nothing_in_a_file_is_unpickled(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "canary",)  # type: ignore[return-value]

    _write(tmp_path)
    np.save(tmp_path / "fog.npy", np.array([Canary()], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"cannot read .*fog\.npy: .*[Oo]bject"):
        CorruptedFiles.open(tmp_path, ["fog"])
    assert not (tmp_path / "canary").exists()

"""The inspection of an untrusted file: what is found, what is refused, and that a run sees the very same images."""

import ast
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from core import checkpoint, data
from core.cli.console import inspection_lines
from core.data.images import load
from core.data.safe_zip import Caps
from core.intake.inspect import inspect_dataset, inspect_model
from core.models import Blueprint, build
from core.schema import inspection_report
from core.schema.errors import BadDataset, BadInput, BadWeights, OverLimit, UserError
from core.schema.events import Failed
from core.schema.events import read as read_event
from core.schema.import_spec import ImportSpec
from core.schema.inspection_report import DatasetInspection, ModelInspection
from tests.support import forked
from tests.support.images import image, two_classes, write
from tests.support.weight_files import NOT_WEIGHTS

SHIPPED = Path(checkpoint.__file__).parent / "models" / "weights"


def inspect(files: dict[str, bytes], folder: Path, caps: Caps | None = None) -> DatasetInspection:
    return inspect_dataset(write(files, folder, "zip"), folder / "out", caps=caps or Caps())


def png(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def polyglot() -> bytes:
    whole = io.BytesIO(image(3))
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr("hidden.html", b"<script>")
    return whole.getvalue()


def test_a_data_set_is_counted_and_shown(tmp_path: Path) -> None:
    found = inspect(two_classes() | {"README.md": b"hello", "train/cat/notes.txt": b"x"}, tmp_path)
    assert (found.classes, found.shape) == (("cat", "dog"), (3, 5, 6))
    assert (found.train, found.test) == ({"cat": 3, "dog": 3}, {"cat": 1, "dog": 1})
    assert (found.unread, found.refused, found.overlap.count) == (2, 0, 0)
    assert found.sha256 == checkpoint.hash_file(tmp_path / "data.zip")
    assert inspection_report.read((tmp_path / "out" / "report.json").read_bytes()) == found
    for thumbnail in found.thumbnails:
        with Image.open(tmp_path / "out" / thumbnail.file) as opened:
            assert (opened.format, opened.size) == ("PNG", (6, 5))
    assert {(thumbnail.part, thumbnail.label) for thumbnail in found.thumbnails} == {
        (part, label) for part in ("train", "test") for label in ("cat", "dog")
    }


BAD = {
    "60,000 pixels wide and high": (png(60_000, 60_000), "bomb"),
    "larger than any small image": (png(5_000, 5_000), "bomb"),
    "a truncated JPEG": (image(3, kind="JPEG", size=(60, 50))[:-200], "Truncated"),
    "a PNG with nothing behind its header": (png(6, 5)[:45], "truncated"),
    "an image and an archive": (polyglot(), "archive as well"),
    "FITS": (b"SIMPLE  =                    T".ljust(2880), "not a JPEG, PNG, WebP, BMP, TIFF or GIF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG, PNG, WebP, BMP, TIFF or GIF"),
    "HEIC": (b"\0\0\0\x18ftypheic", "it is a HEIC image"),
    "nothing": (b"", "it is empty"),
    "another size": (image(3, size=(9, 9)), "it is not 6 x 5, the most frequent size"),
}


@pytest.mark.parametrize("what", list(BAD))
def test_an_image_that_cannot_be_used_is_refused_alone_with_its_reason(what: str, tmp_path: Path) -> None:
    content, said = BAD[what]
    found = inspect(two_classes() | {"train/cat/9.png": content}, tmp_path)
    assert (found.refused, found.train) == (1, {"cat": 3, "dog": 3})
    assert found.refused_images[0].name == "train/cat/9.png"
    assert said in found.refused_images[0].reason
    assert list(found.refused_by_reason.values()) == [1]


def test_a_run_sees_what_the_report_counts_and_nothing_that_it_refuses(tmp_path: Path) -> None:
    bad = {f"train/cat/bad{n}.png": content for n, (content, _) in enumerate(BAD.values())}
    # The first file is an odd one: what is usual hangs on most files, not on the first.
    files = {"train/cat/0.png": image(1, size=(9, 9))} | {f"train/cat/{n}.png": image(n) for n in range(20, 40)}
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    files = {name: content for name, content in two_classes().items() if name not in files} | files
    found = inspect(files | bad, tmp_path / "with")
    left_out: list[str] = []
    parts = load(tmp_path / "with" / "data.zip", leave_out=lambda name, _: left_out.append(name))
    assert parts.test
    sizes = (len(parts.train), len(parts.test), parts.classes)
    assert sizes == (found.train_examples, found.test_examples, found.classes)
    assert sorted(left_out) == sorted(image.name for image in found.refused_images)
    assert found.refused == len(bad) + 1
    clean = {name: content for name, content in files.items() if name != "train/cat/0.png"}
    alone = data.load("mine", write(clean, tmp_path / "without", "zip"))
    assert torch.equal(parts.train.pixels, alone.train.pixels)  # type: ignore[union-attr]


def test_a_data_set_of_which_most_is_refused_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"9 of 17 images cannot be used; the first is train/cat/b0\.png"):
        inspect(two_classes() | {f"train/cat/b{n}.png": b"x" for n in range(9)}, tmp_path)


def test_test_images_that_are_also_trained_on_are_found_whatever_their_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6), dtype=np.uint8)
    grey, colour = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(grey, "PNG")
    Image.fromarray(pixels).convert("RGB").save(colour, "PNG", compress_level=0)
    files = two_classes() | {"train/cat/a.png": grey.getvalue(), "test/dog/b.png": colour.getvalue()}
    overlap = inspect(files, tmp_path).overlap
    assert overlap.count == 1
    assert (overlap.examples[0].name, overlap.examples[0].twin) == ("test/dog/b.png", "train/cat/a.png")


def test_a_data_set_larger_than_it_may_be_is_refused(tmp_path: Path) -> None:
    # Packed it is small, decoded it is 8 images of 300 kB.
    files = {name: image(3, size=(400, 250)) for name in two_classes()}
    with pytest.raises(OverLimit, match="decoded"):
        inspect(files, tmp_path, Caps(total_bytes=2**20))


def test_classes_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    files = {f"{part}/{label}/{label}.png": image(3) for part in ("train", "test") for label in ("cat", "Cat1", "cat1")}
    files = {name.replace("cat1.png", "other.png"): content for name, content in files.items()}
    with pytest.raises(BadDataset, match=r"'Cat1' and 'cat1' under 'train/' in .* differ only in case"):
        inspect(files, tmp_path)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(b"hello" * 200)
    with pytest.raises(BadDataset, match="it is neither a zip nor a tar archive"):
        inspect_dataset(path, tmp_path / "out", caps=Caps())


def check_model(file: Path, folder: Path, max_bytes: int = 2**30, **said: object) -> ModelInspection:
    return inspect_model(file, ImportSpec.model_validate(said), folder / "out", max_bytes=max_bytes)


def digits_weights() -> dict[str, torch.Tensor]:
    model, _ = checkpoint.load(SHIPPED / "digits-cnn-linf.safetensors")
    return dict(model.state_dict())


def test_a_checkpoint_of_ours_is_taken_as_it_is(tmp_path: Path) -> None:
    found = check_model(SHIPPED / "digits-cnn-linf.safetensors", tmp_path)
    assert (found.source, found.architecture, found.looked_at, found.warnings) == (
        "checkpoint",
        "digits-cnn",
        "digits",
        (),
    )
    assert found.sha256 == found.source_sha256 == checkpoint.hash_file(tmp_path / "out" / "model.safetensors")
    assert found.claims == {"linf": 0.15}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_weights_of_others_are_recognised_and_become_a_checkpoint(kind: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"theirs{suffix}"
    if kind == ".pt":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in digits_weights().items()}}, file)
    else:
        save_file(digits_weights(), file)
    found = check_model(file, tmp_path)
    assert (found.architecture, found.recognised, found.shape, found.classes) == ("digits-cnn", True, (1, 8, 8), 10)
    assert found.source == ("torch" if kind == ".pt" else "safetensors")
    assert found.source_sha256 == checkpoint.hash_file(file)
    model, header = checkpoint.load(tmp_path / "out" / "model.safetensors")
    assert header.origin
    assert header.origin.sha256 == found.source_sha256
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in digits_weights().items())


def test_a_checkpoint_of_ours_is_known_under_any_name(tmp_path: Path) -> None:
    shutil.copyfile(SHIPPED / "digits-cnn-linf.safetensors", tmp_path / "base.pt")
    assert check_model(tmp_path / "base.pt", tmp_path).source == "checkpoint"


@pytest.mark.parametrize("what", list(NOT_WEIGHTS))
def test_a_file_that_is_not_weights_is_refused_with_its_reason(what: str, tmp_path: Path) -> None:
    make, said, remedy = NOT_WEIGHTS[what]
    (tmp_path / "theirs.pt").write_bytes(make())
    with pytest.raises(BadWeights) as caught:
        check_model(tmp_path / "theirs.pt", tmp_path)
    assert said in caught.value.message
    assert remedy in caught.value.hint
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_report_says_which_of_two_networks_was_taken(tmp_path: Path) -> None:
    raw = digits_weights()
    last = [name for name in raw if name.endswith("weight")][-1]
    raw[last] = raw[last].flip(0)
    torch.save({"state_dict": raw, "ema": digits_weights()}, tmp_path / "theirs.pt")
    found = check_model(tmp_path / "theirs.pt", tmp_path)
    assert (found.key, found.other_keys, found.warnings) == ("ema", ("state_dict",), ())
    assert "took the weights under ema; the file has others: add --key state_dict" in "\n".join(inspection_lines(found))
    _, header = checkpoint.load(tmp_path / "out" / "model.safetensors")
    assert header.origin
    assert header.origin.key == "ema"
    other = check_model(tmp_path / "theirs.pt", tmp_path, key="state_dict")
    assert (other.key, other.other_keys) == ("state_dict", ("ema",))
    assert [warning.code for warning in other.warnings] == ["preflight_chance"]


def test_weights_that_fit_several_networks_are_asked_about(tmp_path: Path) -> None:
    model = build(Blueprint("preact-resnet-18", (3, 32, 32), 10))
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(BadInput, match="preact-resnet-18 and") as caught:
        check_model(tmp_path / "theirs.pt", tmp_path, dataset="cifar10")
    assert caught.value.field == "architecture"
    found = check_model(tmp_path / "theirs.pt", tmp_path, dataset="cifar10", architecture="preact-resnet-18")
    assert (found.recognised, found.looked_at) == (False, "noise")


def test_weights_of_an_unknown_network_are_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3, 3)}, tmp_path / "theirs.pt")
    with pytest.raises(BadWeights, match="fit no known network"):
        check_model(tmp_path / "theirs.pt", tmp_path)


def test_a_model_that_sees_nothing_is_doubted(tmp_path: Path) -> None:
    weights = digits_weights()
    last = [name for name in weights if name.endswith("weight")][-1]
    weights[last] = weights[last].flip(0)
    torch.save(weights, tmp_path / "theirs.pt")
    assert [doubt.code for doubt in check_model(tmp_path / "theirs.pt", tmp_path).warnings] == ["preflight_chance"]


def lying_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**40) + b"{}")


def header_past_the_end(file: Path) -> None:
    save_file(digits_weights(), file)
    file.write_bytes(file.read_bytes()[:-1000])


def not_numbers(file: Path) -> None:
    weights = digits_weights()
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, file)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("make", [lying_header, header_past_the_end, not_numbers, empty])
def test_a_safetensors_file_that_is_none_is_refused(make: object, tmp_path: Path) -> None:
    make(tmp_path / "theirs.safetensors")  # type: ignore[operator]
    with pytest.raises(BadWeights):
        check_model(tmp_path / "theirs.safetensors", tmp_path)
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_model_larger_than_it_may_be_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "theirs.pt").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(OverLimit, match="larger than 1 GiB"):
        check_model(tmp_path / "theirs.pt", tmp_path)


class Canary:
    """What a pickle of an attacker does when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["theirs.pt", "theirs.pth", "theirs.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(name: str, how: str, tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / name
    if how == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": Canary(canary)}, protocol=2))
    else:
        torch.save({"state_dict": digits_weights(), "more": Canary(canary)}, file)
    with pytest.raises(UserError):
        check_model(file, tmp_path)
    assert not canary.exists()
    # The canary is one that sings.
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists()


def run(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return forked.run(["-m", "core", *arguments, "--json"], tmp_path, cwd=tmp_path, env=os.environ)


def test_the_command_prints_the_report_or_why_there_is_none(tmp_path: Path) -> None:
    path = write(two_classes() | {"../x.png": b""}, tmp_path, "zip")
    refused = run(tmp_path, "inspect-dataset", str(path), "--output", str(tmp_path / "out"))
    failed = read_event(refused.stdout)
    assert isinstance(failed, Failed)
    assert (refused.returncode, failed.code) == (2, "bad_dataset")
    found = run(
        tmp_path, "inspect-dataset", str(write(two_classes(), tmp_path, "zip")), "--output", str(tmp_path / "out")
    )
    assert found.returncode == 0
    assert inspection_report.read(found.stdout.encode()).kind == "dataset"


def many_members(file: Path, count: int) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for n in range(count):
            archive.writestr(f"train/cat/{n}.png", b"")
    return file


@pytest.mark.parametrize(
    ("option", "value", "members", "said"),
    [
        ("--most-memory", "8000000", 20_000, "memory"),
        pytest.param("--most-seconds", "1", 190_000, "longer", marks=pytest.mark.slow),
    ],
)
def test_the_command_ends_itself_at_its_limits(
    option: str, value: str, members: int, said: str, tmp_path: Path
) -> None:
    file = many_members(tmp_path / "a.zip", members)
    command = [sys.executable, "-m", "core", "inspect-dataset", str(file), "--json", option, value]
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    failed = read_event(done.stdout)
    assert isinstance(failed, Failed)
    assert (done.returncode, failed.code) == (1, "over_limit")
    assert said in failed.message


_CUT_OFF = """
import socket, subprocess, sys, threading
from core.sandbox import deny_network

def attempt(open_):
    try:
        open_()
    except OSError as error:
        return error.strerror
    return "done"

def look():
    told.append(attempt(socket.socket))

told, go = [], threading.Event()
older = threading.Thread(target=lambda: (go.wait(), look()))
older.start()
look()
complaint = deny_network()
go.set()
older.join()
look()
child = subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], capture_output=True, text=True)
told += [child.stderr.splitlines()[-1], attempt(lambda: open(__import__("core").__file__).close())]
print(complaint, told, sep="|")
"""


def test_what_is_cut_off_makes_no_connection_nor_does_a_thread_or_child_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", _CUT_OFF], capture_output=True, text=True, timeout=60, check=True)
    complaint, told = done.stdout.strip().split("|")
    refused = "Operation not permitted"
    assert complaint == ""
    assert ast.literal_eval(told) == ["done", refused, refused, f"PermissionError: [Errno 1] {refused}", "done"]


def test_the_process_that_opens_an_untrusted_file_has_no_network(tmp_path: Path) -> None:
    taken_over = "import core.intake.inspect as it, socket; it.inspect_dataset = lambda *_, **__: socket.socket()"
    arguments = ["inspect-dataset", "any.zip", "--output", str(tmp_path), "--json"]
    code = f"{taken_over}; import core.__main__; raise SystemExit(core.__main__.main({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "PermissionError: [Errno 1] Operation not permitted" in done.stdout
    assert "not_cut_off" not in done.stdout

"""What a file is, told by its content under any name, each with a sentence and a remedy of its own."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from core import checkpoint
from core.models.file_kinds import find_kind
from core.models.weight_files import read
from core.schema.errors import BadWeights
from tests.support.weight_files import NOT_WEIGHTS, saved, weights


@pytest.mark.parametrize("name", ["theirs.pt", "theirs.safetensors"])
@pytest.mark.parametrize("what", list(NOT_WEIGHTS))
def test_a_file_that_is_not_weights_is_told_as_what_it_is(what: str, name: str, tmp_path: Path) -> None:
    make, said, remedy = NOT_WEIGHTS[what]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(BadWeights) as caught:
        read(tmp_path / name)
    assert caught.value.message.startswith(name)
    assert said in caught.value.message
    assert remedy in caught.value.hint
    assert caught.value.field == "file"


def test_each_kind_has_a_sentence_of_its_own() -> None:
    sentences = {said for _, said, _ in NOT_WEIGHTS.values()}
    # Two web pages, three images.
    assert len(sentences) == len(NOT_WEIGHTS) - 3


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin", "w", "w.zip"])
@pytest.mark.parametrize("kind", ["safetensors", "archive", "stream"])
def test_the_name_of_a_weight_file_does_not_count(kind: str, name: str, tmp_path: Path) -> None:
    makes = {
        "safetensors": lambda: save(weights()),
        "archive": lambda: saved(weights()),
        "stream": lambda: saved(weights(), _use_new_zipfile_serialization=False),
    }
    (tmp_path / name).write_bytes(makes[kind]())
    assert find_kind(tmp_path / name) == kind
    found = read(tmp_path / name).weights
    assert all(torch.equal(found[label], tensor) for label, tensor in weights().items())


@pytest.mark.parametrize("first", [0x08, 0x1F, 0x3C, 0x50, 0x7B, 0x80, 0xFF])
def test_safetensors_are_known_whatever_their_first_byte(first: int, tmp_path: Path) -> None:
    content = save(weights())
    length = int.from_bytes(content[:8], "little")
    padding = (first - length) % 256
    header = content[8 : 8 + length] + b" " * padding
    path = tmp_path / "w.pt"
    path.write_bytes((length + padding).to_bytes(8, "little") + header + content[8 + length :])
    assert path.read_bytes()[0] == first
    assert read(path).weights.keys() == weights().keys()


def test_a_missing_file_and_a_folder_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="No such file"):
        find_kind(tmp_path / "nowhere")
    with pytest.raises(BadWeights, match="Is a directory"):
        find_kind(tmp_path)


def test_a_base_model_that_is_no_checkpoint_is_told_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(NOT_WEIGHTS["a pointer of Git LFS"][0]())
    with pytest.raises(BadWeights, match="is a pointer of Git LFS") as caught:
        checkpoint.load(path)
    assert caught.value.field == "base_model"
    path.write_bytes(saved(weights()))
    with pytest.raises(BadWeights, match="not a safetensors file") as caught:
        checkpoint.load(path)
    assert "import-weights" in caught.value.hint

"""python -m core import-weights: from a file of the field to a base model like any other."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from app.assets.registry import Registry
from core import checkpoint
from core.__main__ import main
from core.intake.import_weights import import_weights
from core.models import Blueprint, build
from core.schema.catalog import DATASETS
from core.schema.errors import BadInput
from core.schema.import_spec import ImportSpec
from core.schema.model_zoo import PUBLISHED, REFUSED, RefusedEntry
from core.schema.spec import parse

Say = pytest.CaptureFixture[str]


@pytest.fixture
def weights(tmp_path: Path, base: nn.Module) -> Path:
    """The shipped digits model, as others would have saved it: under state_dict, from DataParallel."""
    path = tmp_path / "theirs.pt"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in base.state_dict().items()}}, path)
    return path


def _import(*arguments: object) -> int:
    return main(["import-weights", *(str(argument) for argument in arguments)])


def test_imported_weights_say_where_they_come_from_and_answer_as_before(
    weights: Path, base: nn.Module, tmp_path: Path, capsys: Say
) -> None:
    output = tmp_path / "models" / "mine.safetensors"
    claim = ["--norm", "linf", "--eps", "0.15"]
    assert _import(weights, "--arch", "digits-cnn", "--dataset", "digits", *claim, "--output", output) == 0
    assert "58,474 parameters" in capsys.readouterr().out
    model, header = checkpoint.load(output)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(images), base(images))
    assert header.spec is None
    assert header.origin is not None
    assert (header.origin.file, header.origin.sha256) == ("theirs.pt", checkpoint.hash_file(weights))
    assert (header.origin.norm, header.origin.eps, header.origin.dataset) == ("linf", 0.15, "digits")
    # A service takes it from its models folder by its name.
    spec = parse({"kind": "evaluate", "base_model": "mine", "dataset": "digits"})
    (tmp_path / "datasets").mkdir()
    registry = Registry(models_dir=output.parent, datasets_dir=tmp_path / "datasets")
    assert (registry.weights(spec), registry.check(spec)) == (output, [])


def test_an_imported_model_is_a_base_like_any_other(weights: Path, tmp_path: Path, capsys: Say) -> None:
    output = tmp_path / "mine.safetensors"
    assert _import(weights, "--arch", "digits-cnn", "--shape", "1,8,8", "--output", output) == 0
    quick = ["--epochs", "1", "--train-examples", "64", "--evaluation.protocol", "fast", "--evaluation.examples", "20"]
    run = ["finetune", "--weights", output, "--dataset", "digits", *quick, "--json", "--output", tmp_path / "run"]
    capsys.readouterr()
    assert main([str(argument) for argument in run]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event for event in events if event["type"] == "warned"] == []
    assert events[0]["base_sha256"] == checkpoint.hash_file(output)


def test_a_normalisation_can_be_given_as_numbers(weights: Path, base: nn.Module, tmp_path: Path) -> None:
    output = tmp_path / "mine.safetensors"
    given = ["--mean", "0.5", "--std", "0.25"]
    assert _import(weights, "--arch", "digits-cnn", "--dataset", "digits", *given, "--output", output) == 0
    model, _ = checkpoint.load(output)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(model(images), base((images - 0.5) / 0.25))


def test_an_import_says_which_of_two_networks_it_took(base: nn.Module, tmp_path: Path, capsys: Say) -> None:
    raw = {name: torch.zeros_like(tensor) for name, tensor in base.state_dict().items()}
    torch.save({"state_dict": raw, "model_ema": base.state_dict()}, tmp_path / "w.pt")
    digits = [tmp_path / "w.pt", "--arch", "digits-cnn", "--dataset", "digits", "--output", tmp_path / "w.safetensors"]
    assert _import(*digits) == 0
    said = capsys.readouterr().out
    assert "took the weights under model_ema; the file has others: add --key state_dict" in said
    assert _import(*digits, "--key", "state_dict", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["key"], found["other_keys"], found["header"]["origin"]["key"]) == (
        "state_dict",
        ["model_ema"],
        "state_dict",
    )


def test_a_published_name_brings_what_is_known_of_it(tmp_path: Path, capsys: Say) -> None:
    entry = PUBLISHED["cifar10/L1/pretr_L1"]
    dataset = DATASETS[entry.dataset]
    blueprint = Blueprint(entry.architecture, dataset.shape, dataset.classes)
    torch.save(build(blueprint).state_dict(), tmp_path / "pretr_L1.pth")
    output = tmp_path / "l1.safetensors"
    assert _import(tmp_path / "pretr_L1.pth", "--robustbench", "pretr_L1", "--json", "--output", output) == 0
    header = json.loads(capsys.readouterr().out)["header"]
    assert header["blueprint"]["architecture"] == "preact-resnet-18-softplus"
    assert header["origin"]["published"] == entry.name
    _, read = checkpoint.load(output)
    assert read.claims()["l1"].eps == 12
    assert read.trained_on("cifar10", "any")


def test_a_file_that_is_not_the_published_one_is_refused(weights: Path, tmp_path: Path, capsys: Say) -> None:
    assert PUBLISHED["imagenet/Linf/Standard_R50"].sha256 == "0676ba61"
    assert _import(weights, "--published", "Standard_R50", "--output", tmp_path / "mine.safetensors") == 2
    said = capsys.readouterr().out
    assert "theirs.pt is not the file of imagenet/Linf/Standard_R50: its SHA-256 begins with" in said
    assert "https://download.pytorch.org/models/resnet50-0676ba61.pth" in said


@pytest.mark.parametrize("entry", REFUSED.values(), ids=lambda entry: entry.name)
def test_a_published_network_that_is_not_supported_is_refused_with_the_reason(entry: RefusedEntry) -> None:
    with pytest.raises(ValidationError) as caught:
        ImportSpec(published=entry.name)
    (error,) = caught.value.errors()
    assert (error["loc"], error["msg"]) == (("published",), f"{entry.name} is not supported: {entry.reason}")


def test_the_list_names_every_published_model_and_where_it_is(capsys: Say) -> None:
    assert _import("--list") == 0
    said = capsys.readouterr().out
    assert all(entry.name in said and entry.source in said for entry in PUBLISHED.values())
    assert all(entry.name in said and entry.reason in said for entry in REFUSED.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "digits-cn"], "did you mean 'digits-cnn'?"),
        (["--dataset", "digits"], "add --architecture"),
        (["--arch", "preact-resnet-18"], "add --dataset"),
        (["--arch", "digits-cnn", "--dataset", "digit"], "did you mean 'digits'?"),
        (["--arch", "digits-cnn", "--dataset", "digits", "--classes", "1"], "at least 2"),
        (["--arch", "digits-cnn", "--dataset", "digits", "--mean", "0.5"], "do not normalise"),
        (["--arch", "digits-cnn", "--dataset", "digits", "--mean", "0.5", "--std", "0"], "do not normalise"),
        (["--arch", "digits-cnn", "--dataset", "digits", "--mean", "grey", "--std", "1"], "mean"),
        (["--arch", "digits-cnn", "--dataset", "digits", "--norm", "linf"], "norm and eps together"),
        (["--arch", "digits-cnn", "--dataset", "digits", "--norm", "linf", "--eps", "8"], "8/255"),
        (["--arch", "digits-cnn", "--dataset", "digits", "--norm", "l2", "--eps", "1000"], "1000 is not below 4"),
        (["--arch", "digits-cnn", "--shape", "1,8,8", "--norm", "l1", "--eps", "40"], "40 is not below 32"),
        (["--arch", "digits-cnn", "--shape", "8,8"], "channels, height and width"),
        (["--arch", "preact-resnet-8", "--dataset", "digits"], "they fit digits-cnn"),
        (["--published", "Carmon2019Unlabelled"], "did you mean"),
        (["--published", "Engstrom2019Robustness"], "names several"),
        (
            ["--published", "Kang2021Stable"],
            "is not supported: its last layers solve an ordinary differential equation",
        ),
        (["--arch", "torchvision/resnet_18", "--shape", "3,64,64"], "did you mean 'torchvision/resnet18'?"),
        (["--published", "Carmon2019Unlabeled"], "does not fit wide-resnet-28-10"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_a_remedy(
    arguments: list[str], said: str, weights: Path, tmp_path: Path, capsys: Say
) -> None:
    assert _import(weights, *arguments, "--output", tmp_path / "mine.safetensors") == 2
    output = capsys.readouterr()
    assert said in output.out
    assert "Traceback" not in output.err
    assert not (tmp_path / "mine.safetensors").exists()


def test_a_file_and_an_option_that_contradict_each_other_are_refused(
    base: nn.Module, tmp_path: Path, capsys: Say
) -> None:
    torch.save({**base.state_dict(), "mu": torch.tensor([0.5]), "sigma": torch.tensor([0.5])}, tmp_path / "w.pt")
    digits = ["--arch", "digits-cnn", "--dataset", "digits", "--output", tmp_path / "w.safetensors"]
    assert _import(tmp_path / "w.pt", *digits, "--mean", "0.1", "--std", "0.5") == 2
    assert "leave --mean and --std out" in capsys.readouterr().out
    assert _import(tmp_path / "w.pt", *digits, "--mean", "0.5", "--std", "0.5") == 0


def test_a_checkpoint_of_ours_is_not_imported_a_second_time(weights: Path, tmp_path: Path, capsys: Say) -> None:
    digits = ["--arch", "digits-cnn", "--dataset", "digits"]
    ours = tmp_path / "ours.safetensors"
    assert _import(weights, *digits, "--mean", "0.5", "--std", "0.25", "--output", ours) == 0
    assert _import(ours, *digits, "--output", tmp_path / "again.safetensors") == 2
    said = capsys.readouterr().out
    assert "ours.safetensors is already a checkpoint of Temper" in said
    assert "--weights ours.safetensors" in said
    assert not (tmp_path / "again.safetensors").exists()


def test_a_claim_is_held_against_the_size_of_the_images_wherever_that_is_said(
    weights: Path, tmp_path: Path, capsys: Say
) -> None:
    output = tmp_path / "mine.safetensors"
    claim = ImportSpec(architecture="digits-cnn", norm="l2", eps=1000).model_copy(update={"shape": (1, 8, 8)})
    with pytest.raises(BadInput, match="1000 is not below 4"):
        import_weights(weights, claim, output)


def test_a_folder_is_not_taken_for_a_file(weights: Path, tmp_path: Path, capsys: Say) -> None:
    assert _import(tmp_path, "--arch", "digits-cnn", "--dataset", "digits") == 2
    assert "is a folder, not a file" in capsys.readouterr().out
    assert main(["evaluate", "--weights", str(tmp_path), "--dataset", "digits"]) == 2
    assert "name the file in it, such as" in capsys.readouterr().out


def test_an_import_needs_a_file_and_a_fitting_name_for_what_it_writes(weights: Path, capsys: Say) -> None:
    assert _import("--arch", "digits-cnn") == 2
    assert "FILE" in capsys.readouterr().out
    assert _import(weights, "--arch", "digits-cnn", "--dataset", "digits", "--output", "mine.pt") == 2
    assert ".safetensors" in capsys.readouterr().out


def test_a_torch_file_as_base_model_is_answered_with_the_command_that_reads_it(weights: Path, capsys: Say) -> None:
    assert main(["evaluate", "--weights", str(weights), "--dataset", "digits"]) == 2
    assert "import-weights" in capsys.readouterr().out

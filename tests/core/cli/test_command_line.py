"""python -m core, as a user and as the service's worker run it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.__main__ import main
from core.checkpoint import make_folder
from core.cli.options import RunOptions
from core.cli.parser import parse_arguments
from core.cli.specs import read_spec
from core.schema.catalog import Norm
from core.schema.errors import UserError
from core.schema.events import Event, Failed, Finished, Saved, Stepped, read
from core.schema.spec import SPECS, AnySpec, FineTuneSpec

_ROOT = Path(__file__).parents[3]
_QUICK = ["--epochs", "1", "--train-examples", "64", "--evaluation.protocol", "fast", "--evaluation.examples", "20"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process, which spares each test the loading of torch."""
    monkeypatch.chdir(_ROOT)

    def command(*arguments: object) -> Done:
        status = main([str(argument) for argument in arguments])
        return Done(status, *capsys.readouterr())

    return command


def _spec(*arguments: object) -> AnySpec:
    options = parse_arguments([str(argument) for argument in arguments])
    assert isinstance(options, RunOptions)
    return read_spec(options)


def _events(done: Done) -> list[Event]:
    return [read(line) for line in done.stdout.splitlines()]


def test_a_run_as_json_lines_ends_with_its_files(run: Command, tmp_path: Path) -> None:
    done = run("finetune", "--base-model", "digits-cnn-linf", *_QUICK, "--json", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    events = _events(done)
    assert events[0].type == "started"
    assert isinstance(events[-1], Finished)
    assert any(isinstance(event, Stepped) for event in events)
    delivered = [event for event in events if isinstance(event, Saved) and event.kind != "state"]
    names = sorted(Path(event.path).name for event in delivered)
    assert names == ["best.safetensors", "checkpoint.safetensors", "report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_what_one_run_makes_the_next_can_start_from(run: Command, tmp_path: Path) -> None:
    train = ["train", "--architecture", "digits-cnn", "--dataset", "digits", *_QUICK, "--eps", '{"linf": "1/10"}']
    assert run(*train, "--method", "nat", "--output", tmp_path).returncode == 0
    weights = tmp_path / "checkpoint.safetensors"
    evaluate = ["evaluate", "--weights", weights, "--dataset", "digits", "--eps.linf", "1/20"]
    done = run(*evaluate, "--evaluation.protocol", "fast", "--evaluation.examples", "10", "--output", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    assert "clean" in done.stdout
    assert "union" in done.stdout


def test_options_stand_over_the_file_they_come_with(run: Command, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"base_model": "digits-cnn-linf", "method": "e-at", "eps": {"linf": 0.1, "l1": 1}}))
    options = ["--eps.l1", "2", "--method.steps", "3", "--name", "7"]
    done = run("finetune", spec, *options, *_QUICK, "--json", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    resolved = json.loads(done.stdout.splitlines()[0])["spec"]
    assert resolved["eps"] == {"linf": 0.1, "l1": 2}
    assert resolved["method"]["steps"] == {"linf": 3, "l1": 3}
    assert resolved["name"] == "7"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base-model", "digits-cnn-lnf", "--dataset", "digits"], "did you mean 'digits-cnn-linf'?"),
        (["--base-model", "digits-cnn-linf", "--eps.linf", "8"], "8/255"),
        (["--base-model", "digits-cnn-linf", "--epochs", "0"], "at least 1"),
        (["--base-model", "digits-cnn-linf", "--dataset", "pets", "--eps.linf", "0.1", "--eps.l1", "1"], "--data"),
        (["--base-model", "digits-cnn-linf", "--dataset", "imagenet"], "with its train/ and val/ as --data"),
        (["--base-model", "digits-cnn-linf", "--dataset", "imagenet", "--data", "nowhere"], "nowhere does not exist"),
        (["--base-model", "digits-cnn-linf", "--extra-data", "nowhere"], "nowhere does not exist"),
        (["--base-model", "digits-cnn-linf", "--extra-dataset", "more"], "give it with --extra-data"),
        (["nowhere.json"], "check the path"),
        (["--base-model", "digits-cnn-linf", "--device", "cuda:99"], "cannot compute on 'cuda:99'"),
        (["--base-model", "digits-cnn-linf", "--device", "meta"], "cannot compute on 'meta': Tensor.item()"),
        (["--base-model", "digits-cnn-linf", "--device", "mps"], "cannot compute on 'mps': torch has nothing for it"),
        (["--base-model", "digits-cnn-linf", "--device", ""], "name a device such as cpu"),
        (["--base-model", "digits-cnn-linf", "--eps", "3", "--eps.linf", ".1"], "eps is 3, which has no linf to set"),
        (["--base-model", "digits-cnn-linf", "--eps", "8/255", "--eps.linf", ".1"], "leave --eps.linf out"),
        (["--base-model", "digits-cnn-linf", "--eps", "[" * 100_000], "give an object"),
        (["--weights", "___.safetensors", "--dataset", "digits"], "give one of letters and digits with --base-model"),
        (["pyproject.toml"], "is not valid JSON"),
        (["--weights", "README.md", "--dataset", "digits"], "no weights file"),
    ],
)
def test_bad_input_ends_with_a_remedy_and_no_traceback(
    run: Command, arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = run("finetune", *arguments, "--output", tmp_path)
    assert done.returncode == 2
    assert said in done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('{"method": 5}', ["--method.steps", "5"], "method is 5, which has no steps to set"),
        ('{"evaluation": [1]}', ["--evaluation.examples", "5"], "leave --evaluation.examples out"),
        ('{"evaluation": "fast"}', ["--evaluation.examples", "5"], 'evaluation is "fast"'),
        ('{"metadata": ' + '{"a": ' * 100_000, [], "nested too deeply"),
        ('{"epochs": 1, "eps": {"linf": 0.1, "linf": 0.2}}', [], "eps.linf: give it once"),
    ],
)
def test_a_file_whose_parts_are_of_another_kind_is_refused_by_name(
    run: Command, content: str, options: list[str], said: str, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(content)
    done = run("finetune", spec, "--base-model", "digits-cnn-linf", *options, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert said in done.stdout
    assert "Traceback" not in done.stderr


def test_a_number_of_processes_that_is_none_is_refused(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "abc")
    done = run("finetune", "--base-model", "digits-cnn-linf")
    assert done.returncode == 2
    assert "start the run with torchrun" in done.stdout


@pytest.mark.parametrize("path", ["", "a\0b"])
@pytest.mark.parametrize("option", ["--output", "--data"])
def test_a_path_that_is_none_is_no_other_folder(option: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["finetune", "--base-model", "digits-cnn-linf", option, path])
    assert caught.value.code == 2
    assert "is not a valid path" in capsys.readouterr().err


def test_a_folder_whose_name_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot write into 'a.x00b'"):
        make_folder(Path("a\0b"))


def test_weights_are_not_for_a_run_that_starts_from_none(run: Command, tmp_path: Path) -> None:
    train = ["train", "--architecture", "digits-cnn", "--dataset", "digits"]
    done = run(*train, "--weights", "mine.safetensors", "--output", tmp_path)
    assert done.returncode == 2
    assert "this run trains from random weights" in done.stdout
    assert "python -m core finetune --weights" in done.stdout


def test_a_base_model_is_named_after_its_file_whatever_that_is_called() -> None:
    read = ["evaluate", "--dataset", "digits", "--weights"]
    spec = _spec(*read, "runs/my wéights (2).v1.safetensors")
    assert spec.base_model == "my-w-ights-2-.v1"  # type: ignore[union-attr]


def test_one_radius_on_the_command_line_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    def eps(*arguments: object) -> dict[Norm, float]:
        return _spec(*arguments).eps

    shipped = ["evaluate", "--base-model", "digits-cnn-linf"]
    assert eps(*shipped, "--eps.l1", "2") == {"linf": 0.15, "l2": 0.5, "l1": 2}
    assert eps("evaluate", "--weights", "w.safetensors", "--dataset", "digits", "--eps.l1", "2")["linf"] == 0.15
    assert eps(*shipped, "--eps", '{"l1": 1}', "--eps.l2", "1") == {"l1": 1, "l2": 1}
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"base_model": "digits-cnn-linf", "kind": "evaluate", "eps": {"l1": 1}}))
    assert eps("evaluate", spec) == {"l1": 1}
    assert eps("evaluate", spec, "--eps.l1", "2") == {"l1": 2}
    own = ["evaluate", "--weights", "w.safetensors", "--dataset", "pets", "--data", "pets"]
    assert eps(*own, "--eps.l1", "2") == {"l1": 2}


def test_a_webhook_is_for_jobs_of_the_service(run: Command, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"base_model": "digits-cnn-linf", "webhook": {"url": "https://example.com/"}}))
    done = run("finetune", spec, "--output", tmp_path / "run")
    assert done.returncode == 2
    assert "webhook is only supported for jobs of the service" in done.stdout
    assert "leave webhook out, or post the spec to the service" in done.stdout


def test_a_path_to_data_without_its_name_is_refused(run: Command, tmp_path: Path) -> None:
    done = run("evaluate", "--base-model", "digits-cnn-linf", "--data", tmp_path)
    assert done.returncode == 2
    assert "add --dataset" in done.stdout


def test_a_list_may_be_given_as_words_with_commas(tmp_path: Path) -> None:
    common = ["finetune", "--base-model", "digits-cnn-linf", "--method", "sat", "--method.norms"]
    read = [_spec(*common, norms) for norms in ("linf,l1", '["linf", "l1"]')]
    assert read[0] == read[1]
    assert read[0].method.norms == ("linf", "l1")  # type: ignore[union-attr]


def test_an_unknown_data_set_is_refused_before_anything_else_is_asked(run: Command) -> None:
    done = run("evaluate", "--base-model", "digits-cnn-linf", "--dataset", "digit")
    assert done.returncode == 2
    assert "did you mean 'digits'?" in done.stdout
    assert "eps" not in done.stdout


def test_an_abbreviated_option_is_not_guessed_at() -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--base-model", "digits-cnn-linf", "--epoch", "3"])


def test_a_failure_as_json_names_field_and_code(run: Command) -> None:
    done = run("finetune", "--base-model", "digits-cnn-linf", "--eps.linf", "8", "--json")
    (event,) = _events(done)
    assert isinstance(event, Failed)
    assert (event.code, event.field) == ("bad_input", "eps.linf")


@pytest.mark.parametrize("kind", list(SPECS))
def test_help_names_every_field_with_its_text(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([kind, "--help"])
    assert caught.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for name, field in SPECS[kind].model_json_schema()["properties"].items():  # type: ignore[index]
        if name != "kind":  # the command itself
            assert f"--{name.replace('_', '-')}" in words
            assert " ".join(field["description"].split()[:4]) in words


def test_help_does_not_wait_for_torch() -> None:
    check = (
        "import sys; from core.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=_ROOT, timeout=60).returncode == 0


def test_a_run_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    endless = ["finetune", "--base-model", "digits-cnn-linf", "--epochs", "1000", "--evaluation.include-base", "false"]
    options = ["--json", "--until-stdin-closes", "--output", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "core", *endless, *options],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b"started" in process.stdout.readline()
        process.stdin.close()
        assert process.wait(timeout=10) == 143


@pytest.mark.parametrize(
    ("network", "optimizer", "rate"), [("timm/resnet18", "sgd", 0.005), ("timm/vit_tiny_patch16_224", "adamw", 1e-4)]
)
def test_the_learning_rate_of_own_weights_is_that_of_their_network(
    network: str, optimizer: str, rate: float, tmp_path: Path
) -> None:
    weights = tmp_path / "mine.safetensors"
    header = json.dumps({"blueprint": {"architecture": network}})
    content = json.dumps({"__metadata__": {"temper": header}}).encode()
    weights.write_bytes(len(content).to_bytes(8, "little") + content)
    spec = _spec("finetune", "--weights", weights, "--dataset", "cifar10")
    assert isinstance(spec, FineTuneSpec)
    assert (spec.optimizer, spec.learning_rate) == (optimizer, rate)
    chosen = _spec("finetune", "--weights", weights, "--dataset", "cifar10", "--learning-rate", "0.01")
    assert isinstance(chosen, FineTuneSpec)
    assert chosen.learning_rate == 0.01

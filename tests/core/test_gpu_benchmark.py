"""The benchmark for a GPU counts right, stops in time, goes on, and its base survives being cut into pieces."""

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, pieces
from benchmarks.methods import Run
from core import checkpoint
from core.inputs import Inputs
from core.models import Blueprint
from core.schema.catalog import NORMS
from core.schema.errors import BadWeights
from core.schema.exit_status import ExitStatus
from core.signals import StopRequests

_CPU = torch.device("cpu")


def bench(folder: Path, *, minutes: float = 9, scale: gpu.Scale = gpu.TINY) -> gpu.Bench:
    results = gpu.Results(folder / "gpu.json", scale)
    results.read()
    return gpu.Bench(results, folder / "work", None, _CPU, gpu.Budget(minutes), own=False)


def test_an_epoch_of_e_at_takes_the_operations_that_the_literature_counts() -> None:
    # A forward pass takes 0.555 G multiplications with their additions; attack and update are 24 times that.
    blueprint = Blueprint("preact-resnet-18-softplus", (3, 32, 32), 10)
    operations = gpu.count_operations(gpu.FULL.training("e-at"), blueprint, images=1)
    assert operations * 50_000 == pytest.approx(1.33e15, rel=0.01)


def test_operations_follow_the_passes_of_a_method() -> None:
    blueprint = Blueprint("digits-cnn", (1, 8, 8), 10)
    single, avg, sat = (
        gpu.count_operations(gpu.TINY.setting("").spec(method, 0), blueprint)
        for method in ({"name": "single", "norms": ["linf"]}, "avg", "sat")
    )
    assert avg == pytest.approx(3 * single)
    assert sat == pytest.approx(single)


def test_the_rate_of_matrix_products_is_that_of_their_operations() -> None:
    begun = time.perf_counter()
    rates = gpu.measure_rates(_CPU, 64)
    seconds = time.perf_counter() - begun
    assert set(rates) == {"bf16", "fp32"}
    # Both kinds' timed products happened within the call, so no rate can be below what that implies.
    assert min(rates.values()) * 1e12 >= 20 * 2 * 64**3 / seconds


def test_a_file_comes_back_from_its_pieces(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(os.urandom(1000))
    whole = pieces.cut(path, tmp_path / "there", size=300)
    assert [(tmp_path / "there" / piece.name).stat().st_size for piece in whole.pieces] == [300, 300, 300, 100]
    pieces.join(whole, tmp_path / "there", tmp_path / "again" / "base.safetensors")
    assert (tmp_path / "again" / "base.safetensors").read_bytes() == path.read_bytes()
    assert whole.sha256 == checkpoint.hash_file(path)


def test_a_damaged_piece_is_named_and_pieces_in_disorder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(os.urandom(500))
    whole = pieces.cut(path, tmp_path, size=300)
    with pytest.raises(BadWeights, match="do not make"):
        pieces.join(replace(whole, pieces=whole.pieces[::-1]), tmp_path, tmp_path / "again")
    (tmp_path / "base.safetensors.2").write_bytes(b"other")
    with pytest.raises(BadWeights, match=r"base\.safetensors\.2 is damaged"):
        pieces.join(whole, tmp_path, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_base_is_rounded_shared_and_found_again_without_its_work_folder(tmp_path: Path) -> None:
    scale = replace(gpu.TINY, base_epochs=1, base_steps=1, train_examples=128)
    first = bench(tmp_path, scale=scale)
    first.results.rates = {gpu.device_name(_CPU): {"bf16": 1.0, "fp32": 1.0}}
    first.make_base()
    first.results.write()
    pace = first.results.paces["base"]
    # 128 images less a twentieth held out, in batches of 64; the first step has no beginning.
    assert (pace.images, pace.steps_per_epoch, pace.steps) == (122, 2, 1)
    assert pace.seconds > 0
    first.base().unlink()

    again = bench(tmp_path, scale=scale)
    model, header = checkpoint.load(again.base())
    trained = checkpoint.load(tmp_path / "work" / "base" / "checkpoint.safetensors")[0].state_dict()
    assert header.spec == scale.base()
    assert all(torch.equal(tensor, trained[name].half().to(tensor)) for name, tensor in model.state_dict().items())
    # A finished training is not repeated: this would raise, for no time is left.
    last = bench(tmp_path, scale=scale, minutes=0)
    last.results.base = None
    assert last.train("base", Inputs(device=_CPU)) == tmp_path / "work" / "base" / "checkpoint.safetensors"


def test_a_run_stops_when_the_time_is_over_and_goes_on_in_the_next_start(tmp_path: Path) -> None:
    scale = replace(gpu.TINY, base_epochs=1, base_steps=1, train_examples=256)
    cut = bench(tmp_path, minutes=0, scale=scale)
    spec, requests = scale.base(), StopRequests()
    events = gpu.fine_tune(spec, tmp_path / "work" / "base", Inputs(device=_CPU), requests=requests)
    with pytest.raises(gpu.OutOfTime):
        # As if time had run out only once steps were being taken: the one that is next is finished.
        cut.follow((event for event in events if requests.stepping or event.type == "paused"), None, requests)
    assert [path.name for path in (tmp_path / "work" / "base").glob("state-*")] == ["state-000000002.safetensors"]
    with pytest.raises(gpu.OutOfTime):
        cut.run()
    assert not (tmp_path / "work" / "base" / "checkpoint.safetensors").exists()
    assert bench(tmp_path, scale=scale).train("base", Inputs(device=_CPU)).exists()


def test_the_table_sets_our_numbers_beside_the_papers(tmp_path: Path) -> None:
    results = gpu.Results(tmp_path / "gpu.json", gpu.FULL)
    results.rates = {"card": {"bf16": 500.0, "tf32": 250.0, "fp32": 50.0}}
    results.paces["e-at"] = gpu.Pace("card", "bf16", 26.6e9, 50_000, 390, steps=780, seconds=40.0)
    results.runs["e-at"] = Run(0.82, dict(zip(NORMS, (0.44, 0.68, 0.48), strict=True)), 0.5333, 0.42, 20.0)
    results.runs["ramp"] = Run(0.81, dict.fromkeys(NORMS, 0.5), 0.5, 0.43, None)
    results.write()
    page = (tmp_path / "gpu.md").read_text()
    assert (
        "| + E-AT | 82.0 (82.7 ± 0.4) | 44.0 (44.3 ± 0.6) | 68.0 (68.1 ± 0.5) | 48.0 (48.7 ± 0.5) | 53.3 (53.7 ± 0.3)"
        " | 42.0 (42.2 ± 0.8) | 20.00 (160) |" in page
    )
    assert "| + RAMP | 81.0 | 50.0 | 50.0 | 50.0 | 50.0 | 43.0 |  |" in page
    # 1.33 PFLOP at 500 TFLOP/s are 2.66 s.
    assert "| e-at | 1330 | bf16 | 2.66 | 20.00 | 7.5 | card |" in page

    again = gpu.Results(tmp_path / "gpu.json", gpu.FULL)
    again.read()
    assert asdict(again) == asdict(results)
    with pytest.raises(SystemExit, match="another scale"):
        gpu.Results(tmp_path / "gpu.json", gpu.TINY).read()


def test_a_start_for_which_there_is_no_gpu_or_no_data_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, reason in (([], "--cifar"), (["--cifar", "images.tar"], "no GPU")):
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments, "--output", str(tmp_path / "gpu.json")])
        with pytest.raises(SystemExit) as stopped:
            gpu.main()
        assert stopped.value.code == 2
        assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tiny_runs_every_part_from_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output, base = tmp_path / "gpu.json", tmp_path / "base.safetensors"
    common = ["gpu", "--tiny", "--device", "cpu", "--output", str(output), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*common, "--minutes", "0.1"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == ExitStatus.PAUSED
    monkeypatch.setattr(sys, "argv", [*common, "--minutes", "25"])
    gpu.main()
    found = json.loads(output.read_text())
    rows = {"base", "sat", "avg", "max", "msd", "e-at", "ramp"}
    assert set(found["runs"]) == set(found["paces"]) == rows
    assert {(cell["model"], cell["norm"]) for cell in found["cells"]} == {
        (model, norm) for model in gpu.COMPARED for norm in NORMS
    }
    monkeypatch.setattr(sys, "argv", [*common, "--join", str(base)])
    gpu.main()
    assert checkpoint.hash_file(base) == found["base"]["sha256"]

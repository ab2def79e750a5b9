"""Compare our networks with those of RobustBench 1.1.1 for every l_p entry of its model zoo, on random weights.

    pip install --no-deps --target FOLDER robustbench==1.1.1     it is no dependency, and its own are not needed
    PYTHONPATH=FOLDER python -m benchmarks.zoo                   a quarter of an hour on one core, 8 GB of memory

For each entry: whether the network is recognised from the names and shapes of its weights and the name of its data set
alone, whether the weights fit the network that the published name gives, and by how much the logits of both differ for
the same weights: random ones, with random statistics of batch norm, on random images. Entries that share network and
normalisation share one comparison of logits. Networks that are refused are listed with the reason.

`--keys` also writes tests/core/models/published_keys.json: for each entry a hash of the names and shapes of its
weights, by which tests compare our networks without RobustBench.
"""

import argparse
import gc
import hashlib
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn

from benchmarks.meta import without_initialisation
from core.intake.recognise import recognise_weights
from core.models import Blueprint, build
from core.models.recognition import takes_part
from core.models.weight_files import ThirdPartyWeights, take_statistics
from core.models.weight_matching import compare, with_names_of, without_normalisation
from core.models.weight_search import strip_wrappers
from core.schema.catalog import DATASETS
from core.schema.errors import UserError
from core.schema.import_spec import ImportSpec
from core.schema.model_zoo import PUBLISHED, REFUSED, PublishedEntry

RESULTS = Path(__file__).parent / "results"
KEYS = Path(__file__).parents[1] / "tests" / "core" / "models" / "published_keys.json"
_BOARDS = {"cifar10/Linf": 76, "cifar10/L2": 21, "cifar100/Linf": 38, "imagenet/Linf": 30}
# What RobustBench imports and building its networks does not need.
_NOT_NEEDED = ("autoattack", "autoattack.state", "gdown", "geotorch", "pandas", "pkg_resources", "torchdiffeq")
_POINTS = 2
_RECOGNISED: dict[tuple[str, str, str], str] = {}
"""What names and shapes lead to, by network, data set and hash: many entries share them."""


@dataclass(frozen=True)
class Row:
    """What became of one entry."""

    name: str
    network: str
    """By its published name; empty where it is refused."""
    recognised: str
    """The network that its weights alone lead to, or why there is none."""
    fits: bool
    """Whether its names and shapes are those of our network."""
    difference: float | None
    """The largest difference of a logit, relative to the largest logit; None where it was not compared."""
    reason: str = ""
    """Why it is refused."""


def main() -> None:
    """Compare every entry, print a line for each, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", choices=_BOARDS, action="append", help="only this leaderboard; may be repeated")
    parser.add_argument("--keys", action="store_true", help=f"write {KEYS.name} as well")
    parser.add_argument("--no-outputs", action="store_true", help="compare no logits: names and shapes in two minutes")
    options = parser.parse_args()
    zoo, compared = _robustbench(), {}
    hashes = json.loads(KEYS.read_text("utf-8")) if KEYS.is_file() else {}
    rows = []
    for board in options.board or _BOARDS:
        for name in zoo[board]:
            full = f"{board}/{name}"
            if full in REFUSED:
                rows.append(Row(full, "", "", False, None, REFUSED[full].reason))
                continue
            entry = PUBLISHED[full]
            with without_initialisation():
                row, hashes[full] = _check(entry, zoo[board][name]["model"])
            key = (entry.architecture, entry.dataset, entry.mean, entry.std)
            if not options.no_outputs:
                if key not in compared:
                    compared[key] = _difference(entry, zoo[board][name]["model"])
                row = Row(**{**asdict(row), "difference": compared[key]})
            rows.append(row)
            print(row, flush=True)
            if options.keys:
                KEYS.write_text(json.dumps(hashes, indent=0, sort_keys=True) + "\n", "utf-8")
            gc.collect()
    RESULTS.joinpath("zoo.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    RESULTS.joinpath("zoo.md").write_text("\n".join(_report(rows)) + "\n", "utf-8")


def _robustbench() -> dict[str, Mapping[str, Any]]:
    """Import the tables of RobustBench; return the entries of each leaderboard."""
    for name in _NOT_NEEDED:
        stand_in = ModuleType(name)
        stand_in.__spec__ = ModuleSpec(name, None)
        stand_in.__getattr__ = lambda _: MagicMock()  # type: ignore[method-assign]
        sys.modules.setdefault(name, stand_in)
    module = importlib.import_module("robustbench.model_zoo.models")
    enums = importlib.import_module("robustbench.model_zoo.enums")
    found = {}
    for board, entries in _BOARDS.items():
        dataset, norm = board.split("/")
        found[board] = module.model_dicts[enums.BenchmarkDataset(dataset)][enums.ThreatModel(norm)]
        assert len(found[board]) == entries, f"{board} has {len(found[board])} entries"
    return found


def _theirs(entry: PublishedEntry, make: Any) -> nn.Module:
    """Build RobustBench's network with random weights."""
    import timm
    from torchvision import models

    if "XCiT" in entry.name:
        # The names that RobustBench gives to timm differ from those that it looks up.
        size = entry.name.rpartition("-")[2].lower()
        return timm.create_model(f"debenedetti2022light_xcit_{size}_{entry.dataset}_linf")  # type: ignore[no-any-return]
    if "Standard_R50" in entry.name:
        with patch.object(models, "resnet50", lambda **_: models.get_model("resnet50", weights=None)):
            return make()  # type: ignore[no-any-return]
    return make()  # type: ignore[no-any-return]


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Name the weights of a network of RobustBench's as `core.models.weight_files.read` does."""
    weights = {strip_wrappers(name): tensor for name, tensor in network.state_dict().items()}
    take_statistics(weights)
    return weights


def _blueprint(entry: PublishedEntry) -> Blueprint:
    dataset = DATASETS[entry.dataset]
    return Blueprint(entry.architecture, dataset.shape, dataset.classes, mean=entry.mean, std=entry.std)


def _check(entry: PublishedEntry, make: Any) -> tuple[Row, str]:
    """Compare names and shapes; return also their hash, under the names of our network."""
    try:
        with torch.device("meta"):
            theirs = _theirs(entry, make)
    except RuntimeError:
        # MIMIR's Swin transformers calculate with tensors as they are built.
        theirs = _theirs(entry, make)
    weights = _weights(theirs)
    ours = _ours(entry.architecture, entry.dataset)
    named = with_names_of(ours, weights)
    hashed = hash_keys(named, ours)
    known = (entry.architecture, entry.dataset, hashed)
    if known not in _RECOGNISED:
        _RECOGNISED[known] = _recognise(weights, entry)
    return Row(entry.name, entry.architecture, _RECOGNISED[known], compare(named, ours).whole, None), hashed


@cache
def _ours(architecture: str, dataset: str) -> nn.Module:
    with torch.device("meta"):
        return without_normalisation(build(Blueprint(architecture, DATASETS[dataset].shape, DATASETS[dataset].classes)))


def _recognise(weights: Mapping[str, Tensor], entry: PublishedEntry) -> str:
    try:
        found = recognise_weights(ThirdPartyWeights(weights), ImportSpec(dataset=entry.dataset), entry.name)
    except UserError as error:
        return f"asks: {error.message}"
    recognised = found.spec.architecture
    if recognised != entry.architecture and entry.architecture in found.alternatives:
        return f"{recognised}, names {entry.architecture} as a variant"
    return recognised


def hash_keys(named: Mapping[str, Tensor], network: nn.Module) -> str:
    """Hash the names and shapes of those weights that a network uses."""
    unused: tuple[str, ...] = getattr(network, "unused", ())
    used = {name: tensor for name, tensor in named.items() if takes_part(name) and not name.startswith(unused)}
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in used.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@torch.no_grad()
def _difference(entry: PublishedEntry, make: Any) -> float:
    torch.manual_seed(0)
    theirs = _theirs(entry, make).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    with torch.device("meta"):
        ours = build(_blueprint(entry))
    network = without_normalisation(ours)
    network.load_state_dict(with_names_of(network, _weights(theirs)), strict=False, assign=True)
    for name, buffer in _statistics(ours, entry):
        ours.register_buffer(name, buffer, persistent=False)
    _fill(network, _blueprint(entry))
    images = torch.rand(_POINTS, *DATASETS[entry.dataset].shape)
    expected = theirs(images)
    return float((ours.eval()(images) - expected).abs().max() / expected.abs().max())


def _statistics(model: nn.Module, entry: PublishedEntry) -> Iterator[tuple[str, Tensor]]:
    """Return the normalisation that the meta device has no numbers of."""
    if hasattr(model, "mean"):
        yield "mean", torch.tensor(entry.mean or (0.0,)).view(-1, 1, 1)
        yield "std", torch.tensor(entry.std or (1.0,)).view(-1, 1, 1)


def _fill(network: nn.Module, blueprint: Blueprint) -> None:
    """Give those buffers numbers that a checkpoint does not have, from a network that is built with them."""
    missing = [name for name, buffer in network.named_buffers() if buffer.is_meta]
    if not missing:
        return
    built = dict(without_normalisation(build(blueprint)).named_buffers())
    for name in missing:
        owner, _, last = name.rpartition(".")
        network.get_submodule(owner)._buffers[last] = built[name]


def _report(rows: list[Row]) -> Iterator[str]:
    yield "# RobustBench's model zoo, entry by entry"
    yield ""
    yield "`python -m benchmarks.zoo`: robustbench 1.1.1, random weights; the script says how."
    yield ""
    yield "| leaderboard | entries | by published name | recognised from weights | named among variants | refused |"
    yield "|---|---|---|---|---|---|"
    total: Counter[str] = Counter()
    for board in dict.fromkeys(row.name.rpartition("/")[0] for row in rows):
        here = [row for row in rows if row.name.startswith(f"{board}/")]
        counts = Counter(
            entries=len(here),
            named=sum(row.fits for row in here),
            recognised=sum(bool(row.network) and row.recognised == row.network for row in here),
            variants=sum(bool(row.network) and row.network in row.recognised.split(" ")[2:] for row in here),
            refused=sum(not row.network for row in here),
        )
        total += counts
        yield _line(board, counts)
    yield _line("all", total)
    yield ""
    yield "| entry | network | recognised | names and shapes | difference of logits |"
    yield "|---|---|---|---|---|"
    for row in rows:
        if row.network:
            recognised = "yes" if row.recognised == row.network else row.recognised
            difference = "" if row.difference is None else f"{row.difference:.0e}"
            yield f"| {row.name} | {row.network} | {recognised} | {'equal' if row.fits else 'DIFFER'} | {difference} |"
    yield ""
    yield "| refused | reason |"
    yield "|---|---|"
    yield from (f"| {row.name} | {row.reason} |" for row in rows if not row.network)


def _line(board: str, counts: Counter[str]) -> str:
    values = (counts[name] for name in ("entries", "named", "recognised", "variants", "refused"))
    return f"| {board} | {' | '.join(map(str, values))} |"


if __name__ == "__main__":
    main()

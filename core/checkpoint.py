"""One safetensors file that explains itself: weights, and a header with spec, report and provenance.

The header is one JSON object under the key "temper" of the safetensors metadata. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from core.models import Blueprint, build
from core.models.third_party import compare
from core.schema.catalog import MODELS, Norm
from core.schema.errors import BadInput, BadWeights, DiskFull, UserError
from core.schema.report import ReadReports
from core.schema.spec import FineTuneSpec, Spec, TrainSpec
from core.schema.suggestions import did_you_mean

KEY = "temper"
"""Where in the metadata of a safetensors file the header lies."""


class Origin(BaseModel):
    """Where imported weights come from."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    file: str
    """The name of the file they were read from."""
    sha256: str
    """Hash of that file."""
    published: str | None = None
    """The name in `core.schema.model_zoo` that they were imported as."""
    licence: str | None = None
    """Their licence, where we know it."""
    dataset: str | None = None
    """The data set they were trained on, where the import said so."""
    norm: Norm | None = None
    """The norm they are said to be robust to."""
    eps: float | None = None
    """The radius they are said to be robust at."""
    robust: float | None = None
    """Their published accuracy under AutoAttack at this norm and radius."""
    left_out: tuple[str, ...] = ()
    """What the file held and the network does not run."""


@dataclass(frozen=True)
class Claim:
    """How robust a checkpoint says it is in a norm."""

    eps: float
    """The radius."""
    robust: float | None
    """The robust accuracy measured on the test part of the data it was trained on; None where nothing says it."""


class Header(BaseModel):
    """What a checkpoint says about itself."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: int = 1
    """Version of this header."""
    blueprint: Blueprint
    """The network."""
    spec: Spec | None
    """The resolved spec of the run that made it; with the base and the data it says how to make it again. Null for
    imported weights."""
    origin: Origin | None = None
    """Where imported weights come from; null where a run made them."""
    seed: int
    """The seed of that run."""
    step: int
    """Training steps behind the weights."""
    stopped_at: int | None = None
    """The step at which somebody stopped the run early; null where it ran to its end."""
    reports: ReadReports | None = None
    """The evaluations of that run."""
    base_sha256: str | None
    """Hash of the weights file that the run started from; null for random weights."""
    data_sha256: str | None
    """Hash of the images and labels, or of the files of a streamed set; null for imported weights."""
    versions: dict[str, str]
    """Versions of what computed: python, torch and the like."""
    commit: str | None
    """The git commit of Temper, where there was one; with a + when files differed from it."""

    def claims(self) -> dict[Norm, Claim]:
        """Say which norms it was made robust to, at which radius, and how robust it was found to be."""
        if self.origin:
            norm, eps = self.origin.norm, self.origin.eps
            return {norm: Claim(eps, self.origin.robust)} if norm and eps else {}
        if not isinstance(self.spec, FineTuneSpec | TrainSpec):
            return {}
        after = self.reports.after if self.reports else None
        found = {norm: rate.value for norm, rate in after.robust.items()} if after else {}
        return {norm: Claim(self.spec.eps[norm], found.get(norm)) for norm in self.spec.method.norms}

    def trained_on(self, name: str, sha256: str) -> bool:
        """Whether it was trained on this data set, as far as it knows."""
        return self.origin.dataset == name if self.origin else self.data_sha256 == sha256


def save_checkpoint(path: Path, model: nn.Module, header: Header) -> str:
    """Write the weights and the header to `path`, whole or not at all; return the file's sha256.

    Raises DiskFull when there is no room.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return write_file(path, save(weights, metadata={KEY: header.model_dump_json()}))


def make_folder(path: Path) -> None:
    """Make the folder that a run writes into, before it starts. Raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        # A ValueError is a NUL in the name.
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"cannot write into {str(path)!r}: {reason}", hint="name a folder that can be written", field="output"
        ) from error


def write_file(path: Path, content: bytes) -> str:
    """Write a file whole or not at all; return its sha256. Raises DiskFull when there is no room."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        if error.errno in (ENOSPC, EDQUOT):
            raise DiskFull(f"no room to write {path.name}", hint="free some disk space and run it again") from error
        raise UserError(
            f"cannot write {path}: {error.strerror}", hint="name a folder that can be written", field="output"
        ) from error
    return hashlib.sha256(content).hexdigest()


def load(path: Path) -> tuple[nn.Module, Header]:
    """Build the network that a checkpoint holds, in eval mode on the CPU. Raises BadWeights when it is not one."""
    header = read_header(path)
    model = build(header.blueprint)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise BadWeights(
            f"the weights in {path.name} cannot be read: {error}",
            hint="the file is damaged: copy or download it again",
            field="base_model",
        ) from error
    if not (fit := compare(weights, model)).whole:
        raise BadWeights(
            f"the weights in {path.name} do not fit {header.blueprint.architecture}: {fit.report()}",
            hint="the file is damaged, or was made by another version: export it again",
            field="base_model",
        )
    # Batch norm counts its batches and never looks at the count, so that a file may lack it.
    model.load_state_dict(weights, strict=False)
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise BadWeights(
            f"{path.name} holds weights that are not numbers",
            hint="use an earlier checkpoint of that run",
            field="base_model",
        )
    return model.eval(), header


def read_header(path: Path) -> Header:
    """Read only what a checkpoint says about itself. Raises BadWeights when it is not a Temper checkpoint."""
    if path.is_dir():
        raise BadWeights(
            f"{path} is a folder, not a checkpoint",
            hint=f"name the file in it, such as {path / 'checkpoint.safetensors'}",
            field="base_model",
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except FileNotFoundError as error:
        raise BadWeights(
            f"there is no file {path}", hint="check the path of the weights", field="base_model"
        ) from error
    except (SafetensorError, OSError) as error:
        raise BadWeights(
            f"{path.name} is not a safetensors file: {error}",
            hint="give a checkpoint made by Temper; python -m core import-weights makes one of other files",
            field="base_model",
        ) from error
    if text is None:
        raise BadWeights(
            f"{path.name} is a safetensors file, but does not say which network it holds",
            hint="give a checkpoint made by Temper; python -m core import-weights makes one of other files",
            field="base_model",
        )
    try:
        return Header.model_validate(json.loads(text))
    except (ValidationError, ValueError, RecursionError) as error:
        raise BadWeights(
            f"the header of {path.name} cannot be read",
            hint="give a checkpoint made by this version of Temper",
            field="base_model",
        ) from error


def has_header(path: Path) -> bool:
    """Say whether a file is a checkpoint of ours, and no other or damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def find_weights(base_model: str, given: Path | None) -> Path:
    """Say where the weights of a base model lie: the given file, else the one shipped under that name.

    Raises BadInput for a name that is not shipped, and BadWeights when a shipped file is not the one released.
    """
    if given is not None:
        return given
    entry = MODELS.get(base_model)
    if entry is None:
        raise BadInput(
            f"there is no base model {base_model!r}",
            hint=f"{did_you_mean(base_model, MODELS)}, or give its file with --weights",
            field="base_model",
        )
    path = Path(__file__).parent / "models" / "weights" / f"{base_model}.safetensors"
    if hash_file(path) != entry.sha256:
        raise BadWeights(f"{path.name} is damaged", hint="install Temper again", field="base_model")
    return path


def hash_file(path: Path) -> str:
    """Return the sha256 of a file. Raises BadWeights when there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadWeights(
            f"cannot read {path}: {error.strerror}", hint="check the path of the weights", field="base_model"
        ) from error


@cache
def versions() -> dict[str, str]:
    """Name the versions of everything that computes."""
    names = ("temper", "torch", "torchvision", "timm", "numpy", "safetensors", "pyautoattack")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found


def deciding(versions: Mapping[str, str]) -> dict[str, str]:
    """Pick those on which verdicts depend: of Temper, and of what computes and attacks networks.

    They are the same with a GPU and without, where torch is another build of one release.
    """
    names = ("temper", "torch", "torchvision", "timm", "pyautoattack")
    return {name: versions[name].partition("+")[0] for name in names if name in versions}


@cache
def commit() -> str | None:
    """Name the git commit of this checkout, with a + when files differ from it; None outside a checkout."""
    here = Path(__file__).parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        state = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if state.stdout else "")

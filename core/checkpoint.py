"""Checkpoints: one safetensors file with the weights, and a header with spec, report and provenance.

The header is a JSON object under the key "temper" of the safetensors metadata. Nothing is ever unpickled.
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
from torch import Tensor, nn

from core.models import Blueprint, build
from core.models.file_kinds import find_kind
from core.models.heads import find_head, renew_head
from core.models.weight_matching import compare
from core.schema.catalog import MODELS, OWN_CLASS, Norm
from core.schema.checkpoint_header import KEY
from core.schema.errors import BadInput, BadWeights, DiskFull, UserError
from core.schema.progress import Weights
from core.schema.report import ReadReports
from core.schema.spec import FineTuneSpec, Spec, TrainSpec
from core.schema.suggestions import did_you_mean


class Origin(BaseModel):
    """The source of imported weights."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    file: str
    """Name of the file that they were read from."""
    sha256: str
    """Hash of that file."""
    key: str = ""
    """Path of the weights inside that file, such as state_dict; empty where the file is nothing else."""
    published: str | None = None
    """Their name in `core.schema.model_zoo`; null for weights that are not published there."""
    licence: str | None = None
    """Their licence; null where it is not known."""
    dataset: str | None = None
    """The data set they were trained on; null where the import did not name it."""
    norm: Norm | None = None
    """The norm in which they claim to be robust."""
    eps: float | None = None
    """The radius of that claim, in pixel units of images in [0, 1]."""
    robust: float | None = None
    """Their published accuracy under AutoAttack at this norm and radius, in [0, 1]."""
    left_out: tuple[str, ...] = ()
    """Names of parameters in the file that the network does not use."""


@dataclass(frozen=True)
class RobustnessClaim:
    """The robustness that a checkpoint claims in one norm."""

    eps: float
    """The radius, in pixel units of images in [0, 1]."""
    robust: float | None
    """Robust accuracy in [0, 1] on the test part of its training data; None where it was not measured."""


class Header(BaseModel):
    """The header of a checkpoint."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: int = 1
    """Version of this header."""
    blueprint: Blueprint
    """The network."""
    spec: Spec | None
    """The resolved spec of the run that made it; with the base and the data, it reproduces the checkpoint. Null for
    imported weights."""
    origin: Origin | None = None
    """The source of imported weights; null for weights that a run made."""
    seed: int
    """The seed of that run."""
    step: int
    """Training steps of the weights."""
    weights: Weights = "raw"
    """Whether they are an average over the steps."""
    stopped_at: int | None = None
    """The step at which the run was stopped early; null where it ran to its end."""
    reports: ReadReports | None = None
    """The evaluations of that run."""
    base_sha256: str | None
    """Hash of the weights file that the run started from; null for random weights."""
    data_sha256: str | None
    """Hash of the images and labels, or of the files of a streamed set; null for imported weights."""
    class_names: tuple[str, ...] = ()
    """The name of each class, by its label; empty for imported weights."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that computed."""
    commit: str | None
    """The git commit of Temper, with a + when files differed from it; null outside a checkout."""

    def claims(self) -> dict[Norm, RobustnessClaim]:
        """Return the norms it was made robust in, each with its radius and the robust accuracy found."""
        if self.origin:
            norm, eps = self.origin.norm, self.origin.eps
            return {norm: RobustnessClaim(eps, self.origin.robust)} if norm and eps else {}
        if not isinstance(self.spec, FineTuneSpec | TrainSpec):
            return {}
        after = self.reports.after if self.reports else None
        found = {norm: rate.value for norm, rate in after.robust.items()} if after else {}
        return {norm: RobustnessClaim(self.spec.eps[norm], found.get(norm)) for norm in self.spec.method.norms}

    def trained_on(self, name: str, sha256: str) -> bool:
        """Return whether it was trained on this data set, as far as the header tells. sha256: hash of its images."""
        return self.origin.dataset == name if self.origin else self.data_sha256 == sha256


def save_checkpoint(path: Path, model: nn.Module, header: Header) -> str:
    """Write the weights and the header to `path`, whole or not at all; return the file's sha256.

    Raises DiskFull when the disk is full, and UserError when the file cannot be written.
    """
    weights = _apart(model.state_dict())
    return write_file(path, save(weights, metadata={KEY: header.model_dump_json()}))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the CPU that share no memory, as safetensors demands: a network may use a weight twice."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        found[name] = tensor.detach().cpu().contiguous()
        place = found[name].untyped_storage().data_ptr()
        if place in seen:
            found[name] = found[name].clone()
        seen.add(place)
    return found


def hash_weights(model: nn.Module) -> str:
    """Return the sha256 of a model's parameters and buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in _apart(model.state_dict()).items():
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_folder(path: Path) -> None:
    """Create the output folder of a run. Raises UserError where it cannot be created."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        # A ValueError is a NUL in the name.
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"cannot write into {str(path)!r}: {reason}", hint="choose a folder with write permission", field="output"
        ) from error


def write_file(path: Path, content: bytes) -> str:
    """Write a file whole or not at all; return its sha256.

    Raises DiskFull when the disk is full, and UserError when the file cannot be written.
    """
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
            raise DiskFull(
                f"the disk is full: {path.name} cannot be written", hint="free some disk space and run it again"
            ) from error
        raise UserError(
            f"cannot write {path}: {error.strerror}", hint="choose a folder with write permission", field="output"
        ) from error
    return hashlib.sha256(content).hexdigest()


def load(path: Path, *, model: nn.Module | None = None) -> tuple[nn.Module, Header]:
    """Build the network of a checkpoint, in eval mode on the CPU. Raises BadWeights for any other file.

    model: the network to load the weights into, in place and on its device, instead of one that is built: a checkpoint
    of a class of the user's own needs it. Where the run has drawn a new head, a model with another number of classes
    gets a head of that size, too. The global random state stays as it is, although a new network draws its weights.
    """
    header = read_header(path)
    if model is None:
        if header.blueprint.architecture.startswith(OWN_CLASS):
            factory = header.blueprint.architecture.removeprefix(OWN_CLASS)
            raise BadWeights(
                f"{path.name} holds the weights of {factory}, a class of the user's own that Temper cannot build",
                hint=f"give the network: load(path, model={factory.rpartition(':')[2]}()) in Python, --model {factory} "
                "on a command line",
                field="model",
            )
        with torch.random.fork_rng(devices=[]):
            model = build(header.blueprint)
    elif isinstance(header.spec, FineTuneSpec) and header.spec.head == "new":
        _fit_head(model, header.blueprint)
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
            f"the weights in {path.name} do not fit {_kind(model, header.blueprint)}: {fit.report()}",
            hint=f"give a {header.blueprint.architecture.removeprefix(OWN_CLASS)} of {header.blueprint.classes} classes"
            if header.blueprint.architecture.startswith(OWN_CLASS)
            else "the file is damaged, or was made by another version: create it again",
            field="base_model",
        )
    # A file may lack the batch counters of batch norm, which nothing reads.
    model.load_state_dict(weights, strict=False)
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise BadWeights(
            f"{path.name} contains weights that are NaN or infinite",
            hint="use an earlier checkpoint of that run",
            field="base_model",
        )
    return model.eval(), header


def _kind(model: nn.Module, blueprint: Blueprint) -> str:
    own = blueprint.architecture.startswith(OWN_CLASS)
    return type(model).__qualname__ if own else blueprint.architecture


def _fit_head(model: nn.Module, blueprint: Blueprint) -> None:
    """Give a model a head for the classes of a blueprint, where it has one for another number of them."""
    places = find_head(model, blueprint.shape)
    heads = [model.get_submodule(place) for place in places]
    if any(getattr(head, "out_features", blueprint.classes) != blueprint.classes for head in heads):
        renew_head(model, blueprint.shape, blueprint.classes, seed=0, name=type(model).__qualname__)


def read_header(path: Path) -> Header:
    """Read only the header of a checkpoint. Raises BadWeights when the file is not a Temper checkpoint."""
    if path.is_dir():
        raise BadWeights(
            f"{path} is a folder, not a checkpoint",
            hint=f"name the file in it, such as {path / 'checkpoint.safetensors'}",
            field="base_model",
        )
    try:
        # Opened here first: to safetensors a file that it may not read is one that is not there.
        with path.open("rb"), safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except FileNotFoundError as error:
        raise BadWeights(
            f"there is no file {path}", hint="check the path of the weights", field="base_model"
        ) from error
    except PermissionError as error:
        raise _forbidden(path, error) from error
    except (SafetensorError, OSError) as error:
        # A file that is neither safetensors nor of torch has an error of its own.
        find_kind(path, field="base_model")
        raise BadWeights(
            f"{path.name} is not a safetensors file: {error}",
            hint="give a checkpoint made by Temper; python -m core import-weights makes one of other files",
            field="base_model",
        ) from error
    if text is None:
        raise BadWeights(
            f"{path.name} is a safetensors file without a header of Temper",
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


def _forbidden(path: Path, error: OSError) -> BadWeights:
    return BadWeights(
        f"cannot read {path}: {error.strerror}",
        hint="give the user that Temper runs as the right to read it, as chmod a+r does",
        field="base_model",
    )


def has_header(path: Path) -> bool:
    """Return whether a file is a readable Temper checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def base_model_file(base_model: str, given: Path | None) -> Path:
    """Return the file of a base model: the given one, or else the one that Temper ships under that name.

    Raises BadInput for a name that is not shipped, and BadWeights when a shipped file differs from the released one.
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
    """Return the sha256 of a file. Raises BadWeights when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError as error:
        raise _forbidden(path, error) from error
    except OSError as error:
        raise BadWeights(
            f"cannot read {path}: {error.strerror}", hint="check the path of the weights", field="base_model"
        ) from error


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute."""
    names = ("temper", "torch", "torchvision", "timm", "numpy", "safetensors", "pyautoattack")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found


def verdict_versions(versions: Mapping[str, str]) -> dict[str, str]:
    """Select the versions on which verdicts depend: of Temper and of the libraries that compute and attack networks.

    The build suffix is cut off, so that torch with and without GPU support counts as one version.
    """
    names = ("temper", "torch", "torchvision", "timm", "pyautoattack")
    return {name: versions[name].partition("+")[0] for name in names if name in versions}


@cache
def commit() -> str | None:
    """Return the git commit of this checkout, with a + when files differ from it; None outside a checkout."""
    here = Path(__file__).parent.parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        state = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if state.stdout else "")

"""Write core/models/known_networks.json: by which names and shapes the networks of the catalogue, of torchvision and of
timm are recognised.

    python -m benchmarks.known_networks     some minutes on one core; to be run again with a new version of timm

Each network is built without its numbers, for the images that it is made for. Of several names of the same network one
is kept: a name of the catalogue, else of torchvision, else of timm, and first one that published weights use.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn
from torchvision import models

from benchmarks.meta import without_initialisation
from core.models import Blueprint, build
from core.models.recognition import KNOWN_NETWORKS, fingerprints
from core.schema.catalog import ARCHITECTURES, TIMM, TORCHVISION
from core.schema.model_zoo import PUBLISHED

# Recognised by their depth and width.
_WIDE = ("wide-resnet-", "dm-wide-resnet-")
_CLASSES = 10
# Modules that do nothing in evaluation, and attributes that do not change what a network computes there.
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)
_NO_BEHAVIOUR = ("drop", "inplace", "training", "grad_checkpointing", "momentum", "init")

# Torchvision calculates their widths with tensors, which takes a network with numbers of up to 640 million parameters.
_WITH_NUMBERS = "regnet_"


@dataclass
class Known:
    """What is known about the networks."""

    fingerprints: dict[str, dict[str, str]] = field(default_factory=dict)
    """By fingerprint: the name of a network by what it does beside its weights."""
    landmarks: dict[str, list[str]] = field(default_factory=dict)
    """By name in the catalogue: a few names of parameters."""


def names() -> list[str]:
    """List the names to know, the preferred first."""
    used = {entry.architecture for entry in PUBLISHED.values()}
    own = list(ARCHITECTURES)
    libraries = [
        [TORCHVISION + name for name in models.list_models(module=models) if not name.startswith(_WITH_NUMBERS)]
    ]
    libraries += [[TIMM + name for name in timm.list_models()]]
    return [*own, *(name for found in libraries for name in sorted(found, key=lambda n: (n not in used, len(n), n)))]


def add(name: str, known: Known) -> bool:
    """Add a network to those that are known; return whether it can be built without numbers."""
    try:
        with torch.device("meta"), without_initialisation():
            network = build(Blueprint(name, _shape(name), _CLASSES))
    except Exception as error:
        print(f"{name}: {type(error).__name__} {str(error).partition(chr(10))[0][:100]}", flush=True)
        return False
    if name in ARCHITECTURES:
        known.landmarks[name] = _landmarks(network)
    if name.startswith(_WIDE):
        return True
    behaviour = "\n".join(_behaviour(network))
    for fingerprint in fingerprints(network):
        known.fingerprints.setdefault(fingerprint, {}).setdefault(behaviour, name)
    return True


def _landmarks(network: nn.Module) -> list[str]:
    """Take four names of parameters, spread over the network."""
    parameters = [name for name, _ in network.named_parameters()]
    return [parameters[len(parameters) * part // 8] for part in (1, 3, 5, 7)]


def write(known: Known) -> None:
    """Write the file, a line for each fingerprint and each network of the catalogue."""
    fingerprints = {each: list(found.values()) for each, found in sorted(known.fingerprints.items())}
    tables = {"fingerprints": fingerprints, "landmarks": known.landmarks}
    parts = (
        f'"{table}": {{\n' + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in lines.items()) + "\n}"
        for table, lines in tables.items()
    )
    KNOWN_NETWORKS.write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


def _shape(name: str) -> tuple[int, int, int]:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].shape or (3, 64, 64)
    config: Any = timm.get_pretrained_cfg(name.removeprefix(TIMM)) if name.startswith(TIMM) else None
    _, height, width = config.input_size if config is not None and config.input_size else (3, 224, 224)
    return 3, height, width


def _behaviour(network: nn.Module) -> Iterator[str]:
    """Describe what the weights of a network do not show: the types of its modules and their plain attributes."""
    for name, module in network.named_modules():
        if isinstance(module, _IDLE) or type(module).__name__ == "DropPath":
            continue
        plain = {
            key: value
            for key, value in sorted(vars(module).items())
            if isinstance(value, int | float | str | tuple)
            and not key.startswith("_")
            and not any(word in key for word in _NO_BEHAVIOUR)
        }
        yield f"{name} {type(module).__name__} {plain}"


def main() -> None:
    """Build every network and write the file."""
    known = Known()
    built = sum(add(name, known) for name in names())
    write(known)
    print(f"{built} networks under {len(known.fingerprints)} fingerprints in {KNOWN_NETWORKS}")


if __name__ == "__main__":
    main()

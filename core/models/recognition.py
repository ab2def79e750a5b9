"""Recognise the network that third-party weights may belong to, from the names and shapes of their tensors.

Wide ResNets show depth and width. The other networks of the catalogue, of torchvision and of timm are found in
known_networks.json by a fingerprint of their names and shapes; `python -m benchmarks.known_networks` writes that file.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from core.models.weight_search import cut_prefixes, strip_wrappers
from core.schema.catalog import find_architecture

KNOWN_NETWORKS = Path(__file__).with_name("known_networks.json")

# What published checkpoints have beside the tensors that a network runs.
_IGNORED = re.compile(
    r"(sub_block1|model_preact_hl1|aux1|aux2|AuxLogits)\..*|(.*\.)?(num_batches_tracked|attn_mask|relative_position_index)"
)
_BLOCKS = {
    "wide-resnet": re.compile(r"block1\.layer\.(\d+)\.conv1\.weight"),
    "dm-wide-resnet": re.compile(r"layer\.0\.block\.(\d+)\.conv_0\.weight"),
}
_STEM_WIDTH = 16

_Shapes = Mapping[str, tuple[int, ...]]


def candidates(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Name the networks that these weights may belong to; `core.models.weight_matching.fits` finds out which they fit.

    A network of the catalogue stands before one of torchvision, and that before one of timm. Variants of a Wide ResNet
    (`core.schema.catalog.variants_of`) are not named.
    """
    found: list[str] = []
    for named in cut_prefixes(weights):
        shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
        found += _wide_resnets(shapes)
        found += _known("fingerprints").get(fingerprint(shapes), [])
    return tuple(dict.fromkeys(found))


def resembling(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Name the networks of the catalogue that weights share at least a few names with, and the candidates."""
    shared = {name for named in cut_prefixes(weights) for name in named}
    close = (name for name, landmarks in _known("landmarks").items() if shared.intersection(landmarks))
    return tuple(dict.fromkeys((*close, *candidates(weights))))


def fingerprint(shapes: _Shapes) -> str:
    """Hash names and shapes, but not what a user may change: the number of classes, and of channels of the images.

    The first dimension of each tensor is left out, which is the number of classes for those of the last layer, and of
    position embeddings all but the last, which depend on the size of the images.
    """
    lines = sorted(f"{strip_wrappers(name)} {_kept(name, shape)}" for name, shape in shapes.items() if takes_part(name))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def fingerprints(network: nn.Module) -> set[str]:
    """Fingerprint a network under its own names, and under those of its published checkpoints (see `with_names_of`)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    renamings: tuple[Mapping[str, str], ...] = getattr(network, "renamed", ())
    return {fingerprint(shapes), *(fingerprint(_published(shapes, renaming)) for renaming in renamings)}


def takes_part(name: str) -> bool:
    """Return whether a network runs a tensor of this name; published checkpoints also have others."""
    return _IGNORED.fullmatch(strip_wrappers(name)) is None


def _published(shapes: _Shapes, renaming: Mapping[str, str]) -> _Shapes:
    def rename(name: str) -> str:
        return next((old + name.removeprefix(new) for old, new in renaming.items() if name.startswith(new)), name)

    return {rename(name): shape for name, shape in shapes.items()}


def _kept(name: str, shape: tuple[int, ...]) -> list[int]:
    if name.endswith(("pos_embed", "pos_embedding")):
        return list(shape[-1:])
    kept = list(shape[1:])
    if len(shape) == 4 and kept[0] in (1, 3):
        kept[0] = 0
    return kept


@cache
def _known(table: Literal["fingerprints", "landmarks"]) -> Mapping[str, list[str]]:
    known: Mapping[str, list[str]] = json.loads(KNOWN_NETWORKS.read_text("utf-8"))[table]
    return known


def _wide_resnets(shapes: _Shapes) -> Iterator[str]:
    for family, pattern in _BLOCKS.items():
        blocks = {int(match[1]): shapes[match[0]] for match in map(pattern.fullmatch, shapes) if match}
        if not blocks or 0 not in blocks or len(blocks[0]) != 4:
            continue
        name = f"{family}-{6 * len(blocks) + 4}-{blocks[0][0] // _STEM_WIDTH}"
        if family == "wide-resnet" and "activation.alpha" in shapes:
            name += "-pssilu"
        elif family == "wide-resnet" and "fc.bias" not in shapes:
            name += "-hypersphere"
        if find_architecture(name):
            yield name

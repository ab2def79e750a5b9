"""Complete what a user says of third-party weights by the network that they fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.models.recognition import candidates
from core.models.weight_files import ThirdPartyWeights, read
from core.models.weight_matching import count_classes, fit_to_architectures, fits
from core.schema.catalog import ARCHITECTURES, DATASETS, TIMM, TORCHVISION, variants_of
from core.schema.errors import BadInput, BadWeights
from core.schema.import_spec import ImportSpec

_MOST_NAMED = 8

_Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Recognised:
    """The network that weights fit."""

    spec: ImportSpec
    """The spec, with the network and the shape of its images."""
    alternatives: tuple[str, ...]
    """Other networks that the weights fit as well and that compute something else: weights do not show activations."""


def recognise(file: Path, spec: ImportSpec) -> Recognised:
    """Complete a spec without architecture by the known network that the weights in `file` fit.

    Where variants of a network have the same weights, the usual one is taken; a network of the catalogue before one of
    torchvision, and that before one of timm. Raises BadWeights when they fit none, and BadInput when they fit several,
    or one that takes images of several sizes.
    """
    return recognise_weights(read(file, key=spec.key), spec, file.name)


def recognise_weights(foreign: ThirdPartyWeights, spec: ImportSpec, file: str) -> Recognised:
    """Do the same for weights that have been read. file: the name of their file, for errors."""
    names, shapes = candidates(foreign.weights), _shapes(foreign, spec)
    whole = [(name, shape) for name in names for shape in shapes if fits(foreign.weights, name, shape)]
    if not whole:
        raise _unknown(foreign, shapes, file)
    fitting = list(dict.fromkeys(name for name, _ in whole))
    found = _preferred(fitting)
    if len(found) > 1:
        at_home = [name for name, shape in whole if _is_at_home(foreign, name, shape)]
        found = [name for name in found if name in at_home] or found
    if len(found) > 1:
        raise BadInput(
            f"the weights in {file} fit {' and '.join(sorted(found)[:_MOST_NAMED])}, which differ only outside the "
            "weights",
            hint="name the network with architecture",
            field="architecture",
        )
    (name,) = found
    sizes = sorted(shape for other, shape in whole if other == name)
    if len(sizes) > 1:
        raise BadInput(
            f"the weights in {file} fit {name}, which takes images of several sizes",
            hint="give the images they were trained on, with dataset or with shape such as 3,32,32",
            field="shape",
        )
    alternatives = dict.fromkeys((*variants_of(name), *fitting))
    others = tuple(other for other in alternatives if other != name)
    completed = spec.model_copy(update={"architecture": name, "shape": sizes[0]})
    return Recognised(completed, others[:_MOST_NAMED])


def _shapes(foreign: ThirdPartyWeights, spec: ImportSpec) -> list[_Shape]:
    """List the shapes of images to try: the one that is given, or those of the data sets with as many channels."""
    if spec.shape:
        channels, height, width = spec.shape
        return [(channels, height, width)]
    dataset = DATASETS.get(spec.dataset)
    known = [dataset] if dataset else list(DATASETS.values())
    # The images have as many channels as the first convolution, which need not come first in the file.
    channels_of_convolutions = {tensor.shape[1] for tensor in foreign.weights.values() if tensor.dim() == 4}
    return [shape for shape in sorted({entry.shape for entry in known}) if shape[0] in channels_of_convolutions]


def _preferred(names: Sequence[str]) -> list[str]:
    """Leave out variants of networks that are there, then all but those of the first place that has any."""
    usual = [name for name in names if name not in ARCHITECTURES or ARCHITECTURES[name].variant_of not in names]
    first = min(map(_place, usual))
    return [name for name in usual if _place(name) == first]


def _place(name: str) -> int:
    return 2 if name.startswith(TIMM) else 1 if name.startswith(TORCHVISION) else 0


def _is_at_home(foreign: ThirdPartyWeights, name: str, shape: _Shape) -> bool:
    """Return whether a data set of the catalogue has such images and as many classes as the weights."""
    classes = count_classes(foreign.weights, name, shape)
    return any((entry.shape, entry.classes) == (shape, classes) for entry in DATASETS.values())


def _unknown(foreign: ThirdPartyWeights, shapes: Sequence[_Shape], file: str) -> BadWeights:
    every = [
        (fit.share, name) for shape in shapes for name, fit in fit_to_architectures(foreign.weights, shape).items()
    ]
    share, name = max(every, default=(0.0, ""))
    closest = f"the closest is {name}, with {share:.0%} of the names and shapes: " if share > 0.5 else ""
    return BadWeights(
        f"the weights in {file} fit no known network",
        hint=f"{closest}name the network with architecture; timm/NAME and torchvision/NAME are any classifiers of "
        "these libraries",
        field="architecture",
    )

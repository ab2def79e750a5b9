"""Classifiers of the timm library, by timm's own names: DeiT, XCiT, ConvNeXt and hundreds more.

Only the architecture comes from timm. Weights are never downloaded; they are imported from a file.
"""

from typing import Any

from torch import nn

from core.models.swin import know_names_of_authors
from core.models.xcit import OLD_NAMES
from core.schema.errors import BadInput, DoesNotFit
from core.schema.suggestions import find_close


def timm_classifier(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a timm classifier for images of `shape` (channels, height, width), with fresh weights.

    Raises BadInput for a name that timm does not know and DoesNotFit for images that the network cannot take.
    """
    # Imported here, since timm takes seconds to load.
    import timm

    if not timm.is_model(name):
        close = find_close(name, timm.list_models())
        guess = f"did you mean 'timm/{close}'? " if close else ""
        raise BadInput(
            f"timm has no network {name!r}",
            hint=f"{guess}timm.list_models() lists all of them",
            field="architecture",
        )
    channels, height, width = shape
    made_for = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if made_for is not None and made_for.fixed_input_size and made_for.input_size[1:] != (height, width):
        options["img_size"] = (height, width)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise DoesNotFit(
            f"timm/{name} cannot be built for {channels} x {height} x {width} images in {classes} classes: {error}",
            hint="choose another network, or resize the images",
            field="architecture",
        ) from error
    if name.startswith("xcit"):
        network.renamed = (OLD_NAMES,)  # type: ignore[assignment]  # no tensor
    if name.startswith("swin_"):
        know_names_of_authors(network)
    return network

"""The logits in what a network returns."""

from torch import Tensor

from core.schema.errors import BadInput


def logits_of(output: object, points: int) -> Tensor:
    """Take the logits (points, classes) out of what a network returned for a number of points.

    They may also come as (points, classes, 1, 1), in a tuple of one element, or as the attribute `logits` of an
    object. Raises BadInput for anything else.
    """
    found = output[0] if isinstance(output, (tuple, list)) and len(output) == 1 else output
    found = found if isinstance(found, Tensor) else getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.dim() == 4 and found.shape[2:] == (1, 1):
        found = found.flatten(1)
    fits = isinstance(found, Tensor) and found.dim() == 2 and len(found) == points and found.shape[1] > 1
    if isinstance(found, Tensor) and fits and found.is_floating_point():
        return found
    raise BadInput(
        f"the model answers {points} images with {_describe(output)}; needed are logits ({points}, classes) of "
        "floating point, for two classes or more",
        hint="wrap the model in a module whose forward returns the logits alone",
        field="model",
    )


def _describe(output: object) -> str:
    """Describe what a network returned, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {len(output)} elements"
    if isinstance(output, dict):
        return f"a {type(output).__name__} with the keys {', '.join(map(str, list(output)[:5]))}"
    return f"an object of the type {type(output).__name__}"

"""The logits in what a network returns: what is taken, and what is said of anything else."""

from types import SimpleNamespace

import pytest
import torch

from core.models.outputs import logits_of
from core.schema.errors import BadInput

LOGITS = torch.rand(2, 3)


@pytest.mark.parametrize(
    "output",
    [LOGITS, LOGITS[:, :, None, None], (LOGITS,), [LOGITS[:, :, None, None]], SimpleNamespace(logits=LOGITS)],
    ids=["logits", "maps of one pixel", "tuple", "list", "object"],
)
def test_logits_are_taken_from_the_usual_wrappings(output: object) -> None:
    assert torch.equal(logits_of(output, 2), LOGITS)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (LOGITS[None], "a tensor (1, 2, 3) of float32"),
        (LOGITS[:1], "a tensor (1, 3) of float32"),
        (LOGITS[:, :1], "a tensor (2, 1) of float32"),
        (LOGITS.argmax(1), "a tensor (2,) of int64"),
        (LOGITS.long(), "a tensor (2, 3) of int64"),
        ((LOGITS, LOGITS), "a tuple of 2 elements"),
        ({"main": LOGITS, "aux": LOGITS}, "a dict with the keys main, aux"),
        (None, "an object of the type NoneType"),
    ],
)
def test_anything_else_is_told_with_what_came(output: object, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        logits_of(output, 2)
    assert f"2 images with {said};" in caught.value.message
    assert "(2, classes)" in caught.value.message

"""Checks of budgets and of the box, which the threats of few pixels share."""

from torch import Tensor

from core.schema.errors import BadInput


def check_count(count: object, what: str, *, example: int) -> None:
    """Raise BadInput unless a budget is an integer above 0; what: names it in the message."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadInput(
            f"the {what} is {count!r}, not an integer above 0",
            hint=f"give an integer, such as {example}",
            field="evaluation.unseen",
        )


def in_box(perturbed: Tensor) -> Tensor:
    """Check that all pixels are in [0, 1]: (batch,) bool; NaN is not."""
    return ((perturbed >= 0) & (perturbed <= 1)).flatten(1).all(1)

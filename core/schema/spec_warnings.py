"""Warnings about a spec that is valid and yet likely to disappoint.

The service answers with them, the command line prints them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.schema.catalog import EXTRA_SHARE, MODELS
from core.schema.progress import WarningRecord
from core.schema.radius import find_uncovered_l2

if TYPE_CHECKING:
    from core.schema.spec import AnySpec, TrainingSpec


FEWEST_STEPS = 12
"""Steps in which a schedule can have its shape: four in each third."""
GPUS_OF_A_MACHINE = 8
FEWEST_IMAGES = 8
"""Images of a batch that each GPU should get: below, it mostly waits for the others."""


def average_not_compared() -> WarningRecord:
    """Make the warning of a run that averages its weights and holds out no image."""
    return WarningRecord(
        code="average_not_compared",
        message="no image is held out to compare the averaged weights with the weights themselves: the averaged ones "
        "are delivered",
        remedy="set held_out to 1 or more",
    )


def spec_warnings(spec: "AnySpec") -> tuple[WarningRecord, ...]:
    """List what is valid and yet likely to disappoint."""
    found = list(_of_radii(spec))
    if spec.kind != "evaluate":
        found += _of_training(spec)
    return tuple(found)


def _of_length(spec: "TrainingSpec") -> Iterator[WarningRecord]:
    # Here, because a client that reads warnings needs no specs.
    from core.schema.cost_model import Size, count_epochs, count_steps

    size = Size.of(spec.dataset)
    examples = size.train_examples if size else spec.train_examples
    if examples is None or spec.schedule == "constant":
        return
    # A linear probe does not follow the schedule.
    steps = count_steps(spec, examples) * spec.epochs // count_epochs(spec)
    if steps < FEWEST_STEPS:
        yield WarningRecord(
            code="few_steps",
            message=f"the run has {steps} steps, too few for the parts of the {spec.schedule} schedule: take more "
            "images or epochs, a smaller batch_size, or schedule constant",
        )


def _of_radii(spec: "AnySpec") -> Iterator[WarningRecord]:
    base = MODELS.get(getattr(spec, "base_model", ""))
    if base and base.norm in spec.eps and abs(spec.eps[base.norm] - base.eps) > 1e-6:
        yield WarningRecord(
            code="eps_differs_from_base",
            message=f"{base.name} was made robust at {base.norm} {base.eps:g}, this run uses {spec.eps[base.norm]:g}",
        )


def _of_training(spec: "TrainingSpec") -> Iterator[WarningRecord]:
    yield from _of_length(spec)
    if spec.gpus > GPUS_OF_A_MACHINE:
        yield WarningRecord(
            code="many_gpus",
            message=f"the {spec.gpus} GPUs have to be in one machine, which seldom has more than {GPUS_OF_A_MACHINE}: "
            "the job waits until a worker has as many",
        )
    if spec.gpus > 1 and spec.batch_size < FEWEST_IMAGES * spec.gpus:
        yield WarningRecord(
            code="small_share",
            message=f"each of {spec.gpus} GPUs gets {spec.batch_size / spec.gpus:.3g} images of a batch of "
            f"{spec.batch_size}: raise batch_size, or take fewer GPUs",
        )
    if "extra_share" in spec.model_fields_set and spec.extra_share != EXTRA_SHARE and not spec.extra_dataset:
        yield WarningRecord(
            code="extra_share_unused",
            message="extra_share changes nothing without a second data set: name one as extra_dataset",
        )
    if spec.average and spec.held_out == 0:
        yield average_not_compared()
    if spec.method.name == "nat":
        yield WarningRecord(code="no_attack", message="natural training attacks nothing: expect no robustness")
    if spec.method.name == "pat":
        yield WarningRecord(
            code="no_norm_attacked",
            message="perceptual training attacks no l_p ball: expect less robustness at eps than from the other "
            "methods, and more against changes outside these balls",
        )
    if spec.method.name == "e-at" and (l2 := find_uncovered_l2(spec.method.norms, spec.eps)):
        yield WarningRecord(
            code="l2_not_covered",
            message=f"sqrt(eps.l1 * eps.linf) = {l2.covered:.3g} is below eps.l2 = {l2.radius:g}: E-AT with linf and "
            "l1 need not make the model robust to l2; consider method sat, or e-at with all three norms",
        )

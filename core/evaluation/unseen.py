"""Accuracy under threats that no training prepares for: attacks other than l_p balls, and common corruptions.

The attacks run on the points that are right on the clean image. In a sweep, each budget goes on with the points that
all smaller ones left right, so that a point counts as fooled at a budget if one up to it fools it.
"""

from collections.abc import Generator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from core.data.cifar10_c import CorruptedFiles
from core.evaluation.row import Row
from core.evaluation.search import Search
from core.evaluation.unseen_report import summarise
from core.inputs import Loaded
from core.schema.errors import BadInput
from core.schema.events import Attacked, Saved
from core.schema.progress import Subject
from core.schema.report import AttackRecord, CorruptionSource, UnseenReport, unseen_row_id
from core.schema.spec import CONSEQUENCE
from core.schema.threats import THREATS
from core.schema.unseen import AskedUnseen, Unseen
from core.threats import make_attack, make_threat
from core.threats.corruptions import check_corruption, corrupt, table_of


class Corruptions(Protocol):
    """Where the images of common corruptions come from."""

    source: CorruptionSource

    def corrupt(self, name: str, severity: int, first: int, images: Tensor) -> Tensor:
        """Give the corrupted images (points, channels, height, width) of some test points.

        name: without its prefix; first: the index of the first of the points in the evaluation; images: the clean ones.
        """


class GeneratedCorruptions:
    """Common corruptions that the run makes of its test images."""

    def __init__(self, seed: int, shape: Sequence[int]) -> None:
        """shape: of an image (channels, height, width)."""
        self._seed = seed
        self.source: CorruptionSource = table_of(shape)

    def corrupt(self, name: str, severity: int, first: int, images: Tensor) -> Tensor:
        """Corrupt the images, with random numbers of the seed and their own pixels."""
        del first
        return corrupt(images, name, severity, seed=self._seed)


class OfficialCorruptions:
    """Common corruptions that the official files have, such as those of CIFAR-10-C."""

    source: CorruptionSource = "files"

    def __init__(self, files: CorruptedFiles, indices: Tensor) -> None:
        """indices (points,): where the points of the evaluation lie in the test part."""
        self._files, self._indices = files, indices

    def corrupt(self, name: str, severity: int, first: int, images: Tensor) -> Tensor:
        """Read the corrupted images of these points from the official files."""
        indices = self._indices[first : first + len(images)]
        return self._files.images(name, severity, indices).to(images)


def corruptions_of(loaded: Loaded, *, first: int = 0) -> Corruptions:
    """Give the corruptions of a run: those of the official files, where it has them. first: the index of the first test
    point that is evaluated."""
    if loaded.corrupted is None:
        return GeneratedCorruptions(loaded.spec.seed, loaded.dataset.shape)
    return OfficialCorruptions(loaded.corrupted, loaded.test_indices[first:])


class Progress(NamedTuple):
    """The place of these threats among all attacks of an evaluation, for its events."""

    subject: Subject
    done: int
    total: int


_adapter: TypeAdapter[Unseen | None] = TypeAdapter(AskedUnseen | None, config=ConfigDict(defer_build=True))


def read_unseen(asked: object) -> Unseen | None:
    """Read threats as a spec names them: a preset, a list, or an object. Raises BadInput."""
    try:
        return _adapter.validate_python(asked)
    except ValidationError as error:
        first = next(each for each in error.errors() if each["type"] != CONSEQUENCE)
        place = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"unseen: {f'{place}: ' if place else ''}{first['msg']}",
            hint='name a preset such as "ramp", or give a list such as ["l0", {"name": "fog", "budgets": [64, 128]}]',
            field="evaluation.unseen",
        ) from error


def check_unseen(asked: Unseen | None, shape: Sequence[int]) -> None:
    """Raise BadInput where a threat makes no sense for images of this shape (channels, height, width)."""
    for threat in asked.threats if asked else ():
        for budget in threat.budgets:
            if threat.corruption:
                check_corruption(threat.corruption, int(budget), shape)
            else:
                make_threat(threat, budget).check(shape)


def count_unseen(asked: Unseen | None) -> int:
    """Count the rows that the threats add to a report, one per threat and budget."""
    return sum(len(threat.budgets) for threat in asked.threats) if asked else 0


def iter_unseen(
    search: Search, asked: Unseen, labels: Tensor, clean: Tensor, corruptions: Corruptions, progress: Progress
) -> Generator[Attacked | Saved, None, UnseenReport]:
    """Evaluate all threats of a spec, with an event after each.

    labels, clean (points,): the classes of the images, and those that the model predicts for them.
    """
    verdicts: dict[tuple[str, float], str] = {}
    records: list[AttackRecord] = []
    done = progress.done
    for threat in asked.threats:
        kind = THREATS[threat.name].kind
        predicted = clean
        for budget in threat.budgets:
            key = unseen_row_id(threat.name, budget)
            if threat.corruption:
                change = partial(corruptions.corrupt, threat.corruption, int(budget))
                # Images that are made and those of the files are not the same.
                predicted = yield from search.predict_changed(f"{key}/{corruptions.source}", change)
            else:
                # What a smaller budget's search met says nothing about this one.
                row = Row.of(predicted)
                found = search.run(kind, make_attack(threat), make_threat(threat, budget), row, row_id=key)
                records.append((yield from found))
                predicted = row.predicted
            right = predicted == labels
            verdicts[threat.name, budget] = "".join("01"[verdict] for verdict in right.tolist())
            done += 1
            yield Attacked(
                subject=progress.subject,
                threat=key,
                attack=kind,
                robust=int(right.sum()),
                examples=len(labels),
                done=done,
                total=progress.total,
            )
    return summarise(
        verdicts,
        records,
        preset=asked.preset,
        provenance=asked.provenance,
        source=corruptions.source,
        reference_errors=asked.reference_errors,
    )

"""Attacks on a model's points, one group of logical batches at a time, with a state that an interrupted evaluation
continues from."""

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from core import checkpoint
from core.attacks import Attack, AttackOptions, AttackResult, Returning, Steps
from core.attacks.apgd import depends_on_last_bit
from core.attacks.containment import bring_inside
from core.attacks.forward import classify, predict
from core.attacks.threat import LpThreat, Threat
from core.evaluation.checks import flags_of_model
from core.evaluation.resume import EvaluationState
from core.evaluation.row import Row, find_fooled
from core.models.folding import folded
from core.models.memory import ChunkSizer, is_out_of_memory
from core.schema.catalog import Norm
from core.schema.errors import BadInput, OutOfMemory
from core.schema.events import Saved
from core.schema.progress import Flag
from core.schema.protocols import TARGETS, Engine, Protocol
from core.schema.report import AttackRecord, Part
from core.schema.suggestions import did_you_mean
from core.schema.unseen import Unseen
from core.signals import Interrupted

# A group of points is attacked together: as many whole logical batches as stay within these numbers of points and
# bytes, since an attack holds, and saves in its state, several tensors of that size.
_GROUP_POINTS = 1024
_GROUP_BYTES = 256 * 2**20
# Points that go through the model together. More overflow the caches of a CPU; a GPU needs many.
_CHUNK_SIZE = {"cpu": 256, "cuda": 1024}

_Returned = TypeVar("_Returned")


@dataclass(frozen=True)
class Options:
    """The settings of an evaluation, as in `core.schema.spec.Evaluation`, its share of the points, and its state."""

    protocol: Protocol
    engine: Engine
    seed: int
    batch_size: int
    part: Part | None = None
    """The shard that the points are; None for a whole evaluation."""
    unseen: Unseen | None = None
    """Threats that no training prepares for, to evaluate as well."""
    state: EvaluationState = field(default_factory=EvaluationState)
    """Where results are saved on the way, so that an interrupted evaluation can continue."""

    def check(self) -> None:
        """Raise BadInput for a setting that is not known or makes no sense."""
        known: dict[str, tuple[str, ...]] = {"protocol": get_args(Protocol), "engine": get_args(Engine)}
        for name, choices in known.items():
            value = getattr(self, name)
            if value not in choices:
                raise BadInput(
                    f"there is no {name} {value!r}", hint=did_you_mean(str(value), choices), field=f"evaluation.{name}"
                )
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise BadInput(
                f"the logical batch has {self.batch_size!r} points",
                hint="give an integer of at least 1",
                field="evaluation.batch_size",
            )


class Search:
    """Attacks on a model's points, one group of logical batches at a time."""

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, eps: Mapping[Norm, float], options: Options
    ) -> None:
        self._model, self._images, self._labels, self._eps, self._options = model, images, labels, eps, options
        self._chunks = ChunkSizer(_CHUNK_SIZE.get(images.device.type, 256), images.device)
        self._folded = folded(model, images[:8]) if options.engine == "temper" else model
        self._state = options.state
        self.resumes = self._state.begin(self._identity)

    def check_model(self) -> list[Flag]:
        """Run the sanity checks on the first logical batch."""
        images, labels = (points[: self._options.batch_size] for points in (self._images, self._labels))
        protocol = self._options.protocol
        return self._chunks.fit(
            lambda chunk_size: list(
                flags_of_model(self._model, images, labels, protocol, targets=TARGETS, chunk_size=chunk_size)
            )
        )

    def predict_clean(self) -> Tensor:
        """Classify the images: (examples,). A saved result is not computed again: another device may round
        differently, and the saved states of attacks belong to the points that were right then."""
        saved = self._state.get("clean")
        if saved is not None:
            return saved.to(self._labels.device)
        predicted = self._predict(self._images)
        self._state.put({"clean": predicted})
        return predicted

    def run(
        self, name: str, attack: Attack[Any, ...], threat: Threat, row: Row, *, row_id: str
    ) -> Generator[Saved, None, AttackRecord]:
        """Run one attack on the points that are still robust, and enter into the row what it finds.

        row_id: the key of the row in the report.
        """
        begun = time.monotonic()
        attacked = int((row.predicted == self._labels).sum())
        for points in self._groups():
            first = points.start
            key = f"{row_id}/{name}/{first}"
            group = row.part(points)
            if group.restore(self._state, key):
                continue
            yield from self._save_if_interrupted(self._attack_group(key, name, attack, threat, first, group))
            self._state.put(group.columns(key))
            yield from self._state.snapshot()
        seconds = time.monotonic() - begun
        return row.record(self._labels, threat=row_id, attack=name, attacked=attacked, seconds=seconds)

    def predict_changed(self, row_id: str, change: Callable[[int, Tensor], Tensor]) -> Generator[Saved, None, Tensor]:
        """Classify changed images: (examples,). change: given the index of the first of some images and the images,
        returns the changed ones."""
        return self._save_if_interrupted(self._predict_changed(row_id, change))

    def _predict_changed(self, row_id: str, change: Callable[[int, Tensor], Tensor]) -> Generator[Saved, None, Tensor]:
        found = []
        for points in self._groups():
            key = f"{row_id}/{points.start}"
            predicted = self._state.get(key)
            if predicted is None:
                predicted = self._predict(change(points.start, self._images[points]))
                self._state.put({key: predicted})
                yield from self._state.snapshot()
            found.append(predicted.to(self._labels.device))
        return torch.cat(found)

    def _save_if_interrupted(self, steps: Generator[Saved, None, _Returned]) -> Generator[Saved, None, _Returned]:
        """Take steps; where a request to pause interrupts them, make a snapshot of what is known."""
        try:
            return (yield from steps)
        except Interrupted:
            yield from self._state.snapshot(now=True)
            raise

    def _groups(self) -> Iterator[slice]:
        """Divide the points into groups of logical batches."""
        batch_size = self._options.batch_size
        fitting = min(_GROUP_POINTS, _GROUP_BYTES // self._images[0].nbytes)
        size = max(fitting // batch_size, 1) * batch_size
        return (slice(first, first + size) for first in range(0, len(self._labels), size))

    def _attack_group(
        self, key: str, name: str, attack: Attack[Any, ...], threat: Threat, first: int, group: Row
    ) -> Generator[Saved, None, None]:
        """Attack the logical batches that begin at point `first`; `group`: their part of the row."""
        robust = group.predicted == self._labels[first : first + len(group.predicted)]
        indices = robust.nonzero().squeeze(1)
        if len(indices) == 0:
            return
        images, labels = self._images[first + indices], self._labels[first + indices]
        counts = [int(batch.sum()) for batch in robust.split(self._options.batch_size)]
        sizes = tuple(count for count in counts if count)
        # Attacks search on a copy that is faster to compute; what they find is judged by the model itself.
        searched = self._model if depends_on_last_bit(name, threat) else self._folded
        while True:
            state = self._state.get_attack(key)
            options = AttackOptions(self._options.seed, sizes, self._chunks.chunk_size, state, checked=True)
            try:
                with closing(attack.steps(searched, images, labels, threat, options)) as steps:
                    result = yield from self._take(steps, key)
                break
            except RuntimeError as error:
                self._check(error, max(sizes))
            # After the except block, which held on to the memory of the failed attempt.
            self._chunks.halve()
        found = self._predict(result.adversarial)
        fooled = find_fooled(name, threat, images, labels, result, found)
        outside = torch.zeros_like(fooled)
        if isinstance(threat, LpThreat):
            _, outside = self._chunks.fit(
                lambda chunk_size: bring_inside(
                    self._model, images, labels, result.adversarial, fooled, threat, chunk_size=chunk_size
                )
            )
        group.enter(indices, result, found, fooled, outside)

    def _take(self, steps: Steps, key: str) -> Generator[Saved, None, AttackResult]:
        """Take an attack's steps, and save its state when that is due."""
        attack = Returning(steps)
        for state in attack:
            if self._state.is_due:
                self._state.put_attack(key, state())
                yield from self._state.snapshot()
        return attack.value

    def _predict(self, images: Tensor) -> Tensor:
        """Classify images with the model itself: (examples,); NO_CLASS where a logit is not finite."""
        return classify(self._chunks.fit(lambda chunk_size: predict(self._model, images, chunk_size=chunk_size)))

    def _check(self, error: RuntimeError, size: int) -> None:
        """Raise an error of an attack, unless it can be tried again with a smaller chunk size.

        size: points of the largest logical batch, which pyautoattack computes as a whole.
        """
        if self._options.engine == "reference" and is_out_of_memory(error):
            raise OutOfMemory(
                f"pyautoattack on a logical batch of {size} points does not fit the memory of {self._images.device}",
                hint="leave evaluation.engine at temper, which computes as many at once as fit, or make "
                "evaluation.batch_size smaller, which changes the random numbers",
                field="evaluation.batch_size",
            ) from error
        self._chunks.check(error)

    def _identity(self) -> str:
        """Hash what the verdicts depend on."""
        asked = {name: value for name, value in vars(self._options).items() if name != "state"}
        versions = checkpoint.verdict_versions(checkpoint.versions())
        digest = hashlib.sha256(repr((asked, dict(self._eps), versions)).encode())
        tensors = [self._images, self._labels, *self._model.state_dict().values()]
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

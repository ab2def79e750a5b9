"""The batches of a run, epoch after epoch: in which order they come, and which share of them a process computes."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from core.data.split import Batch
from core.data.training_set import TrainingSet
from core.schema.spec import TrainingSpec
from core.training.distributed import ProcessGroup
from core.training.random_streams import stream


class Batches:
    """The share of one process of every batch. Every process draws the same order and the same augmentation."""

    def __init__(self, spec: TrainingSpec, train: TrainingSet, group: ProcessGroup) -> None:
        self._spec, self._train, self._share = spec, train, group.share
        self.per_epoch = train.steps(spec.batch_size)
        """Batches of an epoch."""
        self._streams = {name: stream(spec.seed, name) for name in ("order", "augmentation")}
        self._order_at_epoch = self._streams["order"].get_state()
        """The state that the order of the current epoch was drawn from."""
        self._order: list[Tensor] = []
        self._rest: Iterator[Batch] = iter(())

    def take(self, step: int) -> tuple[Batch, int]:
        """Return this process's share of the next batch, and the size of the whole batch.

        step: steps taken before. After an interruption, the rest of the epoch follows.
        """
        position = step % self.per_epoch
        if position == 0 or not self._order:
            self._begin_epoch(position)
        return next(self._rest), len(self._order[position])

    def _begin_epoch(self, position: int) -> None:
        self._order_at_epoch = self._streams["order"].get_state()
        self._order = self._train.draw_order(self._spec.batch_size, self._streams["order"])
        self._rest = self._train.batches(
            self._order[position:],
            self._spec.augmentation,
            self._streams["augmentation"],
            self._share,
        )

    def state_dict(self, step: int) -> dict[str, Tensor]:
        """Return the states of the random streams. step: steps taken so far."""
        states = {name: generator.get_state() for name, generator in self._streams.items()}
        if step % self.per_epoch:
            # Within an epoch the order is drawn again, from the state that the epoch began with.
            states["order"] = self._order_at_epoch
        return states

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Continue from the states of an equal run."""
        for name, generator in self._streams.items():
            generator.set_state(states[name])

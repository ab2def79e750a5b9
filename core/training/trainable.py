"""The part of a model that trains: all of it, all but frozen layers, or in a linear probe the head alone.

A layer that does not train computes as in eval mode, so that its batch norm statistics stay. A linear probe trains the
head on frozen features before the whole network is fine-tuned, which distorts these less (Kumar et al. 2022, arXiv
2202.10054).
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from core.models.heads import find_head
from core.models.normalisation import Normalized
from core.schema.errors import BadInput
from core.schema.spec import FineTuneSpec, TrainingSpec

_MOST_NAMED = 8


class TrainablePart:
    """The parameters of a model that train in each phase of a run, and the mode of its layers then."""

    def __init__(self, model: nn.Module, spec: TrainingSpec, shape: tuple[int, int, int]) -> None:
        """shape: channels, height and width of an image. Raises BadInput for a choice that trains nothing."""
        self._model = model
        tuned = spec if isinstance(spec, FineTuneSpec) else None
        # A parameter that the user's own code has frozen stays frozen.
        self._trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if tuned and tuned.freeze:
            self._trained -= set(_matching(model, tuned.freeze))
        if not self._trained:
            raise BadInput(
                "no parameter of the model is left to train",
                hint="freeze fewer of them",
                field="freeze",
            )
        self.head: frozenset[str] = frozenset()
        """Names of the parameters of the head, where the spec has options of its own for it."""
        if tuned and (tuned.linear_probe_epochs or tuned.head_learning_rate is not None):
            self.head = self._find_head(shape, tuned)

    def _find_head(self, shape: tuple[int, int, int], spec: FineTuneSpec) -> frozenset[str]:
        field = "linear_probe_epochs" if spec.linear_probe_epochs else "head_learning_rate"
        places = find_head(self._model, shape)
        if not places:
            raise BadInput(
                f"{field} is about the head of the network, and none is recognised: its logits are not the output of "
                "an nn.Linear",
                hint=f"leave {field} out",
                field=field,
            )
        named = {
            f"{place}.{name}" for place in places for name, _ in self._model.get_submodule(place).named_parameters()
        }
        if not named & self._trained:
            raise BadInput("the head of the network is frozen", hint=f"leave {field} out, or freeze less", field=field)
        return frozenset(named & self._trained)

    def head_parameters(self) -> list[nn.Parameter]:
        """List the parameters of the head."""
        return [parameter for name, parameter in self._model.named_parameters() if name in self.head]

    def enter(self, *, probing: bool) -> None:
        """Let the part train that does in this phase, and put every layer into the mode that it trains in.

        probing: whether the head trains alone.
        """
        names = self.head if probing else self._trained
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in names)
        self._model.train()
        for place in self.still(probing=probing):
            self._model.get_submodule(place).eval()

    def still(self, *, probing: bool) -> list[str]:
        """List the modules none of whose parameters train in this phase, by their names in the model."""
        names = self.head if probing else self._trained
        found = []
        for place, module in self._model.named_modules():
            own = [f"{place}.{name}" if place else name for name, _ in module.named_parameters()]
            if own and names.isdisjoint(own):
                found.append(place)
        return found


def _matching(model: nn.Module, patterns: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the parameters that match a pattern. Raises BadInput for a pattern that matches none."""
    # The names are the network's own, which the normalisation before it would prefix.
    prefix = "network." if isinstance(model, Normalized) else ""
    names = [name.removeprefix(prefix) for name, _ in model.named_parameters()]
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise BadInput(
                f"{pattern!r} matches no parameter of the network",
                hint=f"match names such as {', '.join(names[:_MOST_NAMED])}",
                field="freeze",
            )
        yield from (f"{prefix}{name}" for name in found)

"""The model as training attacks use it: with batch norm folded into the convolutions, and compiled on request."""

from torch import Tensor, nn

from core.attacks import frozen
from core.attacks.compiling import Compiled
from core.models.folding import Twin


class AttackedModel:
    """A faster form of one model in eval mode, made at its first use; it always has the model's current weights."""

    def __init__(self) -> None:
        self._twin: Twin | None = None
        self._compiled: Compiled | None = None

    def of(self, model: nn.Module, images: Tensor) -> nn.Module:
        """Return the faster form of `model`, or `model` where there is none.

        images (batch, channels, height, width): the images to attack; a new form is checked on them.
        """
        if self._twin is None:
            self._twin = Twin(model)
        with frozen(model):
            twin = self._twin.of(model, images)
            return self._compiled.of(twin, images) if self._compiled else twin

    def compile(self, model: nn.Module, images: Tensor) -> str | None:
        """Compile the form for batches of the shape of `images`; return the reason where that is not possible."""
        self._compiled = Compiled()
        self.of(model, images)
        return self._compiled.refusal

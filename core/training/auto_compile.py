"""Decision when to compile the attacked network: at once, never, or when that saves more time than it takes."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from core.attacks.compiling import pays
from core.schema.events import Warned
from core.schema.spec import Compile
from core.training.methods.attacked_model import AttackedModel


class AutoCompile:
    """Compiles the attacked network of a run, at most once. auto: on a GPU only."""

    def __init__(self, mode: Compile, attacked: AttackedModel, device: torch.device) -> None:
        self._mode = mode if mode != "auto" or device.type == "cuda" else "never"
        self._attacked = attacked
        self._pace = Pace()

    def before_step(self, model: nn.Module, images: Tensor, steps_left: int) -> Iterator[Warned]:
        """Compile if it is due, for batches like `images` (batch, channels, height, width); warn where it cannot."""
        if self._mode == "never":
            return
        if self._mode == "auto":
            pace = self._pace.seconds
            if pace is None or not pays(pace=pace, steps=steps_left):
                return
        self._mode = "never"
        if refusal := self._attacked.compile(model, images):
            yield Warned(
                code="not_compiled",
                message=f"the attacked network could not be compiled and is used uncompiled: {refusal}",
            )

    def after_step(self, now: float) -> None:
        """Measure the pace. now: seconds, on a clock that never goes back."""
        self._pace.tick(now)


class Pace:
    """The mean time of a training step, without the first few, which include one-time costs."""

    first = 5
    enough = 20

    def __init__(self) -> None:
        self._steps = 0
        self._began: float | None = None
        self.seconds: float | None = None
        """Seconds per step; None until `enough` steps have been taken."""

    def tick(self, now: float) -> None:
        """Record the end of a step."""
        self._steps += 1
        if self._steps == self.first:
            self._began = now
        elif self._began is not None and self._steps == self.enough:
            self.seconds = (now - self._began) / (self.enough - self.first)

"""The optimiser: SGD with momentum or AdamW, its parameter groups, and the learning rate of each step."""

from collections.abc import Collection, Iterator, Mapping
from math import cos, pi

import torch
from torch import Tensor, nn

from core.schema.recipe import Schedule
from core.schema.spec import FineTuneSpec, TrainingSpec


def learning_rate(schedule: Schedule, highest: float, step: int, total: int, *, warmup: float = 0.0) -> float:
    """Return the learning rate of a step, counted from 0, in a run of `total` steps.

    constant: `highest`. piecewise: `highest`, a tenth and a hundredth of it, each for a third of the run; the rate
    drops on the last step of a third, as in the E-AT code. one-cycle: a linear rise to `highest` over three tenths of
    the run, then a linear fall to zero. cosine: a fall from `highest` to zero along half a cosine (Loshchilov & Hutter
    2017, arXiv 1608.03983), after the warm-up.

    warmup: the share of the run, in [0, 1), in which the rate is multiplied by a factor that rises linearly from 0 to
    1. Rises and falls are those at the middle of the step.
    """
    progress = (step + 0.5) / total
    rise = min(progress / warmup, 1) if warmup else 1.0
    match schedule:
        case "constant":
            return highest * rise
        case "piecewise":
            thirds = 3 * (step + 1) // total
            return highest / 10 ** min(thirds, 2) * rise
        case "one-cycle":
            return highest * min(progress / 0.3, (1 - progress) / 0.7)
        case "cosine":
            fall = max(progress - warmup, 0) / (1 - warmup)
            return highest * rise * (1 + cos(pi * fall)) / 2


def parameter_groups(model: nn.Module, spec: TrainingSpec) -> list[dict]:
    """Group the parameters for the optimiser.

    Fine-tuning with SGD decays all of them, as the E-AT code does. AdamW, and training from random weights, do not
    decay biases and norm layers. Every group follows the schedule; the E-AT code trains its second group at a constant
    rate of 1.0 instead.
    """
    if isinstance(spec, FineTuneSpec) and spec.optimizer == "sgd":
        return [{"params": list(model.parameters())}]
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def with_head_apart(groups: list[dict], head: Collection[nn.Parameter], times: float) -> list[dict]:
    """Divide each group into the parameters of the head and all others; the head trains at `times` their rate."""
    own = {id(parameter) for parameter in head}
    parts = []
    for group in groups:
        of_head = [parameter for parameter in group["params"] if id(parameter) in own]
        others = [parameter for parameter in group["params"] if id(parameter) not in own]
        parts += [{**group, "params": others, "times": 1.0}] if others else []
        parts += [{**group, "params": of_head, "times": times}] if of_head else []
    return parts


class Optimiser:
    """SGD with momentum or AdamW, whose learning rate follows the schedule of a spec."""

    def __init__(
        self,
        model: nn.Module,
        spec: TrainingSpec,
        device: torch.device,
        total_steps: int,
        head: Collection[nn.Parameter] = (),
    ) -> None:
        """head: parameters that follow `head_learning_rate`, where the spec has one."""
        self._spec, self._total_steps = spec, total_steps
        own_rate = spec.head_learning_rate if isinstance(spec, FineTuneSpec) else None
        times = 1.0 if own_rate is None else own_rate / spec.learning_rate
        self._fused = device.type == "cuda"
        groups = with_head_apart(parameter_groups(model, spec), head if times != 1.0 else (), times)
        self._optimizer = self._build(groups)

    def _build(self, groups: list[dict]) -> torch.optim.Optimizer:
        spec = self._spec
        match spec.optimizer:
            case "sgd":
                assert spec.momentum is not None, "the spec refuses SGD without one"
                return torch.optim.SGD(
                    groups,
                    lr=spec.learning_rate,
                    momentum=spec.momentum,
                    weight_decay=spec.weight_decay,
                    fused=self._fused,
                )
            case "adamw":
                return torch.optim.AdamW(
                    groups, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=self._fused
                )

    def schedule(self, step: int) -> float:
        """Set the learning rate of a step, counted from 0, and return it."""
        spec = self._spec
        rate = learning_rate(spec.schedule, spec.learning_rate, step, self._total_steps, warmup=spec.warmup)
        self.set_learning_rate(rate)
        return rate

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of every group; that of the head is a fixed multiple of it."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["times"]

    def step(self) -> None:
        """Update the parameters by their gradients, which are clipped where the spec says so."""
        if self._spec.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters(), self._spec.clip_grad_norm)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of each parameter that has one, under the parameter's number and the state's name."""
        return {
            f"{number}/{name}": value
            for number, parameter in enumerate(self._parameters())
            for name, value in self._optimizer.state[parameter].items()
            if value is not None
        }

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Continue from the states of an equal optimiser."""
        parameters = list(self._parameters())
        for key, value in states.items():
            number, _, name = key.partition("/")
            parameter = parameters[int(number)]
            if name == "step":
                # AdamW's count of steps lies where torch looks for it.
                own = value.to(parameter.device if self._fused else "cpu", copy=True)
            else:
                # In the parameter's own memory layout.
                own = torch.empty_like(parameter, requires_grad=False).copy_(value)
            self._optimizer.state[parameter][name] = own

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

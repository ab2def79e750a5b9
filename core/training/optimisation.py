"""The optimiser: SGD with momentum, its parameter groups, and the learning rate of each step."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from core.schema.spec import FineTuneSpec, Schedule, TrainingSpec


def learning_rate(schedule: Schedule, highest: float, step: int, total: int) -> float:
    """Return the learning rate of a step, counted from 0, in a run of `total` steps.

    constant: `highest`. piecewise: `highest`, a tenth and a hundredth of it, each for a third of the run; the rate
    drops on the last step of a third, as in the E-AT code. one-cycle: a linear rise to `highest` over three tenths of
    the run, then a linear fall to zero.
    """
    match schedule:
        case "constant":
            return highest
        case "piecewise":
            thirds = 3 * (step + 1) // total
            return highest / 10 ** min(thirds, 2)
        case "one-cycle":
            progress = (step + 0.5) / total
            return highest * min(progress / 0.3, (1 - progress) / 0.7)


def parameter_groups(model: nn.Module, spec: TrainingSpec) -> list[dict]:
    """Group the parameters for the optimiser.

    Fine-tuning decays all of them. Training from random weights does not decay biases and batch norm. Every group
    follows the schedule; the E-AT code trains its second group at a constant rate of 1.0 instead.
    """
    if isinstance(spec, FineTuneSpec):
        return [{"params": list(model.parameters())}]
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


class Optimiser:
    """SGD with momentum, whose learning rate follows the schedule of a spec."""

    def __init__(self, model: nn.Module, spec: TrainingSpec, device: torch.device, total_steps: int) -> None:
        self._spec, self._total_steps = spec, total_steps
        self._sgd = torch.optim.SGD(
            parameter_groups(model, spec),
            lr=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            fused=device.type == "cuda",
        )

    def schedule(self, step: int) -> float:
        """Set the learning rate of a step, counted from 0, and return it."""
        rate = learning_rate(self._spec.schedule, self._spec.learning_rate, step, self._total_steps)
        self.set_learning_rate(rate)
        return rate

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of every group."""
        for group in self._sgd.param_groups:
            group["lr"] = rate

    def step(self) -> None:
        """Update the parameters by their gradients."""
        self._sgd.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum of each parameter that has one, by the parameter's number."""
        momenta = (self._sgd.state[parameter].get("momentum_buffer") for parameter in self._parameters())
        return {str(number): momentum for number, momentum in enumerate(momenta) if momentum is not None}

    def load_state_dict(self, momenta: Mapping[str, Tensor]) -> None:
        """Continue from the momenta of an equal optimiser."""
        for number, parameter in enumerate(self._parameters()):
            if str(number) in momenta:
                # In the parameter's own memory layout.
                momentum = torch.empty_like(parameter, requires_grad=False).copy_(momenta[str(number)])
                self._sgd.state[parameter]["momentum_buffer"] = momentum

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self._sgd.param_groups:
            yield from group["params"]

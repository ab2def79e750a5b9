"""An exponential moving average of the weights of a run (Rebuffi et al. 2021, arXiv 2103.01946).

Parameters are averaged. Buffers are those of the trained model, but for the statistics of batch norm, which belong to
the weights that they were measured with: they are estimated for the average before it is used.
"""

import copy
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class WeightAverage:
    """The average of a model's parameters over the steps of a run, in a model of its own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """model: is copied, and is what `update` reads; not yet shared among processes, since one of them alone
        evaluates the average. decay: as in `core.schema.recipe.Average`."""
        self._source, self._decay = model, decay
        self._average = copy.deepcopy(model).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after a step, counted from 1.

        After n steps the parameters after step k have the share decay^(n-k) (1 - decay) / (1 - decay^n): the shares add
        up to 1, so that the average does not lean towards the weights before the first step.
        """
        share = (1 - self._decay) / (1 - self._decay**step)
        for average, current in zip(self._average.parameters(), self._source.parameters(), strict=True):
            average.lerp_(current, share)

    @torch.no_grad()
    def model(self, batches: Iterable[Tensor], still: Collection[str] = ()) -> nn.Module:
        """Return the model with the averaged weights, in eval mode; valid until the next update.

        batches: images (batch, channels, height, width), on which the statistics of batch norm are estimated; not read
        for a network without batch norm. still: modules that do not train, whose statistics are those of the model.
        """
        for own, buffer in zip(self._average.buffers(), self._source.buffers(), strict=True):
            own.copy_(buffer)
        estimate_statistics(self._average, batches, still)
        return self._average

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged parameters by name."""
        return {name: parameter.detach() for name, parameter in self._average.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, parameters: Mapping[str, Tensor]) -> None:
        """Continue from the average of an equal run."""
        for name, parameter in self._average.named_parameters():
            parameter.copy_(parameters[name])


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor], still: Collection[str] = ()) -> None:
    """Estimate the running statistics of batch norm as their mean over batches; leave the model in eval mode.

    still: the names of modules whose statistics stay.

    Only batch norm computes as in training, so that layers such as dropout draw nothing. Nothing is read or changed in
    a network without running statistics.
    """
    model.eval()
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and not any(f"{name}.".startswith(f"{place}.") for place in still)
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # torch then takes the mean over all batches.
        norm.momentum = None
        # Not .train(), which would reach the layers inside, such as the dropout in a norm of timm's.
        norm.training = True
    try:
        for images in batches:
            model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False

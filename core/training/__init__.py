"""Training: fine-tuning and training from random weights, as a generator of events."""

from core.training.run import fine_tune

__all__ = ["fine_tune"]

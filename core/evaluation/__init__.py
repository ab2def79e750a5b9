"""Evaluation: AutoAttack per norm, the union per point, and the checks around it."""

from core.evaluation.autoattack import evaluate

__all__ = ["evaluate"]

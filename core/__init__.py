"""Adversarial training and evaluation of image classifiers: a library that works without the service.

    from core.evaluation import evaluate            robust accuracy per norm and in the union
    from core.training import fine_tune             a run, as a generator of events
    from core.attacks.apgd import apgd              one attack
    from core.checkpoint import load                a model with its spec and report
    from core.schema.spec import FineTuneSpec       what a run is; `core.schema` needs no torch
    python -m core train|finetune|evaluate|...      the same from a shell

The service imports nothing of it but `core.schema`.
"""

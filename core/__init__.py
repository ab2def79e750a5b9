"""Temper's library: it knows tensors, not people. Useful alone.

    from core.schema.spec import FineTuneSpec            what a run is                       (no torch)
    from core.training.run import fine_tune           the loop, a generator of events
    from core.evaluation.autoattack import evaluate          robust accuracy per norm and in the union
    from core.attacks.apgd import apgd            one attack
    python -m core train|finetune|evaluate|...    the same from a shell

Only `spec`, `advice`, `events`, `catalog`, `published` and `errors` may be imported by the service: they load in an
instant, without torch. Nothing is re-exported here, so that importing one of those stays that light.
"""

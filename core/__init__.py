"""Temper's library: it works on tensors and knows nothing of users or a service.

    from core.schema.spec import FineTuneSpec             the spec of a run
    from core.training import fine_tune                   the training loop, a generator of events
    from core.evaluation import evaluate                  robust accuracy per norm and in the union
    from core.attacks.apgd import apgd_ce                 an attack
    python -m core train|finetune|evaluate|...            the same from a shell

Only `core.schema` may be imported by the service: it needs no torch. Nothing is re-exported here, so that importing it
stays fast.
"""

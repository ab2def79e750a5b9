"""An attack that was broken off goes on."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Attack, AttackOptions, AttackResult, Returning, State, Steps
from core.attacks.apgd import apgd_ce, apgd_t
from core.attacks.fab import fab_t
from core.attacks.square import square
from core.attacks.threat import LpThreat
from core.schema.catalog import NORMS, Norm

_EPS: dict[Norm, float] = {"linf": 0.2, "l2": 1.0, "l1": 4.0}
# With so many steps that each of them ends after some points have fallen.
_ATTACKS: dict[str, Attack[LpThreat, ...]] = {
    "apgd-ce": apgd_ce.with_settings(restarts=4, steps=4),
    "apgd-t": apgd_t.with_settings(targets=4, steps=4),
    "fab-t": fab_t.with_settings(targets=4, steps=4),
    "square": square.with_settings(queries=70),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", list(_ATTACKS))
def test_an_attack_goes_on_from_any_of_its_steps_as_if_nothing_had_been(
    name: str, norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:40] for points in test_digits)
    # Square finds less.
    eps = _EPS[norm] * (1.5 if name == "square" else 1)

    def begin(state: State | None = None) -> Steps:
        chunk_size = 30 if name == "fab-t" else None
        options = AttackOptions(batch_sizes=(13, 7, 20), chunk_size=chunk_size, state=state)
        return _ATTACKS[name].steps(base, images, labels, LpThreat(norm, eps), options)

    states: list[State] = []
    whole = _take(begin(), states)
    assert len(states) >= 3
    for state in states[:: max(len(states) // 6, 1)]:
        before = {key: tensor.clone() for key, tensor in state.items()}
        result = _take(begin(state))
        assert torch.equal(result.robust, whole.robust)
        assert torch.equal(result.adversarial, whole.adversarial)
        assert torch.equal(result.loss, whole.loss)
        assert all(torch.equal(tensor, state[key]) for key, tensor in before.items()), "it may be needed again"
    fallen = [int((~state["robust"]).sum()) for state in states]
    assert fallen[0] < fallen[-1], "points fell on the way"


class _Coarse(nn.Module):
    """Gives logits on a grid, so that points come to a tie."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.div(3).round()


def test_what_square_found_at_a_tie_is_not_lost(base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:40] for points in test_digits)

    def begin(state: State | None = None) -> Steps:
        options = AttackOptions(state=state)
        return square.steps(_Coarse(base), images, labels, LpThreat("linf", 0.3), options, queries=30)

    states: list[State] = []
    whole = _take(begin(), states)
    tied = whole.robust & (whole.loss == 0)
    assert tied.any()
    for state in states[::5]:
        result = _take(begin(state))
        assert torch.equal(result.robust, whole.robust)
        assert torch.equal(result.adversarial, whole.adversarial)


def _take(steps: Steps, states: list[State] | None = None) -> AttackResult:
    """Take the steps, and note the states."""
    attack = Returning(steps)
    for state in attack:
        if states is not None:
            states.append({name: tensor.clone() for name, tensor in state().items()})
    return attack.value

"""The defining rule of each training method."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks.apgd import apgd
from core.catalog import METHODS, Norm
from core.events import NormCount
from core.methods import TrainingRule, build
from core.spec import Method

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


def _rule(method: str | dict, seed: int = 0) -> TrainingRule:
    options = {"name": method} if isinstance(method, str) else method
    return build(Method.model_validate(options), _EPS, torch.Generator().manual_seed(seed))


@pytest.fixture
def batch(test_digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images, labels = test_digits
    return images[:32], labels[:32]


def test_natural_training_attacks_nothing(base: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    result = _rule("nat")(base, *batch)
    assert result.norm is None
    torch.testing.assert_close(result.loss, F.cross_entropy(base(batch[0]), batch[1]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_single_norm_training_takes_the_loss_of_the_attacked_batch(
    norm: Norm, base: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    rule = _rule({"name": "single", "norms": [norm], "steps": 4})
    found = apgd(base, *batch, norm, _EPS[norm], steps=4, density=0.05)
    base.train()
    result = rule(base, *batch)
    assert base.training
    assert result.norm == norm
    assert rule.counts == {norm: NormCount(seen=32, robust=int(found.robust.sum()))}
    # The update sees the batch's own statistics, the attack the running ones: so the forward pass is repeated in train
    # mode, from running statistics that the update itself has moved.
    torch.testing.assert_close(result.loss, F.cross_entropy(base(found.adversarial), batch[1]))


def test_the_gradient_flows_into_the_weights_and_not_through_the_attack(
    base: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    images = batch[0].clone().requires_grad_()
    result = _rule({"name": "single", "norms": ["linf"], "steps": 2})(base, images, batch[1])
    result.loss.backward()
    assert all(parameter.grad is not None for parameter in base.parameters())
    assert images.grad is None


def test_e_at_weighs_each_norm_by_its_robust_error_over_the_whole_run() -> None:
    rule = _rule("e-at")
    assert rule.weights() == [1, 1]
    rule.counts["linf"] = NormCount(seen=100, robust=80)
    assert rule.weights() == [1, 1], "until both norms have been seen, both are as likely"
    rule.counts["l1"] = NormCount(seen=50, robust=20)
    assert rule.weights() == pytest.approx([0.2, 0.6])


def test_e_at_draws_the_harder_norm_in_proportion_to_its_error(batch: tuple[Tensor, Tensor]) -> None:
    rule = _rule({"name": "e-at", "steps": 1}, seed=3)
    drawn = Counter()
    for _ in range(600):
        rule.counts = {"linf": NormCount(seen=1000, robust=800), "l1": NormCount(seen=1000, robust=400)}
        drawn[rule(_Constant(), batch[0][:1], batch[1][:1]).norm] += 1
    # 600 draws at 0.75: five standard deviations are 53.
    assert abs(drawn["l1"] - 450) < 53
    assert set(drawn) == {"linf", "l1"}


class _Constant(nn.Module):
    """Ten equal logits that still have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        return self.bias + 0 * images.flatten(1).sum(1, keepdim=True)


def test_e_at_counts_every_image_under_the_norm_drawn_for_its_batch(
    base: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    rule = _rule({"name": "e-at", "steps": 2})
    drawn = Counter(rule(base, *batch).norm for _ in range(8))
    assert {norm: count.seen for norm, count in rule.counts.items()} == {norm: 32 * drawn[norm] for norm in rule.counts}
    assert all(0 <= count.robust <= count.seen for count in rule.counts.values())


def test_e_at_goes_on_from_the_counts_it_is_given(base: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    rule = _rule({"name": "e-at", "steps": 1})
    rule.counts = {"linf": NormCount(seen=10, robust=9), "l1": NormCount(seen=10, robust=1)}
    norm = rule(base, *batch).norm
    assert norm is not None
    assert rule.counts[norm].seen == 42


def test_e_at_with_nothing_left_to_fear_draws_uniformly() -> None:
    rule = _rule("e-at")
    rule.counts = {"linf": NormCount(seen=9, robust=9), "l1": NormCount(seen=9, robust=9)}
    assert rule.weights() == [1, 1]


def test_sat_draws_all_norms_as_often_whatever_the_counts(batch: tuple[Tensor, Tensor]) -> None:
    rule = _rule({"name": "sat", "steps": 1})
    rule.counts["l1"] = NormCount(seen=1000, robust=0)
    drawn = Counter(rule(_Constant(), batch[0][:1], batch[1][:1]).norm for _ in range(600))
    # 600 draws at a third: five standard deviations are 58.
    assert all(abs(drawn[norm] - 200) < 58 for norm in ("linf", "l2", "l1"))


def test_every_method_of_the_catalogue_can_be_built() -> None:
    for entry in METHODS.values():
        norms = entry.norms if entry.norms is not None else ("l2",)
        assert set(_rule({"name": entry.name, "norms": norms}).counts) == set(norms)

"""The defining rule of each training method."""

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attacks.apgd import apgd
from core.attacks.losses import kl_divergence
from core.attacks.perceptual import perceptual
from core.attacks.threat import LpThreat, PerceptualThreat
from core.data.split import Batch
from core.geometry import project
from core.schema.catalog import METHODS, MethodEntry, Norm
from core.schema.method import Method
from core.schema.progress import NormCount
from core.training import methods
from core.training.methods import build
from core.training.methods.contract import BatchLoss, Counts, TrainingMethod, add_counts, whole
from core.training.methods.ramp import pair
from core.training.methods.single import SingleNorm

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


def _build(method: str | dict, seed: int = 0) -> TrainingMethod:
    options = {"name": method} if isinstance(method, str) else method
    return build(Method.model_validate(options), _EPS, torch.Generator().manual_seed(seed))


def _loss(method: TrainingMethod, model: nn.Module, batch: Batch, counts: Counts | None = None) -> BatchLoss:
    return method(model, batch, whole(batch), counts or {})


@pytest.fixture
def batch(test_digits: tuple[Tensor, Tensor]) -> Batch:
    images, labels = test_digits
    return Batch(images[:32], labels[:32])


def test_natural_training_attacks_nothing(base: nn.Module, batch: Batch) -> None:
    result = _loss(_build("nat"), base, batch)
    assert result.norm is None
    torch.testing.assert_close(result.loss, F.cross_entropy(base(batch[0]), batch[1]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_single_norm_training_takes_the_loss_of_the_attacked_batch(norm: Norm, base: nn.Module, batch: Batch) -> None:
    found = apgd(base, *batch, LpThreat(norm, _EPS[norm]), steps=4, topk_fraction=0.05)
    base.train()
    result = _loss(_build({"name": "single", "norms": [norm], "steps": 4}), base, batch)
    assert base.training
    assert result.norm == norm
    assert result.counts == {norm: NormCount(seen=32, robust=int(found.robust.sum()))}
    # The update sees the batch's own statistics, the attack the running ones: so the forward pass is repeated in train
    # mode, from running statistics that the update itself has moved.
    torch.testing.assert_close(result.loss, F.cross_entropy(base(found.adversarial), batch[1]))


def test_the_gradient_flows_into_the_weights_and_not_through_the_attack(base: nn.Module, batch: Batch) -> None:
    images = batch[0].clone().requires_grad_()
    method = _build({"name": "single", "norms": ["linf"], "steps": 2})
    result = _loss(method, base, Batch(images, batch.labels))
    result.loss.backward()
    assert all(parameter.grad is not None for parameter in base.parameters())
    assert images.grad is None


@pytest.mark.parametrize("loss", ["cross-entropy", "trades"])
def test_label_smoothing_is_torchs_own_and_changes_no_attack(loss: str, base: nn.Module, batch: Batch) -> None:
    options = Method.model_validate({"name": "single", "norms": ["linf"], "steps": 4, "loss": loss})
    plain, smooth = (
        build(options, _EPS, torch.Generator().manual_seed(0), label_smoothing=share) for share in (0.0, 0.3)
    )
    assert isinstance(plain, SingleNorm)
    attacked = plain.attack(base, batch, whole(batch), "linf").adversarial
    clean, adversarial = base(batch.images), base(attacked)
    result = smooth(base, batch, whole(batch), {})
    if loss == "cross-entropy":
        expected = F.cross_entropy(adversarial, batch.labels, label_smoothing=0.3)
    else:
        # The divergence needs no labels.
        expected = F.cross_entropy(clean, batch.labels, label_smoothing=0.3)
        expected = expected + 6 * kl_divergence(adversarial, batch.labels, clean).mean()
    torch.testing.assert_close(result.loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nat", "pat", "avg", "max", "msd", "ramp", "e-at"])
def test_every_method_smooths_labels_and_computes_its_loss_again(name: str, base: nn.Module, batch: Batch) -> None:
    few = Batch(batch.images[:8], batch.labels[:8])
    options = Method.model_validate({"name": name, **({} if name in ("nat", "pat") else {"steps": 2})})
    plain, half, smooth = (
        build(options, _EPS, torch.Generator().manual_seed(0), label_smoothing=share)(base, few, whole(few), {})
        for share in (0.0, 0.4, 0.8)
    )
    # The cross-entropy of the same attacked images is linear in the share.
    assert abs((half.loss - plain.loss).item()) > 0.01
    torch.testing.assert_close(smooth.loss - half.loss, half.loss - plain.loss, rtol=1e-4, atol=1e-5)
    assert smooth.counts == plain.counts
    assert smooth.again is not None
    torch.testing.assert_close(smooth.again().total(), smooth.total())


def test_e_at_weighs_each_norm_by_its_robust_error_over_the_whole_run() -> None:
    e_at = _build("e-at")
    none = NormCount(seen=0, robust=0)
    assert e_at.weights({}) == e_at.weights({"linf": none, "l1": none}) == [1, 1]
    counts = {"linf": NormCount(seen=100, robust=80), "l1": none}
    assert e_at.weights(counts) == [1, 1], "until both norms have been seen, both are as likely"
    assert e_at.weights({**counts, "l1": NormCount(seen=50, robust=20)}) == pytest.approx([0.2, 0.6])


def test_e_at_draws_the_harder_norm_in_proportion_to_its_error(batch: Batch) -> None:
    e_at = _build({"name": "e-at", "steps": 1}, seed=3)
    counts = {"linf": NormCount(seen=1000, robust=800), "l1": NormCount(seen=1000, robust=400)}
    one = Batch(batch.images[:1], batch.labels[:1])
    drawn = Counter(_loss(e_at, _Constant(), one, counts).norm for _ in range(600))
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


def test_e_at_counts_every_image_under_the_norm_drawn_for_its_batch(base: nn.Module, batch: Batch) -> None:
    e_at = _build({"name": "e-at", "steps": 2})
    drawn: Counter[Norm | None] = Counter()
    counts: Counts = {}
    for _ in range(8):
        found = _loss(e_at, base, batch, counts)
        drawn[found.norm] += 1
        counts = add_counts(counts, found.counts)
    assert {norm: count.seen for norm, count in counts.items()} == {norm: 32 * drawn[norm] for norm in counts}
    assert sum(drawn.values()) == 8
    assert all(0 <= count.robust <= count.seen for count in counts.values())


def test_e_at_goes_on_from_the_counts_it_is_given(base: nn.Module, batch: Batch) -> None:
    counts = {"linf": NormCount(seen=10, robust=9), "l1": NormCount(seen=10, robust=1)}
    found = _loss(_build({"name": "e-at", "steps": 1}), base, batch, counts)
    assert found.norm is not None
    assert add_counts(counts, found.counts)[found.norm].seen == 42
    assert counts["linf"].seen == counts["l1"].seen == 10, "the caller's counts stay as they are"


def test_e_at_draws_uniformly_when_no_norm_has_any_error() -> None:
    counts = {"linf": NormCount(seen=9, robust=9), "l1": NormCount(seen=9, robust=9)}
    assert _build("e-at").weights(counts) == [1, 1]


def test_sat_draws_all_norms_as_often_whatever_the_counts(batch: Batch) -> None:
    sat = _build({"name": "sat", "steps": 1})
    counts = {"l1": NormCount(seen=1000, robust=0)}
    one = Batch(batch.images[:1], batch.labels[:1])
    drawn = Counter(_loss(sat, _Constant(), one, counts).norm for _ in range(600))
    # 600 draws at a third: five standard deviations are 58.
    assert all(abs(drawn[norm] - 200) < 58 for norm in ("linf", "l2", "l1"))


def test_the_methods_that_can_be_built_are_those_of_the_catalogue() -> None:
    assert methods._METHODS.keys() == METHODS.keys()


@pytest.mark.parametrize("entry", METHODS.values(), ids=lambda entry: entry.name)
def test_every_method_of_the_catalogue_can_be_built_and_attacks_its_norms(
    entry: MethodEntry, base: nn.Module, batch: Batch
) -> None:
    norms = entry.norms if entry.norms is not None else ("l2",)
    method = _build({"name": entry.name, "norms": norms, **({"steps": 1} if norms else {})})
    assert tuple(getattr(method, "norms", ())) == tuple(norms)
    assert set(_loss(method, base, Batch(batch.images[:2], batch.labels[:2])).counts) <= set(norms)


# Four pixels by hand. The logits are zero and z = 10 a + b + c + d - 11; label 0 is attacked up the slopes, so that the
# cross-entropy is softplus(z). The first pixel of the second image has no room left. How far z can rise:
#                 linf 0.1            l2 0.05                 l1 0.15
#   first image   0.1 * 13 = 1.3      0.05 * sqrt(103)        0.15 * 10 = 1.5, the worst
#   second image  0.1 * 3 = 0.3       (at most) 0.0867        (at most) 0.15       so linf is the worst
_HAND_EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.05, "l1": 0.15}
_SLOPES = torch.tensor([10.0, 1, 1, 1])
_PIXELS = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]])
_UP_LINF = torch.tensor([[0.6, 0.6, 0.6, 0.6], [1.0, 0.6, 0.6, 0.6]])
_UP_L1 = torch.tensor([[0.65, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]])


class _FourPixels(nn.Module):
    """The two logits above."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(_SLOPES.clone())

    def forward(self, images: Tensor) -> Tensor:
        z = images.flatten(1) @ self.slopes - 11
        return torch.stack([torch.zeros_like(z), z], 1)


_BY_HAND = Batch(_PIXELS.view(2, 1, 1, 4), torch.tensor([0, 0]))


def _by_hand(method: str | dict) -> tuple[Tensor, Tensor, Counts]:
    """Return the loss, its gradient with respect to the slopes, and the counts."""
    options = {"name": method} if isinstance(method, str) else method
    training = build(Method.model_validate(options), _HAND_EPS, torch.Generator().manual_seed(0))
    model = _FourPixels()
    result = _loss(training, model, _BY_HAND)
    assert result.norm is None or len(result.counts) == 1
    loss = result.total()
    loss.backward()
    assert model.slopes.grad is not None
    return loss.detach(), model.slopes.grad, result.counts


def _expect(loss: Tensor, gradient: Tensor, formula: Callable[[Tensor], Tensor]) -> None:
    slopes = _SLOPES.clone().requires_grad_()
    expected = formula(slopes)
    (expected_gradient,) = torch.autograd.grad(expected, slopes)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def test_avg_takes_the_mean_of_the_losses_under_every_norm() -> None:
    loss, gradient, counts = _by_hand({"name": "avg", "norms": ["linf", "l1"]})
    _expect(
        loss,
        gradient,
        lambda slopes: (F.softplus(_UP_LINF @ slopes - 11).mean() + F.softplus(_UP_L1 @ slopes - 11).mean()) / 2,
    )
    # The first image has z = -4.5 before the attacks and stays right; the second has z = 0.5 and never was.
    assert counts == dict.fromkeys(("linf", "l1"), NormCount(seen=2, robust=1))


def test_max_takes_the_loss_of_each_image_under_the_norm_that_is_worst_for_it() -> None:
    loss, gradient, _ = _by_hand("max")
    worst = torch.stack([_UP_L1[0], _UP_LINF[1]])
    _expect(loss, gradient, lambda slopes: F.softplus(worst @ slopes - 11).mean())


def test_msd_takes_the_loss_at_the_end_of_its_one_attack_and_counts_every_norm() -> None:
    loss, gradient, counts = _by_hand({"name": "msd", "norms": ["linf", "l1"], "steps": 2})
    worst = torch.stack([_UP_L1[0], _UP_LINF[1]])
    _expect(loss, gradient, lambda slopes: F.softplus(worst @ slopes - 11).mean())
    assert counts == dict.fromkeys(("linf", "l1"), NormCount(seen=2, robust=1))


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL between two answers, given as the logits z of the second of two classes."""
    return p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q)) + (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_ramp_adds_the_divergence_where_the_first_norms_answer_is_right(weight: float) -> None:
    method: dict = {"name": "ramp"} if weight == 0.5 else {"name": "ramp", "pairing": weight}
    loss, gradient, _ = _by_hand(method)
    worst = torch.stack([_UP_L1[0], _UP_LINF[1]])

    def formula(slopes: Tensor) -> Tensor:
        pairing = _divergence(_UP_LINF[0] @ slopes - 11, _UP_L1[0] @ slopes - 11)
        return F.softplus(worst @ slopes - 11).mean() + weight * pairing

    _expect(loss, gradient, formula)


def test_ramp_pairs_nothing_when_nothing_is_right() -> None:
    q = torch.tensor([[0.0, 1.0], [0.0, 2.0]], requires_grad=True)
    loss, count = pair(q, q.detach() + 1, torch.tensor([0, 0]))
    loss.backward()
    assert loss == count == 0
    assert q.grad is not None
    assert (q.grad == 0).all()


def test_trades_adds_beta_times_the_divergence_from_the_clean_answers() -> None:
    loss, gradient, _ = _by_hand({"name": "single", "norms": ["linf"], "loss": "trades", "beta": 2})
    # To either side of the clean answer the divergence grows outwards. By its start each image went up or down.
    down = torch.tensor([[0.4, 0.4, 0.4, 0.4], [0.9, 0.4, 0.4, 0.4]])

    def formula(slopes: Tensor, first: int, second: int) -> Tensor:
        clean = _PIXELS @ slopes - 11
        found = torch.stack([(_UP_LINF, down)[first][0], (_UP_LINF, down)[second][1]])
        return F.softplus(clean).mean() + 2 * _divergence(clean, found @ slopes - 11).mean()

    (ways,) = [ways for ways in product((0, 1), repeat=2) if torch.isclose(formula(_SLOPES, *ways), loss, rtol=1e-4)]
    _expect(loss, gradient, lambda slopes: formula(slopes, *ways))


def test_avg_with_trades_takes_the_mean_over_the_norms_of_the_divergence_alone() -> None:
    method = Method(name="avg", norms=("linf", "l1"), loss="trades")
    loss, gradient, _ = _by_hand(method.model_dump())
    attacker = build(method, _HAND_EPS, torch.Generator().manual_seed(0))
    found = attacker.attack_each(_FourPixels(), _BY_HAND, whole(_BY_HAND)).values()

    def formula(slopes: Tensor) -> Tensor:
        clean = _PIXELS @ slopes - 11
        divergences = [_divergence(clean, result.adversarial.flatten(1) @ slopes - 11).mean() for result in found]
        return F.softplus(clean).mean() + 6 * sum(divergences) / 2

    _expect(loss, gradient, formula)


def test_trades_attacks_the_divergence_from_the_model_s_answers_in_eval_mode(base: nn.Module, batch: Batch) -> None:
    method = _build({"name": "single", "norms": ["l2"], "loss": "trades"})
    base.eval()
    with torch.no_grad():
        clean = base(batch[0])
        noise = torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(0))
        anywhere = project(batch[0], batch[0] + noise, "l2", 0.5)
        divergences = kl_divergence(base(anywhere), batch[1], clean)
    base.train()
    found = method.attack(base, batch, whole(batch), "l2")
    base.eval()
    with torch.no_grad():
        reached = kl_divergence(base(found.adversarial), batch[1], clean)
    torch.testing.assert_close(reached, found.loss)
    assert reached.mean() > 5 * divergences.mean(), "far above a random point of the ball"


def test_an_attack_on_the_divergence_starts_where_its_gradient_is_not_zero(base: nn.Module, batch: Batch) -> None:
    method = _build({"name": "msd", "loss": "trades"})
    objective = method.objective(base, batch.images, whole(batch))
    change = (objective.start - batch[0]).flatten(1)
    # 1.5 times a twentieth of 64 pixels, so that an l1 attack's first step changes a twentieth.
    assert ((change != 0).sum(1) == 5).all()
    assert change.abs().max() < 0.01
    assert objective.start.min() >= 0
    assert objective.start.max() <= 1


def test_pat_takes_the_loss_of_the_perceptual_attack(base: nn.Module, batch: Batch) -> None:
    noise = torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(0))
    found = perceptual(base, *batch, PerceptualThreat(0.25), noise=noise)
    base.train()
    result = _loss(_build({"name": "pat", "bound": 0.25}), base, batch)
    assert base.training
    torch.testing.assert_close(result.loss, F.cross_entropy(base(found.adversarial), batch[1]))


@pytest.mark.parametrize(
    ("method", "forward", "backward"),
    [
        ({"name": "single", "norms": ["l1"]}, 11 + 1, 10),
        ({"name": "single", "norms": ["l1"], "loss": "trades"}, 11 + 1 + 2, 10),
        ({"name": "sat"}, 11 + 1, 10),
        ({"name": "e-at"}, 11 + 1, 10),
        ({"name": "avg"}, 3 * (11 + 1), 30),
        ({"name": "max"}, 3 * 11 + 1, 30),
        ({"name": "msd"}, 10 * (1 + 3) + 1, 10),
        ({"name": "ramp"}, 2 * (11 + 1), 20),
        ({"name": "pat"}, 2 + 2 * 10 + 1, 10),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_batch_costs_the_stated_number_of_passes(
    method: dict, forward: int, backward: int, base: nn.Module, batch: Batch
) -> None:
    passes: Counter[str] = Counter()

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        passes["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update(backward=len(gradient)))

    eight = Batch(batch.images[:8], batch.labels[:8])
    training = _build(method)
    # The first batch also checks the folded model that is attacked, which shares the last layer with the model.
    _loss(training, base.train(), eight)
    base.classifier.register_forward_hook(count)
    _loss(training, base, eight)
    assert passes == {"forward": 8 * forward, "backward": 8 * backward}

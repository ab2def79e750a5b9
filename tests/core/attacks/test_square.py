"""Square against its contract, its invariants, and pyautoattack."""

import copy

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from core.attacks import AttackOptions
from core.attacks.reference import NAMES
from core.attacks.square import square
from core.attacks.threat import LpThreat
from core.geometry import length
from core.schema.catalog import NORMS, Norm

_EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


class _RowByRow(nn.Module):
    """A small network whose answer to a point is the same to the last bit whatever is computed beside it."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        pixels = shape[0] * shape[1] * shape[2]
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return ((images - 0.5).flatten(1)[:, None] * self.weight).sum(2).tanh()


class _InParts(nn.Module):
    """The same model, with at most `size` points at once."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.model(part) for part in images.split(self.size)])


def _case(shape: tuple[int, int, int], points: int, classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Make a network, and images that it has right but for every sixth."""
    model = _RowByRow(shape, classes)
    images = torch.rand(points, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::6] = (labels[::6] + 1) % classes
    return model, images, labels


def _theirs(model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float, queries: int) -> Tensor:
    with torch.random.fork_rng(), torch.no_grad():
        attack = SquareAttack(
            model, norm=NAMES[norm], n_queries=queries, eps=eps, seed=0, resc_schedule=False, device=images.device
        )
        adversarial: Tensor = attack.perturb(images, labels)
        return adversarial


def _robust(model: nn.Module, adversarial: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(adversarial).argmax(1) == labels


@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_on_the_digits_base_are_those_of_pyautoattack(
    norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:48] for points in test_digits)
    eps = 1.3 * _EPS[norm]
    ours = square(base, images, labels, LpThreat(norm, eps), queries=250).robust
    theirs = _robust(base, _theirs(base, images, labels, norm, eps, queries=250), labels)
    assert torch.equal(ours, theirs)
    assert 0 < ours.sum() < 48


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("norm", NORMS)
def test_verdicts_at_the_settings_of_autoattack_flip_no_more_than_its_own(
    norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = test_digits
    ours = square(base, images, labels, LpThreat(norm, _EPS[norm])).robust
    whole, in_parts = (
        _robust(base, _theirs(model, images, labels, norm, _EPS[norm], queries=5000), labels)
        for model in (base, _InParts(base, 7))
    )
    assert (ours != whole).sum() <= (whole != in_parts).sum()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 15, 15), (2, 6, 11)])
@pytest.mark.parametrize("norm", NORMS)
def test_points_found_are_those_of_pyautoattack(norm: Norm, shape: tuple[int, int, int]) -> None:
    model, images, labels = _case(shape, 30, 5)
    eps = {"linf": 0.02, "l2": 0.2, "l1": 1.0}[norm]
    result = square(model, images, labels, LpThreat(norm, eps), queries=120)
    theirs = _theirs(model, images, labels, norm, eps, queries=120)
    right = _robust(model, theirs, labels)
    assert torch.equal(result.robust, right)
    assert 3 <= right.sum() <= 24
    torch.testing.assert_close(result.adversarial[~right], theirs[~right], atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_batches_attacked_together_give_each_point_what_it_gets_alone(norm: Norm) -> None:
    model, images, labels = _case((3, 9, 9), 40, 5)
    eps = {"linf": 0.04, "l2": 0.25, "l1": 1.5}[norm]
    sizes = (15, 1, 15, 9)
    options = AttackOptions(seed=3, batch_sizes=sizes, chunk_size=4)
    together = square(model, images, labels, LpThreat(norm, eps), options, queries=150)
    assert 0 < together.robust.sum() < 33
    for part in torch.arange(40).split(sizes):
        alone = square(model, images[part], labels[part], LpThreat(norm, eps), AttackOptions(seed=3), queries=150)
        assert torch.equal(together.robust[part], alone.robust)
        assert torch.equal(together.adversarial[part], alone.adversarial)
        assert torch.equal(together.loss[part], alone.loss)


@pytest.mark.parametrize("norm", NORMS)
def test_square_keeps_the_contract(norm: Norm, base: nn.Module, test_digits: tuple[Tensor, Tensor]) -> None:
    images, labels = (points[:16] for points in test_digits)
    base.train()
    base.features[1].eval()
    modes = [module.training for module in base.modules()]
    last = list(base.parameters())[-1]
    last.grad = torch.full_like(last, 3.0)
    weights = copy.deepcopy(base.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()

    eps = 2 * _EPS[norm]
    result, same, other = (
        square(base, images, labels, LpThreat(norm, eps), AttackOptions(seed), queries=40) for seed in (0, 0, 1)
    )

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in base.modules()] == modes
    assert (last.grad == 3).all()
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.state_dict().items())
    assert torch.equal(result.adversarial, same.adversarial)
    assert not torch.equal(result.adversarial, other.adversarial)
    assert (length(result.adversarial - images, norm) <= eps * (1 + 1e-5)).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 1
    base.eval()
    with torch.no_grad():
        logits = base(result.adversarial)
    assert torch.equal(logits.argmax(1) == labels, result.robust)
    assert not result.robust.all()
    wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(result.loss, wrong - logits.gather(1, labels[:, None]).squeeze(1))


def test_every_move_is_one_window_of_one_sign_per_channel_and_the_highest_loss_stays() -> None:
    model, images, labels = _case((2, 10, 14), 2, 3)
    image, label, eps = images[1:], labels[1:], 0.005
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].clone()))
    result = square(model, image, label, LpThreat("linf", eps), queries=300)
    assert result.robust.all()
    best, highest, sides = seen[1], -torch.inf, []
    for candidate in seen[1:]:
        rows, columns = (candidate != best).any(0).nonzero(as_tuple=True)
        if len(rows):
            low, high = (image[0] - eps).clamp(min=0), (image[0] + eps).clamp(max=1)
            window = (slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1))
            sides.append(max(rows.max() - rows.min(), columns.max() - columns.min()) + 1)
            for moved, least, most in zip(candidate, low, high, strict=True):
                ends = [(moved[window] - end[window]).abs().max() for end in (least, most)]
                # A channel that already had its sign keeps it, with stripes wherever the window shows them.
                assert min(ends) < 1e-6
        with torch.no_grad():
            logits = model(candidate[None])[0]
        lead = logits[torch.arange(3) != label].max() - logits[label]
        if lead > highest:
            best, highest = candidate, lead
    assert max(sides) <= 10
    assert sides[-1] <= 4
    assert torch.equal(result.adversarial[0], best)
    assert result.loss == highest


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 6, 17), (3, 17, 6), (1, 3, 3), (1, 1, 1)])
def test_images_of_any_shape_are_searched_all_over(norm: Norm, shape: tuple[int, int, int]) -> None:
    images = torch.full((4, *shape), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 3))
    labels = model(images).argmax(1)
    touched: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: touched.append((inputs[0] != images[0]).any(0)))
    eps = 1e-4
    result = square(model, images, labels, LpThreat(norm, eps), queries=200)
    assert (length(result.adversarial - images, norm) <= eps * (1 + 1e-2)).all()
    changed = torch.stack(touched).any(0)
    # A window does not reach the last row and column once it is smaller than the image.
    assert changed[:, : max(shape[1] - 1, 1), : max(shape[2] - 1, 1)].all()


@pytest.mark.parametrize("norm", NORMS)
def test_with_two_classes_verdicts_agree_with_what_is_possible(norm: Norm) -> None:
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
        model[1].bias.copy_(torch.tensor([0.0, (0.5 * (model[1].weight[0] - model[1].weight[1])).sum()]))
        logits = model(images)
    labels = logits.argmax(1)
    slope = (model[1].weight[0] - model[1].weight[1]).detach()
    dual = {"linf": slope.abs().sum(), "l2": slope.norm(), "l1": slope.abs().max()}[norm]
    # How far the boundary is; no pixel is near the edge of the box.
    distance = (logits[:, 0] - logits[:, 1]).abs() / dual
    eps = {"linf": 0.02, "l2": 0.07, "l1": 0.15}[norm]
    robust = square(model, images, labels, LpThreat(norm, eps), queries=300).robust
    assert robust[distance > eps].all()
    assert not robust[distance < 0.3 * eps].any()
    assert (distance > eps).sum() > 3
    assert (distance < 0.3 * eps).sum() > 3


def test_no_pass_is_spent_on_the_fallen_nor_on_a_move_tried_in_vain() -> None:
    looks: list[int] = []
    images = torch.full((3, 1, 4, 4), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    model.register_forward_pre_hook(lambda _, inputs: looks.append(len(inputs[0])))
    labels = torch.tensor([0, 1, 0])
    result = square(model, images, labels, LpThreat("linf", 0.1), queries=3000)
    assert result.robust.tolist() == [True, False, True]
    # Sides 4 (once), 3, 2 and 1 have 1, 1, 4 and 9 windows, in two signs; the moves with larger ones come first.
    assert looks[:2] == [3, 2]
    assert sum(looks[2:]) <= 2 * 2 * (1 + 1 + 4 + 9)
    assert len(looks) > 10


def test_points_that_are_wrong_to_begin_with_are_handed_back() -> None:
    model, images, labels = _case((1, 5, 5), 6, 3)
    with torch.no_grad():
        labels = (model(images).argmax(1) + 1) % 3
    result = square(model, images, labels, LpThreat("l2", 0.1))
    assert not result.robust.any()
    assert torch.equal(result.adversarial, images)

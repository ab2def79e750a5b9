"""Sparse-RS against the contract of attacks, for each of its threats."""

import copy

import pytest
import torch
from torch import Tensor, nn

from core.attacks import Attack, AttackOptions, Returning, State, Steps
from core.attacks.threat import Threat
from core.threats.frames import FrameThreat, frame
from core.threats.patches import PatchThreat, patch
from core.threats.pixels import PixelsThreat, sparse_pixels
from tests.support.other_device import DEVICE, elsewhere, move

_ATTACKS: dict[str, Attack[Threat, ...]] = {"l0": sparse_pixels, "patch": patch, "frame": frame}
_THREATS: dict[str, list[Threat]] = {
    "l0": [PixelsThreat(count) for count in (1, 2, 3, 5)],
    "patch": [PatchThreat(side) for side in (1, 2, 3, 5)],
    "frame": [FrameThreat(width) for width in (1, 2, 3)],
}
_SHAPES = [
    ((1, 8, 8), torch.float32),
    ((3, 32, 32), torch.float32),
    ((2, 9, 13), torch.float64),
    ((4, 13, 9), torch.float32),
]

names = pytest.mark.parametrize("name", list(_ATTACKS))
either_mode = pytest.mark.parametrize("compat", [False, True])


class _RowByRow(nn.Module):
    """A linear model whose answer to a point is the same to the last bit whatever is computed beside it."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        pixels = shape[0] * shape[1] * shape[2]
        self.weight = nn.Parameter(torch.randn(classes, pixels, generator=generator) / pixels**0.5)
        self.lead = nn.Parameter(torch.zeros(classes))
        self.asked: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach().clone())
        return (images.flatten(1)[:, None] * self.weight).sum(2) + self.lead


def _case(shape: tuple[int, int, int], points: int, lead: float = 1.0) -> tuple[_RowByRow, Tensor, Tensor]:
    """Make a model, and images that it takes for class 0 by about this lead, as is right but for every sixth."""
    model = _RowByRow(shape, 4)
    images = torch.rand(points, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(images)
        model.lead[0] = (logits[:, 1:].amax(1) - logits[:, 0]).max() + lead
    model.asked.clear()
    labels = torch.zeros(points, dtype=torch.int64)
    labels[::6] = 1
    return model, images, labels


def _mixed_case(
    name: str, threat: Threat, shape: tuple[int, int, int], points: int, queries: int
) -> tuple[_RowByRow, Tensor, Tensor]:
    """Make a model and images, about half of which so many queries fool."""
    model, images, labels = _case(shape, points, lead=50)
    result = _ATTACKS[name](model, images, labels, threat, queries=queries)
    with torch.no_grad():
        model.lead[0] += result.loss[labels == 0].median()
    model.asked.clear()
    return model, images, labels


class _Constant(nn.Module):
    """Gives the same logits for any image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)
        self.asked: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach().clone())
        return self.logits.expand(len(images), -1)


@either_mode
@names
def test_the_contract_of_attacks_is_kept(
    name: str, compat: bool, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    attack, threat = _ATTACKS[name], _THREATS[name][1 if name == "patch" else 0]
    images, labels = (points[:30] for points in test_digits)
    base.train()
    base.features[1].eval()
    modes = [module.training for module in base.modules()]
    weights = copy.deepcopy(base.state_dict())
    before = images.clone()
    torch.manual_seed(7)
    state = torch.get_rng_state()

    result, same, other = (
        attack(base, images, labels, threat, AttackOptions(seed), queries=30, compat=compat) for seed in (0, 0, 1)
    )

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert [module.training for module in base.modules()] == modes
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert all(torch.equal(tensor, weights[key]) for key, tensor in base.state_dict().items())
    assert torch.equal(result.adversarial, same.adversarial)
    assert not torch.equal(result.adversarial, other.adversarial)
    assert threat.contains(images, result.adversarial).all()
    base.eval()
    with torch.no_grad():
        logits = base(result.adversarial)
    assert torch.equal(logits.argmax(1) == labels, result.robust)
    assert 0 < result.robust.sum() < 30
    wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(result.loss, wrong - logits.gather(1, labels[:, None]).squeeze(1))
    assert not result.not_finite.any()


@names
@pytest.mark.parametrize(("shape", "dtype"), _SHAPES)
def test_what_is_asked_lies_in_the_threat_and_in_every_larger_one(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    for index, threat in enumerate(_THREATS[name]):
        model, images, labels = _case(shape, 8)
        model, images = model.to(dtype), images.to(dtype)
        result = _ATTACKS[name](model, images, labels, threat, queries=20)
        assert result.adversarial.dtype == dtype
        for larger in _THREATS[name][index:]:
            assert larger.contains(images, result.adversarial).all()
        for asked in model.asked[1:]:
            # Every image that was asked belongs to one of the points.
            inside = torch.stack([threat.contains(image.expand_as(asked), asked) for image in images])
            assert inside.any(0).all()
            changed = asked[:, None] != images
            assert asked[:, None].expand_as(changed)[changed & inside.T[:, :, None, None, None]].unique().tolist() in (
                [0, 1],
                [0],
                [1],
            )


@names
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 10)])
def test_a_point_gets_the_same_in_any_batch_and_order(name: str, shape: tuple[int, int, int]) -> None:
    attack, threat = _ATTACKS[name], _THREATS[name][1]
    model, images, labels = _mixed_case(name, threat, shape, 18, 40)
    whole = attack(model, images, labels, threat, queries=40)
    assert 4 < whole.robust.sum() < 11
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))
    sizes = (7, 1, 10)
    shuffled = attack(model, images[order], labels[order], threat, AttackOptions(batch_sizes=sizes), queries=40)
    assert torch.equal(shuffled.adversarial, whole.adversarial[order])
    assert torch.equal(shuffled.loss, whole.loss[order])
    for part in torch.arange(18).split(sizes):
        alone = attack(model, images[part], labels[part], threat, AttackOptions(chunk_size=3), queries=40)
        for field in ("adversarial", "loss", "robust", "late", "not_finite"):
            assert torch.equal(getattr(alone, field), getattr(whole, field)[part])


@names
def test_equal_images_get_equal_results(name: str) -> None:
    model, images, labels = _case((1, 8, 8), 4)
    twice = _ATTACKS[name](
        model, images.repeat(2, 1, 1, 1), labels.repeat(2), _THREATS[name][0], AttackOptions(seed=5), queries=40
    )
    first, second = twice.adversarial.chunk(2)
    assert torch.equal(first, second)


@names
def test_compat_depends_on_the_logical_batch_and_on_nothing_else(name: str) -> None:
    attack, threat = _ATTACKS[name].with_settings(queries=40, compat=True), _THREATS[name][1]
    model, images, labels = _mixed_case(name, threat, (3, 12, 10), 18, 40)
    sizes = (7, 1, 10)
    together = attack(model, images, labels, threat, AttackOptions(batch_sizes=sizes, chunk_size=5))
    for part in torch.arange(18).split(sizes):
        alone = attack(model, images[part], labels[part], threat)
        assert torch.equal(alone.adversarial, together.adversarial[part])
        assert torch.equal(alone.loss, together.loss[part])
    one_batch = attack(model, images, labels, threat)
    assert not torch.equal(one_batch.adversarial, together.adversarial)


@either_mode
@names
def test_a_search_that_was_interrupted_continues_to_the_same_result(name: str, compat: bool) -> None:
    # Images of one channel have few kinds of moves, which are recorded.
    shape, threat = ((3, 7, 8), _THREATS[name][1]) if compat else ((1, 5, 5), _THREATS[name][0])
    model, images, labels = _mixed_case(name, threat, shape, 12, 60)

    def begin(state: State | None = None) -> Steps:
        options = AttackOptions(seed=2, batch_sizes=(8, 4), state=state)
        return _ATTACKS[name].steps(model, images, labels, threat, options, queries=60, compat=compat)

    steps = Returning(begin())
    states = [{key: tensor.clone() for key, tensor in state().items()} for state in steps]
    whole = steps.value
    assert ("tried" in states[0]) is not compat
    assert (~states[0]["robust"]).sum() < (~whole.robust).sum() < 12, "points are fooled on the way"
    for state in [states[0], *states[1::20], states[-1]]:
        before = {key: tensor.clone() for key, tensor in state.items()}
        result = Returning(begin(state)).finish()
        for field in ("adversarial", "loss", "robust", "late", "not_finite"):
            assert torch.equal(getattr(result, field), getattr(whole, field))
        assert all(torch.equal(tensor, state[key]) for key, tensor in before.items()), "it may be needed again"


@names
def test_the_best_point_that_was_asked_about_is_kept(name: str) -> None:
    model, images, labels = _case((1, 8, 8), 2, lead=50)
    image, label = images[1:], labels[1:]
    result = _ATTACKS[name](model, image, label, _THREATS[name][0], queries=60)
    assert result.robust.all()
    asked = torch.cat(model.asked)
    with torch.no_grad():
        logits = model(asked)
    wrong = logits.scatter(1, label.expand(len(asked))[:, None], -torch.inf).amax(1) - logits[:, label].squeeze(1)
    assert torch.equal(result.adversarial[0], asked[wrong.argmax()])
    assert result.loss == wrong.max()


@names
def test_no_pass_is_spent_on_the_fooled_nor_on_a_move_tried_in_vain(name: str) -> None:
    model = _Constant(1.0, 0.0)
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    labels = torch.tensor([0, 1, 0])
    threat = {"l0": PixelsThreat(2), "patch": PatchThreat(2), "frame": FrameThreat(1)}[name]
    result = _ATTACKS[name](model, images, labels, threat, queries=200)
    assert result.robust.tolist() == [True, False, True]
    # The image with the highest margin is the first: a later one of the same margin is not taken.
    assert torch.equal(result.adversarial, images)
    assert [len(asked) for asked in model.asked[:2]] == [3, 2]
    # Exchanges of 2 pixels for 14 in 2 colours; 9 places of the patch and 2 colours of its 4 pixels; 2 of 12 pixels.
    # Larger windows, which have no number, are asked about in the first queries.
    most = {"l0": 2 * 14 * 2, "patch": 9 + 4 * 2, "frame": 12 * 2}[name]
    windows = 100 if name == "frame" else 0
    for point in (0, 2):
        times = sum(int((images[point] == asked).flatten(1).any(1).sum()) for asked in model.asked[2:])
        assert 5 < times <= most + windows


@names
def test_a_search_takes_no_more_passes_than_its_queries_and_one(name: str) -> None:
    model = _Constant(1.0, 0.0)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    _ATTACKS[name](model, images, torch.zeros(2, dtype=torch.int64), _THREATS[name][2], queries=25)
    assert 10 < len(model.asked) <= 26


@names
def test_a_point_fooled_in_the_last_tenth_of_the_queries_is_late(name: str) -> None:
    class Patient(_Constant):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits.flip(1) if len(self.asked) > self.patience else logits

        patience = 0

    images = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    late = []
    model = Patient(1.0, 0.0)
    for patience in range(1, 21):
        model.patience = patience
        model.asked.clear()
        result = _ATTACKS[name](model, images, torch.zeros(1, dtype=torch.int64), _THREATS[name][0], queries=20)
        # A move of the patch that ends at an edge may leave it where it was, and is not asked about.
        if not result.robust:
            late.append(bool(result.late))
    assert late == sorted(late)
    assert late[0] is False
    assert 1 <= sum(late) <= 2


@names
def test_logits_that_are_not_finite_fool_no_point_and_are_told(name: str) -> None:
    class Broken(_RowByRow):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            corners = ((images == 0) | (images == 1)).flatten(1).any(1)
            return torch.where(corners[:, None], torch.nan, logits)

    _, images, _ = _case((1, 8, 8), 6)
    model = Broken((1, 8, 8), 4)
    with torch.no_grad():
        labels = model(images).argmax(1)
    result = _ATTACKS[name](model, images, labels, _THREATS[name][0], queries=20)
    assert result.robust.all()
    assert result.not_finite.all()
    assert torch.equal(result.adversarial, images)
    assert result.loss.isfinite().all()


@names
def test_a_tie_ends_the_search_in_compat_alone(name: str) -> None:
    class Tied(_Constant):
        """Any change leads to a tie, which the label wins, or to an error, by turns."""

        def forward(self, images: Tensor) -> Tensor:
            self.asked.append(images)
            corners = ((images == 0) | (images == 1)).flatten(1).any(1)
            wrong = corners & ((images == 1).flatten(1).sum(1) % 2 == 0)
            return torch.stack([~corners * 1.0, wrong * 1.0], 1)

    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    labels, threat = torch.zeros(8, dtype=torch.int64), _THREATS[name][2]
    model = Tied()
    assert not _ATTACKS[name](model, images, labels, threat, queries=50).robust.any()
    model.asked.clear()
    result = _ATTACKS[name](model, images, labels, threat, queries=50, compat=True)
    assert len(model.asked) == 2, "the images and the starts"
    assert 0 < result.robust.sum() < 8
    assert (result.loss[result.robust] == 0).all()
    assert (result.loss[~result.robust] == 1).all()


@names
def test_points_that_are_wrong_to_begin_with_are_handed_back(name: str) -> None:
    model, images, labels = _case((1, 8, 8), 6)
    result = _ATTACKS[name](model, images, labels + 2, _THREATS[name][0])
    assert not result.robust.any()
    assert not result.late.any()
    assert torch.equal(result.adversarial, images)
    assert len(model.asked) == 1


@either_mode
@names
def test_a_search_runs_on_another_device(
    name: str, compat: bool, base: nn.Module, test_digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = (points[:4] for points in test_digits)
    threat = _THREATS[name][0]
    with elsewhere():
        images, labels = images.to(DEVICE), labels.to(DEVICE)
        # The numbers differ: this device rounds the large integers of the hash.
        result = _ATTACKS[name](move(base), images, labels, threat, queries=6, compat=compat)
        assert result.adversarial.device == DEVICE
        assert threat.contains(images, result.adversarial).tolist() == [True] * 4


@names
def test_a_model_may_compute_in_another_precision_than_its_images(name: str) -> None:
    model, images, labels = _case((1, 8, 8), 6)
    model.register_forward_hook(lambda _, inputs, logits: logits.bfloat16())
    result = _ATTACKS[name](model, images, labels, _THREATS[name][1], queries=20)
    assert _THREATS[name][1].contains(images, result.adversarial).all()

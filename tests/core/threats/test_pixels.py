"""l0: which images the threat contains, how the set of pixels moves, and how near it comes to the best one."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import AttackOptions
from core.schema.errors import BadInput
from core.threats.pixels import Exchanges, PixelsThreat, sparse_pixels
from core.threats.random_numbers import PointNumbers
from core.threats.random_search import Draws, Position


def _images(points: int, *shape: int) -> Tensor:
    return torch.rand(points, *shape, generator=torch.Generator().manual_seed(4)) * 0.8 + 0.1


def _draws(images: Tensor, *, compat: bool = False) -> Draws:
    return Draws.of(PointNumbers(0, images), AttackOptions(), compat=compat)


def test_a_pixel_counts_once_whatever_its_channels() -> None:
    images = _images(1, 3, 5, 4)
    perturbed = images.repeat(5, 1, 1, 1)
    perturbed[1, :, 2, 3] = 0
    perturbed[2, 0, 0, 0], perturbed[2, 2, 4, 3] = 1, 0
    perturbed[3, 0, :3, 0] = 1
    perturbed[4, 1, 1, 1] = images[0, 1, 1, 1].nextafter(torch.tensor(1.0))
    images = images.expand_as(perturbed)
    assert PixelsThreat(1).contains(images, perturbed).tolist() == [True, True, False, False, True]
    assert PixelsThreat(2).contains(images, perturbed).tolist() == [True, True, True, False, True]
    assert PixelsThreat(3).contains(images, perturbed).all()


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_an_image_outside_the_box_is_not_contained(value: float) -> None:
    images = _images(1, 3, 4, 4)
    perturbed = images.clone()
    perturbed[0, 0, 0, 0] = value
    assert not PixelsThreat(1).contains(images, perturbed)


@pytest.mark.parametrize("pixels", [0, -3, 1.5, True, "9", None])
def test_a_number_of_pixels_that_is_none_is_refused(pixels: object) -> None:
    with pytest.raises(BadInput, match="not an integer above 0") as refused:
        PixelsThreat(pixels)  # type: ignore[arg-type]
    assert refused.value.field == "evaluation.unseen"


def test_more_pixels_than_the_image_has_are_refused_before_any_pass() -> None:
    images, labels = _images(2, 3, 4, 5), torch.zeros(2, dtype=torch.int64)
    model = nn.Module()  # It cannot be called.
    for pixels in (20, 21, 10**9):
        with pytest.raises(BadInput, match=f"{pixels} pixels, and an image of 4 x 5 has 20") as refused:
            sparse_pixels(model, images, labels, PixelsThreat(pixels))
        assert refused.value.field == "evaluation.unseen"
    PixelsThreat(19).check((3, 4, 5))


@pytest.mark.parametrize(("shape", "pixels"), [((1, 8, 8), 1), ((3, 6, 9), 7), ((3, 5, 5), 24), ((2, 32, 32), 40)])
def test_a_set_keeps_its_size_and_what_is_outside_it_is_clean(shape: tuple[int, int, int], pixels: int) -> None:
    images = _images(6, *shape)
    draws, moves = _draws(images), Exchanges(pixels, shape, 150)
    position: Position = moves.start(images, draws.colours)
    entered = set()
    for query in range(150):
        if query:
            before = {name: tensor.clone() for name, tensor in position.items()}
            after, _ = moves.propose(images, position, query, draws)
            assert all(torch.equal(position[name], before[name]) for name in before)
            position = after
        members = position["pixels"].sort(1).values
        assert (members.diff(dim=1) > 0).all(), "they are different"
        inside = torch.zeros(6, shape[1] * shape[2], dtype=torch.bool).scatter_(1, members, True)
        colours = position["perturbed"].flatten(2)
        assert ((colours == 0) | (colours == 1)).all(1)[inside].all()
        assert torch.equal(colours.movedim(1, 2)[~inside], images.flatten(2).movedim(1, 2)[~inside])
        entered |= set(members.flatten().tolist())
    assert len(entered) > 0.5 * shape[1] * shape[2]


@pytest.mark.parametrize(
    ("queries", "query", "exchanged"),
    [
        # 0.3 of 100 pixels at first, then half of that, a quarter, a fifth ... at queries that grow with the search.
        (20_000, 1, 30),
        (10_000, 1, 15),
        (10_000, 50, 15),
        (10_000, 51, 7),
        (10_000, 201, 6),
        (10_000, 501, 5),
        (10_000, 1001, 3),
        (10_000, 2001, 3),
        (10_000, 4001, 2),
        (10_000, 6001, 2),
        (10_000, 8001, 1),
        (1000, 5, 15),
        (1000, 6, 7),
        (1000, 999, 1),
    ],
)
def test_as_many_pixels_are_exchanged_as_the_schedule_says(queries: int, query: int, exchanged: int) -> None:
    images = _images(3, 3, 12, 12)
    draws, moves = _draws(images), Exchanges(100, (3, 12, 12), queries)
    position = moves.start(images, draws.colours)
    after, _ = moves.propose(images, position, query, draws)
    # There are no more than 44 others.
    assert ((after["pixels"] != position["pixels"]).sum(1) == exchanged).all()


def test_a_single_pixel_enters_with_a_changed_colour() -> None:
    images = _images(50, 3, 8, 8).round()
    draws, moves = _draws(images), Exchanges(3, (3, 8, 8), 100)
    position = moves.start(images, draws.colours)
    for query in range(1, 20):
        after, _ = moves.propose(images, position, query, draws)
        entered = after["pixels"][after["pixels"] != position["pixels"]][:, None, None].expand(-1, 3, 1)
        colours, clean = (tensor.flatten(2).gather(2, entered) for tensor in (after["perturbed"], images))
        assert (colours != clean).any(1).all()


def test_in_compat_a_batch_exchanges_the_same_places_with_colours_of_its_own() -> None:
    images = _images(12, 3, 9, 9)
    for compat in (False, True):
        draws = Draws.of(PointNumbers(0, images), AttackOptions(batch_sizes=(8, 4)), compat=compat)
        moves = Exchanges(5, (3, 9, 9), 5000)
        start = moves.start(images, draws.colours)
        assert len(start["pixels"].sort(1).values.unique(dim=0)) == 12, "each point has a set of its own"
        slots, colours = [], []
        for query in range(100, 130):
            after, _ = moves.propose(images, start, query, draws)
            differ = after["pixels"] != start["pixels"]
            slots.append(differ.long().argmax(1))
            entered = after["pixels"][differ][:, None, None].expand(-1, 3, 1)
            colours.append(after["perturbed"].flatten(2).gather(2, entered).squeeze(2))
        places = torch.stack(slots)
        same = all((part == part[:, :1]).all() for part in places.split((8, 4), 1))
        assert same is compat
        assert not torch.equal(places[:, 0], places[:, 8]), "another batch has other places"
        assert all(len(drawn[:8].unique(dim=0)) > 1 for drawn in colours)


def _best_lead(model: nn.Module, images: Tensor, labels: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Give the margin of the images on a linear model, and the highest that a number of pixels can make it.

    The margin to a wrong class grows by a pixel by what its best corner gives, and pixels do not depend on each other.
    """
    with torch.no_grad():
        logits = model(images)
        weight = model[1].weight.unflatten(1, (images.shape[1], -1))
        clean, best = [], []
        for wrong in range(logits.shape[1]):
            slope = weight[wrong] - weight[labels]
            colours = images.flatten(2)
            gains = torch.maximum(slope * (1 - colours), -slope * colours).sum(1)
            lead = logits[:, wrong] - logits.gather(1, labels[:, None]).squeeze(1)
            other = labels != wrong
            clean.append(lead.where(other, -torch.inf))
            best.append((lead + gains.topk(pixels).values.sum(1)).where(other, -torch.inf))
    return torch.stack(clean).amax(0), torch.stack(best).amax(0)


@pytest.mark.parametrize(
    ("shape", "pixels", "classes", "least"),
    [
        ((1, 8, 8), 5, 3, 0.9),
        # With eight colours, a pixel that entered with a good one keeps out the same pixel with the best one.
        ((3, 6, 6), 2, 2, 0.8),
    ],
)
def test_most_of_the_best_margin_on_a_linear_model_is_reached(
    shape: tuple[int, int, int], pixels: int, classes: int, least: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))
    images, labels = torch.rand(12, *shape, generator=generator), torch.zeros(12, dtype=torch.int64)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(model[1].weight.shape, generator=generator))
        # So far ahead that no point is fooled, which would end its search.
        model[1].bias.copy_(200.0 * (torch.arange(classes) == 0))
    clean, best = _best_lead(model, images, labels, pixels)
    result = sparse_pixels(model, images, labels, PixelsThreat(pixels), queries=600)
    share = (result.loss - clean) / (best - clean)
    assert result.robust.all()
    assert share.mean() > 0.9
    assert share.min() > least
    assert share.max() < 1 + 1e-4


def test_what_no_number_of_pixels_can_fool_stays_robust_and_the_rest_falls() -> None:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images = torch.rand(60, 1, 8, 8, generator=generator)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(model[1].weight.shape, generator=generator))
        model[1].bias.zero_()
        labels = model(images).argmax(1)
    clean, best = _best_lead(model, images, labels, 2)
    robust = sparse_pixels(model, images, labels, PixelsThreat(2), queries=400).robust
    assert robust[best < 0].all()
    easy = clean + 0.8 * (best - clean) > 0
    assert not robust[easy].any()
    assert 5 < easy.sum() < 55
    assert (best < 0).sum() > 5

"""patch: which images the threat contains, how the patch moves, and how near it comes to the best one."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import AttackOptions
from core.schema.errors import BadInput
from core.threats.patches import PatchMoves, PatchThreat, patch
from core.threats.random_numbers import PointNumbers
from core.threats.random_search import Draws, Position


def _images(points: int, *shape: int) -> Tensor:
    return torch.rand(points, *shape, generator=torch.Generator().manual_seed(4)) * 0.8 + 0.1


def _draws(images: Tensor, *, compat: bool = False) -> Draws:
    return Draws.of(PointNumbers(0, images), AttackOptions(), compat=compat)


def _content(images: Tensor, position: Position, side: int) -> Tensor:
    """Cut the patches out (points, channels, side, side), and check that all else is clean."""
    inside = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    found = []
    for point, (row, column) in enumerate(position["corner"].tolist()):
        inside[point, row : row + side, column : column + side] = True
        found.append(position["perturbed"][point, :, row : row + side, column : column + side])
    assert torch.equal(position["perturbed"].where(~inside[:, None], images), images)
    return torch.stack(found)


def test_all_that_differs_lies_in_one_square() -> None:
    images = _images(1, 3, 6, 9)
    perturbed = images.repeat(6, 1, 1, 1)
    perturbed[1, 0, 5, 8] = 1
    perturbed[2, 0, 0, 0], perturbed[2, 2, 1, 1] = 1, 0
    perturbed[3, 1, 2:5, 4] = 0
    perturbed[4, 1, 2, 4:8] = 0
    perturbed[5, 0, 0, 0], perturbed[5, 2, 5, 8] = 1, 1
    images = images.expand_as(perturbed)
    expected = {
        1: [True, True, False, False, False, False],
        2: [True, True, True, False, False, False],
        3: [True, True, True, True, False, False],
        4: [True, True, True, True, True, False],
        6: [True, True, True, True, True, False],
    }
    for side, contained in expected.items():
        assert PatchThreat(side).contains(images, perturbed).tolist() == contained


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_an_image_outside_the_box_is_not_contained(value: float) -> None:
    images = _images(1, 3, 4, 4)
    perturbed = images.clone()
    perturbed[0, 0, 0, 0] = value
    assert not PatchThreat(2).contains(images, perturbed)


@pytest.mark.parametrize("side", [0, -1, 2.0, False, "5"])
def test_a_side_that_is_none_is_refused(side: object) -> None:
    with pytest.raises(BadInput, match=r"side of the patch is .* not an integer above 0") as refused:
        PatchThreat(side)  # type: ignore[arg-type]
    assert refused.value.field == "evaluation.unseen"


@pytest.mark.parametrize(
    ("shape", "side", "problem", "largest"),
    [
        ((3, 8, 8), 8, "a patch of 8 x 8 covers all of an image of 8 x 8", "at most 7"),
        ((3, 8, 8), 9, "a patch of 9 x 9 is larger than an image of 8 x 8", "at most 7"),
        ((1, 6, 9), 7, "a patch of 7 x 7 is larger than an image of 6 x 9", "at most 6"),
        (
            (1, 1, 1),
            1,
            "a patch of 1 x 1 covers all of an image of 1 x 1",
            "leave patch out, or evaluate on images of 2 x 2 or larger",
        ),
    ],
)
def test_a_patch_that_leaves_nothing_of_the_image_is_refused_before_any_pass(
    shape: tuple[int, int, int], side: int, problem: str, largest: str
) -> None:
    model = nn.Module()  # It cannot be called.
    with pytest.raises(BadInput, match=problem) as refused:
        patch(model, _images(2, *shape), torch.zeros(2, dtype=torch.int64), PatchThreat(side))
    assert largest in refused.value.hint
    assert refused.value.field == "evaluation.unseen"


def test_patches_as_large_as_can_be_are_searched() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(54, 2))
    images = _images(3, 1, 6, 9)
    result = patch(model, images, model(images).argmax(1), PatchThreat(6), queries=20)
    assert PatchThreat(6).contains(images, result.adversarial).all()


def test_a_patch_starts_anywhere_and_in_compat_not_in_the_last_row_and_column() -> None:
    images = _images(600, 1, 7, 9)
    for compat, rows, columns in ((False, 5, 7), (True, 4, 6)):
        start = PatchMoves(3, (1, 7, 9), 100, compat=compat).start(images, _draws(images).colours)
        assert start["corner"][:, 0].unique().tolist() == list(range(rows))
        assert start["corner"][:, 1].unique().tolist() == list(range(columns))


@pytest.mark.parametrize(("side", "squares"), [(1, 1), (4, 1), (9, 2)])
def test_a_patch_starts_full_of_one_coloured_squares(side: int, squares: int) -> None:
    images = _images(150, 3, 12, 12)
    start = PatchMoves(side, (3, 12, 12), 100, compat=False).start(images, _draws(images).colours)
    content = _content(images, start, side)
    assert content.unique().tolist() == [0, 1]
    # Each channel is black and white alike, and neighbours are more often the same where squares are larger than one.
    assert (content.mean((0, 2, 3)) - 0.5).abs().max() < 0.1
    same = (content[..., 1:] == content[..., :-1]).double().mean() if side > 1 else torch.tensor(0.5)
    assert same > 0.6 if squares > 1 else (same - 0.5).abs() < 0.05


@pytest.mark.parametrize(
    ("queries", "query", "window"),
    [
        # The square root of 0.4 of the area of 10 x 10 pixels, and of its halves.
        (10_000, 9, 6),
        (10_000, 11, 4),
        (10_000, 51, 3),
        (10_000, 201, 2),
        (10_000, 501, 1),
        (1000, 1, 6),
        (1000, 2, 4),
        (1000, 51, 1),
    ],
)
def test_windows_shrink_as_the_schedule_says(queries: int, query: int, window: int) -> None:
    images = _images(40, 3, 16, 16)
    draws, moves = _draws(images), PatchMoves(10, (3, 16, 16), queries, compat=False)
    start = moves.start(images, draws.colours)
    moved, _ = moves.propose(images, start, query, draws)
    assert torch.equal(moved["corner"], start["corner"])
    differ = _content(images, moved, 10) != _content(images, start, 10)
    rows, columns = differ.any(1).any(2), differ.any(1).any(1)
    spans = [int(lines.nonzero().max() - lines.nonzero().min()) + 1 for lines in (*rows, *columns) if lines.any()]
    assert max(spans) == window
    for point in range(40):
        colours = _content(images, moved, 10)[point][:, differ[point].any(0)]
        assert (colours == colours[:, :1]).all(), "a window has one colour"
    if window == 1:
        assert (differ.any(1).flatten(1).sum(1) == 1).all(), "a single pixel changes its colour"
        assert differ.sum((1, 2, 3)).unique().tolist() == [1, 2, 3]


def test_single_channels_flip_in_the_second_half_of_the_time_with_single_pixels() -> None:
    images = _images(40, 3, 12, 12)
    draws, moves = _draws(images), PatchMoves(5, (3, 12, 12), 1000, compat=False)
    start = moves.start(images, draws.colours)
    # The first window of one pixel comes at query 6, as sqrt(0.1) * 5 is below 2.
    counts = {}
    for query in (5, 6, 502, 503, 999):
        moved, _ = moves.propose(images, start, query, draws)
        counts[query] = int((moved["perturbed"] != start["perturbed"]).sum((1, 2, 3)).max())
    assert counts[5] > 3
    assert counts[6] == counts[502] == 3
    assert counts[503] == counts[999] == 1


def test_every_fourth_query_moves_the_patch_as_it_is_inside_the_image() -> None:
    images = _images(80, 3, 9, 20)
    for compat in (False, True):
        draws, moves = _draws(images, compat=compat), PatchMoves(3, (3, 9, 20), 200, compat=compat)
        start = moves.start(images, draws.colours)
        content = _content(images, start, 3)
        for query in (4, 40, 100, 196):
            moved, _ = moves.propose(images, start, query, draws)
            assert torch.equal(_content(images, moved, 3), content)
            corner, before = moved["corner"], start["corner"]
            assert ((corner >= 0) & (corner <= torch.tensor([6, 17]))).all()
            # Three quarters of the image at first, and nothing in the end but in the default mode, where it is one.
            farthest = [int(0.75 * (1 - query / 200) * length) for length in (9, 20)]
            if not compat:
                farthest = [max(distance, 1) for distance in farthest]
            distance = (corner - before).abs().amax(0)
            assert (distance <= torch.tensor(farthest)).all()
            assert (distance > 0).all() or compat
        assert farthest == ([0, 0] if compat else [1, 1])


def test_in_compat_a_batch_shares_distances_and_windows_with_colours_of_its_own() -> None:
    images = _images(12, 3, 30, 30)
    for compat in (False, True):
        draws = Draws.of(PointNumbers(0, images), AttackOptions(batch_sizes=(8, 4)), compat=compat)
        moves = PatchMoves(10, (3, 30, 30), 2000, compat=compat)
        start = moves.start(images, draws.colours)
        assert len(start["corner"].unique(dim=0)) > 8, "each point starts at a place of its own"
        start["corner"] = torch.full_like(start["corner"], 10)
        start["perturbed"] = images.clone()
        start["perturbed"][:, :, 10:20, 10:20] = 0
        shifts, windows = [], []
        for query in range(1700, 1720):
            moved, _ = moves.propose(images, start, query, draws)
            if query % 4 == 0:
                shifts.append(moved["corner"])
            else:
                differ = _content(images, moved, 10).ne(0).flatten(1)
                windows.append(differ.long().argmax(1))
        for places in (torch.stack(shifts).flatten(2).movedim(1, 0), torch.stack(windows).movedim(1, 0)):
            same = all((part == part[:1]).all() for part in places.split((8, 4)))
            assert same is compat
            assert not torch.equal(places[0], places[8]), "another batch has other places"
        early = [moves.propose(images, start, query, draws)[0]["perturbed"] for query in range(101, 104)]
        colours = torch.stack(early)[:, :8, :, 10:20, 10:20].amax((3, 4))
        assert all(len(drawn.unique(dim=0)) > 1 for drawn in colours)


def _linear(slope: Tensor) -> nn.Module:
    """Make a model whose margin grows with the image by this slope (channels, height, width)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(slope.numel(), 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(slope.numel()), slope.flatten()]))
        # So far ahead that no point is fooled, which would end its search.
        model[1].bias.copy_(torch.tensor([200.0, 0.0]))
    return model


def _gains(slope: Tensor, images: Tensor, side: int) -> Tensor:
    """Give by how much the best patch at each place raises the margin of a linear model: (points, rows, columns)."""
    gains = torch.maximum(slope * (1 - images), -slope * images).sum(1)
    return gains.unfold(1, side, 1).unfold(2, side, 1).sum((3, 4))


def test_on_a_linear_model_the_colours_are_the_best_ones_for_the_place() -> None:
    images, labels, side = _images(12, 3, 8, 8), torch.zeros(12, dtype=torch.int64), 2
    slope = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = patch(_linear(slope), images, labels, PatchThreat(side), queries=400)
    raised = result.loss - ((images * slope).sum((1, 2, 3)) - 200)
    gains = _gains(slope, images, side)
    differ = (result.adversarial != images).any(1)
    rows, columns = (differ.any(axis).long().argmax(1) for axis in (2, 1))
    share = raised / gains[torch.arange(12), rows, columns]
    assert share.min() > 0.98
    assert share.max() < 1 + 1e-4
    assert (raised < gains.flatten(1).amax(1) * (1 + 1e-4)).all()


def test_the_patch_finds_the_best_place_where_the_slope_leads_there() -> None:
    images, labels, side = torch.full((12, 3, 10, 8), 0.5), torch.zeros(12, dtype=torch.int64), 3
    images += 0.01 * _images(12, 3, 10, 8)
    slope = (torch.arange(10.0)[:, None] + torch.arange(8.0)).expand(3, -1, -1) / 18
    result = patch(_linear(slope), images, labels, PatchThreat(side), queries=400)
    raised = result.loss - ((images * slope).sum((1, 2, 3)) - 200)
    share = raised / _gains(slope, images, side).flatten(1).amax(1)
    assert share.min() > 0.9
    assert share.max() < 1 + 1e-4

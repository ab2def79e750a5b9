"""frame: which images the threat contains, how the border is recoloured, and how near it comes to the best one."""

import pytest
import torch
from torch import Tensor, nn

from core.attacks import AttackOptions
from core.schema.errors import BadInput
from core.threats.frames import FrameMoves, FrameThreat, frame
from core.threats.random_numbers import PointNumbers
from core.threats.random_search import Draws


def _images(points: int, *shape: int) -> Tensor:
    return torch.rand(points, *shape, generator=torch.Generator().manual_seed(4)) * 0.8 + 0.1


def _draws(images: Tensor, *, compat: bool = False) -> Draws:
    return Draws.of(PointNumbers(0, images), AttackOptions(), compat=compat)


def test_only_pixels_near_an_edge_may_differ() -> None:
    images = _images(1, 2, 7, 9)
    for row in range(7):
        for column in range(9):
            perturbed = images.clone()
            perturbed[0, 1, row, column] = 0
            distance = min(row, column, 6 - row, 8 - column)
            for width in (1, 2, 3):
                assert FrameThreat(width).contains(images, perturbed).item() == (distance < width)
    assert FrameThreat(1).contains(images, images).all()


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_an_image_outside_the_box_is_not_contained(value: float) -> None:
    images = _images(1, 3, 4, 4)
    perturbed = images.clone()
    perturbed[0, 0, 0, 0] = value
    assert not FrameThreat(1).contains(images, perturbed)


@pytest.mark.parametrize("width", [0, -1, 1.0, True, "1"])
def test_a_width_that_is_none_is_refused(width: object) -> None:
    with pytest.raises(BadInput, match=r"width of the frame is .* not an integer above 0") as refused:
        FrameThreat(width)  # type: ignore[arg-type]
    assert refused.value.field == "evaluation.unseen"


@pytest.mark.parametrize(
    ("shape", "width", "remedy"),
    [((3, 8, 8), 4, "at most 3"), ((3, 9, 20), 5, "at most 4"), ((1, 2, 5), 1, "3 x 3 pixels or more")],
)
def test_a_frame_that_leaves_nothing_of_the_image_is_refused_before_any_pass(
    shape: tuple[int, int, int], width: int, remedy: str
) -> None:
    model = nn.Module()  # It cannot be called.
    with pytest.raises(BadInput, match=f"a frame of width {width} covers all of an image of") as refused:
        frame(model, _images(2, *shape), torch.zeros(2, dtype=torch.int64), FrameThreat(width))
    assert remedy in refused.value.hint
    assert refused.value.field == "evaluation.unseen"


def test_the_widest_frame_is_searched() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(63, 2))
    images = _images(3, 1, 7, 9)
    result = frame(model, images, model(images).argmax(1), FrameThreat(3), queries=20)
    assert FrameThreat(3).contains(images, result.adversarial).all()


@pytest.mark.parametrize(("shape", "width"), [((3, 8, 8), 1), ((1, 9, 12), 3)])
def test_the_whole_border_starts_with_random_corner_colours(shape: tuple[int, int, int], width: int) -> None:
    images = _images(200, *shape)
    start = FrameMoves(width, images, 100).start(images, _draws(images).colours)["perturbed"]
    inner = (slice(None), slice(None), slice(width, -width), slice(width, -width))
    assert torch.equal(start[inner], images[inner])
    start[inner] = 0.5
    assert ((start == 0) | (start == 1)).sum() == start.numel() - start[inner].numel()
    assert (start.mean((0, 1)) - 0.5).abs().max() < 0.15


@pytest.mark.parametrize(
    ("width", "query", "window"),
    [
        # 3 * ceil((share of the queries left - 0.5) * 0.5 * width^2), in the second half 1.
        (1, 1, 3),
        (1, 499, 3),
        (1, 500, 1),
        (4, 1, 12),
        (4, 249, 9),
        (4, 251, 6),
        (4, 749, 1),
    ],
)
def test_windows_shrink_as_the_schedule_says(width: int, query: int, window: int) -> None:
    images = _images(60, 3, 30, 30)
    draws, moves = _draws(images), FrameMoves(width, images, 1000)
    start = moves.start(images, draws.colours)
    moved, _ = moves.propose(images, start, query, draws)
    assert FrameThreat(width).contains(images, moved["perturbed"]).all()
    differ = moved["perturbed"] != start["perturbed"]
    rows, columns = differ.any(1).any(2), differ.any(1).any(1)
    spans = [int(lines.nonzero().max() - lines.nonzero().min()) + 1 for lines in (*rows, *columns) if lines.any()]
    assert max(spans) == window
    for point in range(60):
        colours = moved["perturbed"][point][:, differ[point].any(0)]
        assert (colours == colours[:, :1]).all(), "a window has one colour"
    if window == 1:
        assert (differ.any(1).flatten(1).sum(1) == 1).all(), "a single pixel changes its colour"


def test_windows_lie_in_all_directions_from_their_pixel() -> None:
    # Black on the border: a window shows where it is white.
    images = _images(1000, 1, 9, 9)
    draws, moves = _draws(images), FrameMoves(1, images, 1000)
    start = moves.start(images, draws.colours)
    start["perturbed"][:, :, [0, -1]] = 0
    start["perturbed"][:, :, :, [0, -1]] = 0
    moved, _ = moves.propose(images, start, 1, draws)
    differ = (moved["perturbed"] != start["perturbed"])[:, 0]
    # From a pixel in the middle of an edge, two of the directions lead out of the image; at the corner three.
    on_top = differ[:, 0] & ~differ[:, 1:].flatten(1).any(1, keepdim=True)
    rows = {tuple(row.nonzero().flatten().tolist()) for row in on_top if row.any()}
    # Three pixels to the right or to the left.
    assert {(first, first + 1, first + 2) for first in range(1, 6)} <= rows
    assert differ.any(0).sum() == 32


def test_single_channels_flip_in_the_second_half_of_the_time_with_single_pixels() -> None:
    images = _images(40, 3, 12, 12)
    draws, moves = _draws(images), FrameMoves(2, images, 1000)
    start = moves.start(images, draws.colours)
    counts = {}
    for query in (500, 749, 750, 999):
        moved, _ = moves.propose(images, start, query, draws)
        counts[query] = int((moved["perturbed"] != start["perturbed"]).sum((1, 2, 3)).max())
    assert counts == {500: 3, 749: 3, 750: 1, 999: 1}


def test_in_compat_a_batch_recolours_the_same_windows_with_colours_of_its_own() -> None:
    images = _images(12, 3, 20, 20)
    for compat in (False, True):
        draws = Draws.of(PointNumbers(0, images), AttackOptions(batch_sizes=(8, 4)), compat=compat)
        moves = FrameMoves(2, images, 2000)
        start = moves.start(images, draws.colours)
        assert len(start["perturbed"][:, :, 0].flatten(1).unique(dim=0)) == 12, "each border starts in its own colours"
        places, channels = [], []
        for query in range(1200, 1220):
            moved, _ = moves.propose(images, start, query, draws)
            differ = moved["perturbed"] != start["perturbed"]
            places.append(differ.any(1).flatten(1).long().argmax(1))
        for query in range(1900, 1920):
            moved, _ = moves.propose(images, start, query, draws)
            channels.append((moved["perturbed"] != start["perturbed"]).flatten(1).long().argmax(1))
        for found in (torch.stack(places, 1), torch.stack(channels, 1)):
            same = all((part == part[:1]).all() for part in found.split((8, 4)))
            assert same is compat
            assert not torch.equal(found[0], found[8]), "another batch has other places"
        early = [moves.propose(images, start, query, draws)[0]["perturbed"] for query in range(1, 6)]
        whites = torch.stack(early) != start["perturbed"]
        assert len({int(channels) for channels in whites[:, :8].any(4).any(3).sum(2).flatten()}) > 1


def test_most_of_the_best_margin_on_a_linear_model_is_reached() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(12, 1, 8, 8, generator=generator), torch.zeros(12, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 64, generator=generator))
        # So far ahead that no point is fooled, which would end its search.
        model[1].bias.copy_(torch.tensor([200.0, 0.0]))
        clean = model(images)[:, 1] - model(images)[:, 0]
        slope = (model[1].weight[1] - model[1].weight[0]).view(1, 8, 8)
        gains = torch.maximum(slope * (1 - images), -slope * images).sum(1)
        best = gains.sum((1, 2)) - gains[:, 1:-1, 1:-1].sum((1, 2))
    result = frame(model, images, labels, FrameThreat(1), queries=400)
    share = (result.loss - clean) / best
    assert result.robust.all()
    assert share.min() > 0.9
    assert share.max() < 1 + 1e-4

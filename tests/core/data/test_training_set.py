"""The order of an epoch: what comes how often, and what a batch is made of."""

from itertools import pairwise

import pytest
import torch

from core.data.split import ProcessShare, Split
from core.data.training_set import TrainingSet


def _split(examples: int, first: int = 0) -> Split:
    """Images of one pixel that number themselves."""
    numbers = torch.arange(first, first + examples)
    return Split(numbers.to(torch.uint8).view(-1, 1, 1, 1), numbers % 2)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_without_extra_data_every_image_comes_once_in_an_epoch() -> None:
    train = TrainingSet(_split(23))
    generator = _generator()
    order, second = train.draw_order(5, generator), train.draw_order(5, generator)
    assert [len(index) for index in order] == [5, 5, 5, 5, 3]
    assert len(order) == train.steps(5)
    assert torch.cat(order).sort().values.tolist() == list(range(23))
    assert not torch.equal(torch.cat(order), torch.cat(second))


@pytest.mark.parametrize(
    ("main", "batch_size", "sizes"),
    [
        (21, 5, [5, 5, 5, 6]),
        (22, 5, [5, 5, 5, 5, 2]),
        (6, 5, [6]),
        (5, 5, [5]),
        (3, 2, [3]),
        (1, 5, [1]),
        (2, 1, [1, 1]),
    ],
)
def test_a_single_image_that_is_left_joins_the_batch_before(main: int, batch_size: int, sizes: list[int]) -> None:
    train = TrainingSet(_split(main))
    order = train.draw_order(batch_size, _generator())
    assert [len(index) for index in order] == sizes
    assert (train.steps(batch_size), train.smallest_batch(batch_size)) == (len(sizes), min(sizes))
    # Which image comes when is what it would be without that.
    assert torch.equal(torch.cat(order), torch.randperm(main, generator=_generator()))


def test_a_single_remaining_image_joins_the_batch_before_it() -> None:
    train = TrainingSet(_split(13), _split(100, first=100), 0.25)
    order = train.draw_order(8, _generator())
    assert [(int((index < 13).sum()), int((index >= 13).sum())) for index in order] == [(6, 2), (7, 2)]
    assert train.steps(8) == 2
    half = TrainingSet(_split(13), _split(100, first=100), 0.5)
    assert [len(index) for index in half.draw_order(8, _generator())] == [8, 8, 8, 2]


@pytest.mark.parametrize("main", [40, 42, 43])
def test_half_of_each_batch_is_extra_and_an_epoch_is_twice_as_long(main: int) -> None:
    train = TrainingSet(_split(main), _split(100, first=100))
    order = train.draw_order(8, _generator())
    assert len(order) == train.steps(8) == -(-2 * main // 8)
    assert len(train) == main
    for index in order[:-1]:
        assert (int((index < main).sum()), int((index >= main).sum())) == (4, 4)
    assert int((order[-1] < main).sum()) == int((order[-1] >= main).sum())
    everything = torch.cat(order)
    assert everything[everything < main].sort().values.tolist() == list(range(main))
    extra = everything[everything >= main]
    assert len(extra.unique()) == len(extra), "there are more extra images than an epoch takes"


def test_extra_images_come_again_only_when_all_have_come() -> None:
    train = TrainingSet(_split(40), _split(7, first=100))
    counts = torch.cat(train.draw_order(8, _generator())).bincount(minlength=47)[40:]
    assert counts.sum() == 40
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("share", "extra"), [(0.25, 2), (0.5, 4), (0.7, 6), (0.01, 1), (0.99, 7)])
def test_the_share_is_kept_and_neither_set_left_out(share: float, extra: int) -> None:
    train = TrainingSet(_split(40), _split(100, first=100), share)
    order = train.draw_order(8, _generator())
    assert int((order[0] >= 40).sum()) == extra
    assert len(order) == -(-40 // (8 - extra))


def test_batches_carry_the_images_and_labels_of_both_sets_mixed() -> None:
    train = TrainingSet(_split(40), _split(100, first=100)).to(torch.device("cpu"))
    batches = list(train.batches(train.draw_order(8, _generator()), "none", _generator()))
    numbers = torch.cat([(batch.images * 255).round().long().flatten() for batch in batches])
    assert torch.equal(numbers % 2, torch.cat([batch.labels for batch in batches]))
    assert sorted(number for number in numbers.tolist() if number < 100) == list(range(40))
    first = [int(number) >= 100 for number in (batches[0].images * 255).round().flatten()]
    assert sum(one != other for one, other in pairwise(first)) > 1, "the halves are not one behind the other"


@pytest.mark.parametrize("augmentation", ["none", "crop-flip", "resized-crop-flip"])
def test_ranks_together_see_what_one_alone_would(augmentation: str) -> None:
    pixels = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=_generator())
    train = TrainingSet(Split(pixels, torch.arange(20)))
    order = train.draw_order(8, _generator())
    alone = list(train.batches(order, augmentation, _generator()))  # type: ignore[arg-type]
    shares = [list(train.batches(order, augmentation, _generator(), ProcessShare(rank, 3))) for rank in range(3)]  # type: ignore[arg-type]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


def test_a_run_resumed_within_an_epoch_gets_the_same_batches() -> None:
    pixels = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=_generator())
    train = TrainingSet(Split(pixels, torch.arange(20)))
    order, generator = train.draw_order(6, _generator()), _generator()
    running = train.batches(order, "crop-flip", generator)
    next(running)
    state = generator.get_state()
    rest = [batch.images for batch in running]
    generator.set_state(state)
    again = [batch.images for batch in train.batches(order[1:], "crop-flip", generator)]
    assert all(torch.equal(one, other) for one, other in zip(rest, again, strict=True))

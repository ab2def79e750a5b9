"""Draws by class: each class has its share, a rare one never leaves training, and uniform draws are those of before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.data.draws import draw_held_out_images, draw_training_images, read_test_points
from core.data.split import Split
from core.schema.errors import BadInput
from core.schema.spec import parse
from core.training.random_streams import stream

_SPEC = {"base_model": "digits-cnn-linf", "eps": {"linf": 0.1, "l1": 1}}


def _labels(*counts: int) -> torch.Tensor:
    labels = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def test_a_rare_class_never_leaves_training() -> None:
    labels = _labels(200, 1)
    for seed in range(30):
        train, held_out = draw_held_out_images(labels, 10, "stratified", stream(seed, "held-out"))
        assert labels[train].sum() == 1
        assert len(held_out) == 10
        subset = draw_training_images(labels, 20, "stratified", stream(seed, "subset"))
        assert labels[subset].sum() == 1


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_each_class_has_its_share_to_within_an_image(counts: list[int], share: float, seed: int) -> None:
    labels = _labels(*counts)
    examples = round(share * (len(labels) - len(counts)))
    train, held_out = draw_held_out_images(labels, examples, "stratified", stream(seed, "held-out"))
    assert sorted(torch.cat([train, held_out]).tolist()) == list(range(len(labels)))
    kept = labels[train].bincount(minlength=len(counts))
    assert kept.min() >= 1
    wanted = torch.tensor(counts) * examples / len(labels)
    # A class that keeps its last image gives it to another one.
    assert (labels[held_out].bincount(minlength=len(counts)) - wanted).abs().max() <= len(counts)
    points = read_test_points(Split(labels.view(-1, 1, 1, 1), labels), examples, "stratified")
    assert (points.labels.bincount(minlength=len(counts)) - wanted).abs().max() < 1.5


def test_the_first_points_are_among_the_first_of_more() -> None:
    part = Split(torch.arange(90, dtype=torch.uint8).view(-1, 1, 1, 1), _labels(30, 60))
    few, many = (read_test_points(part, count, "stratified").pixels.flatten().tolist() for count in (12, 50))
    assert many[:12] == few
    assert read_test_points(part, 12, "uniform").pixels.flatten().tolist() == list(range(12))


def test_uniform_draws_are_those_that_the_figures_were_made_with() -> None:
    labels = _labels(600, 400)
    train, held_out = draw_held_out_images(labels, 64, "uniform", stream(0, "held-out"))
    order = torch.randperm(1000, generator=stream(0, "held-out"))
    assert torch.equal(train, order[64:].sort().values)
    assert torch.equal(held_out, order[:64].sort().values)
    subset = draw_training_images(labels, 128, "uniform", stream(0, "subset"))
    assert torch.equal(subset, torch.randperm(1000, generator=stream(0, "subset"))[:128])


def test_a_spec_says_how_its_images_are_drawn() -> None:
    assert parse(_SPEC).split == "uniform"
    assert parse({**_SPEC, "dataset": "imagenet"}).split == "uniform"
    assert parse({**_SPEC, "dataset": "birds"}).split == "stratified"
    assert parse({**_SPEC, "dataset": "birds", "split": "uniform"}).split == "uniform"
    assert parse({"kind": "evaluate", **_SPEC, "dataset": "birds"}).split == "stratified"


def test_draws_that_would_take_a_class_away_are_refused() -> None:
    with pytest.raises(BadInput, match="1 training images are fewer than the 2 classes") as caught:
        draw_training_images(_labels(5, 5), 1, "stratified", torch.Generator())
    assert caught.value.field == "train_examples"
    with pytest.raises(BadInput, match="9 of 10 training images held out leave a class without images") as caught:
        draw_held_out_images(_labels(5, 5), 9, "stratified", torch.Generator())
    assert caught.value.field == "held_out"
    with pytest.raises(BadInput, match="10 of 10 training images held out leave none to train on"):
        draw_held_out_images(_labels(5, 5), 10, "uniform", torch.Generator())

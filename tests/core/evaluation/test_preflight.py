"""The inspection before a run: sound models pass in silence, each fault is named with its remedy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core import checkpoint, inputs
from core.checkpoint import Header, Origin, RobustnessClaim
from core.data import Dataset
from core.evaluation.autoattack import run_evaluation
from core.evaluation.preflight import inspect, inspect_on_noise, preflight
from core.inputs import Inputs
from core.models import Blueprint, Normalized, build
from core.schema.catalog import Norm
from core.schema.errors import BadWeights, DoesNotFit
from core.schema.events import Started, Warned
from core.schema.spec import AnySpec, EvaluateSpec, FineTuneSpec, parse
from core.training.run import fine_tune

_DIGITS = Blueprint("digits-cnn", (1, 8, 8), 10)


class _Around(nn.Module):
    """A model with something before it and something after it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


def _findings(
    model: nn.Module, digits: Dataset, blueprint: Blueprint = _DIGITS, claims: dict[Norm, RobustnessClaim] | None = None
) -> dict[str, str]:
    found = list(inspect(model, digits.test, blueprint, claims or {}))
    return {warned.code: warned.text for warned in found}


def test_a_sound_model_passes_in_silence_and_is_handed_back_as_it_was(base: nn.Module, digits: Dataset) -> None:
    base.train()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    state = torch.get_rng_state()
    assert _findings(base, digits, claims={"linf": RobustnessClaim(0.15, 0.802)}) == {}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert base.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in base.parameters())


def test_probabilities_are_refused(base: nn.Module, digits: Dataset) -> None:
    with pytest.raises(BadWeights, match="probabilities"):
        _findings(_Around(base, after=lambda logits: logits.softmax(1)), digits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_of_half_precision_are_refused(dtype: torch.dtype, base: nn.Module, digits: Dataset) -> None:
    with pytest.raises(BadWeights, match="before the softmax"):
        _findings(_Around(base, after=lambda logits: logits.to(dtype).softmax(1).float()), digits)


def test_the_answers_of_a_sigmoid_are_refused(base: nn.Module, digits: Dataset) -> None:
    with pytest.raises(BadWeights, match="before the sigmoid") as caught:
        _findings(_Around(base, after=torch.sigmoid), digits)
    assert "leave the sigmoid out" in caught.value.hint
    with pytest.raises(BadWeights, match="before the sigmoid"):
        list(inspect_on_noise(_Around(base, after=torch.sigmoid), _DIGITS))


def test_logits_that_happen_to_lie_between_0_and_1_are_logits(base: nn.Module, digits: Dataset) -> None:
    with torch.no_grad():
        reach = 2.1 * base(digits.test.first(128).images()).abs().max()
    assert _findings(_Around(base, after=lambda logits: 0.5 + logits / reach), digits) == {}
    bounded = _Around(base, after=lambda logits: 0.3 + 0.1 * logits / (1 + logits.abs()))
    assert _findings(bounded, digits) == {}


@pytest.mark.parametrize(("name", "shape"), [("digits-cnn", (1, 8, 8)), ("timm/test_vit", (3, 64, 64))])
def test_a_network_that_was_never_trained_gives_logits(name: str, shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        blueprint = Blueprint(name, shape, 3)
        assert list(inspect_on_noise(build(blueprint).eval(), blueprint)) == []


def test_log_probabilities_are_logits(base: nn.Module, digits: Dataset) -> None:
    assert _findings(_Around(base, after=lambda logits: logits.log_softmax(1)), digits) == {}


def test_logits_that_are_not_numbers_are_refused(base: nn.Module, digits: Dataset) -> None:
    with pytest.raises(BadWeights, match="not all numbers"):
        _findings(_Around(base, before=lambda images: images / 0), digits)


@pytest.mark.parametrize("hidden", [torch.round, Tensor.detach, torch.zeros_like])
def test_a_model_without_any_gradient_is_refused(
    hidden: Callable[[Tensor], Tensor], base: nn.Module, digits: Dataset
) -> None:
    with pytest.raises(BadWeights, match="no gradient"):
        _findings(_Around(base, before=hidden), digits)


def test_gradients_that_many_images_lack_are_a_warning(base: nn.Module, digits: Dataset) -> None:
    def deaf(images: Tensor) -> Tensor:
        dark = (images.mean((1, 2, 3)) < 0.3).view(-1, 1, 1, 1)
        return torch.where(dark, images.detach(), images)

    said = _findings(_Around(base, before=deaf), digits)
    assert set(said) == {"preflight_gradients"}
    assert "use a network without" in said["preflight_gradients"]


def test_logits_so_large_that_training_is_blind_are_a_warning(base: nn.Module, digits: Dataset) -> None:
    with torch.no_grad():
        base.classifier.weight.mul_(1e4)
        base.classifier.bias.mul_(1e4)
    assert "preflight_saturated" in _findings(base, digits)


@pytest.mark.parametrize("shape", [(10, 7), (10, 11)])
def test_another_number_of_classes_is_refused(shape: tuple[int, int], base: nn.Module, digits: Dataset) -> None:
    widen = torch.ones(shape)
    with pytest.raises(DoesNotFit, match=f"{shape[1]}.*10 classes"):
        _findings(_Around(base, after=lambda logits: logits @ widen), digits)


def test_an_answer_that_changes_is_a_warning(base: nn.Module, digits: Dataset) -> None:
    noisy = _Around(base, before=lambda images: images + 0.1 * torch.rand_like(images))
    assert "use a network that draws nothing" in _findings(noisy, digits)["preflight_randomized"]


def test_batch_norm_without_running_statistics_is_a_warning(base: nn.Module, digits: Dataset) -> None:
    for module in base.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    assert "use weights that hold them" in _findings(base, digits)["preflight_batch_dependent"]


def test_logits_that_are_lost_under_attack_are_a_warning(base: nn.Module, digits: Dataset) -> None:
    known = digits.test.first(128).images()

    def lost(images: Tensor) -> Tensor:
        moved = ~(images[:, None] == known).flatten(2).all(2).any(1)
        return images.masked_fill((moved & (images.mean((1, 2, 3)) > 0)).view(-1, 1, 1, 1), torch.nan)

    found = list(inspect(_Around(base, before=lost), digits.test.first(8), _DIGITS, {}, {"l2": 0.5}))
    said = {warned.code: warned.text for warned in found}
    assert "APGD in l2 at 0.5 turn 8 of 8 images" in said["preflight_not_finite"]
    assert "use a network without" in said["preflight_not_finite"]


def test_gradients_with_nan_are_a_warning(base: nn.Module, digits: Dataset) -> None:
    rooted = _Around(base, before=lambda images: images + (0 * images[:, :, :1, :1]).sqrt())
    said = _findings(rooted, digits)
    assert set(said) == {"preflight_nan_gradients"}
    assert "16 of 16 images" in said["preflight_nan_gradients"]
    noise = [warned.code for warned in inspect_on_noise(rooted, _DIGITS)]
    assert noise == ["preflight_nan_gradients"]


@pytest.mark.parametrize(
    ("expects", "words", "remedy"),
    [
        (lambda images: images / 255, "scaled to 0 to 255", "--mean 0 --std 0.003922"),
        (lambda images: (images + 1) / 2, "scaled to -1 to 1", "--mean 0.5 --std 0.5"),
    ],
)
def test_images_in_the_wrong_range_are_noticed_with_the_remedy(
    expects: Callable[[Tensor], Tensor], words: str, remedy: str, base: nn.Module, digits: Dataset
) -> None:
    said = _findings(_Around(base, before=expects), digits)["preflight_scaling"]
    assert words in said
    assert remedy in said


def test_images_that_are_normalised_twice_are_noticed(base: nn.Module, digits: Dataset) -> None:
    twice = replace(_DIGITS, mean=(-1.0,), std=(1.0,))
    said = _findings(Normalized(base, twice.mean, twice.std), digits, twice)["preflight_scaling"]
    assert "not normalised at all" in said
    assert "without normalisation" in said


def test_classes_in_another_order_are_no_better_than_chance(base: nn.Module, digits: Dataset) -> None:
    rotated = _Around(base, after=lambda logits: logits.roll(1, dims=1))
    said = _findings(rotated, digits)
    assert set(said) == {"preflight_chance"}
    assert "import its weights again" in said["preflight_chance"]


@pytest.mark.parametrize("claim", [RobustnessClaim(0.15, 0.99), RobustnessClaim(0.6, None), RobustnessClaim(0.3, 0.8)])
def test_a_model_less_robust_than_it_claims_is_named(claim: RobustnessClaim, base: nn.Module, digits: Dataset) -> None:
    said = _findings(base, digits, claims={"linf": claim})
    assert set(said) == {"preflight_claim"}
    assert f"linf at {claim.eps:g}" in said["preflight_claim"]
    assert "import it with the claim that it keeps" in said["preflight_claim"]


def test_a_handful_of_points_decides_nothing(base: nn.Module, digits: Dataset) -> None:
    rotated = _Around(base, after=lambda logits: logits.roll(1, dims=1))
    for count in (1, 5):
        assert list(inspect(rotated, digits.test.first(count), _DIGITS, {})) == []
        assert list(inspect(base, digits.test.first(count), _DIGITS, {"linf": RobustnessClaim(0.6, None)})) == []


def _imported(path: Path, base: nn.Module, **origin: object) -> Path:
    header = Header(
        blueprint=replace(_DIGITS, mean=(-1.0,), std=(1.0,)),
        spec=None,
        origin=Origin.model_validate({"file": "w.pt", "sha256": "0", **origin}),
        seed=0,
        step=0,
        base_sha256=None,
        data_sha256=None,
        versions={},
        commit=None,
    )
    checkpoint.save_checkpoint(path, Normalized(base, (-1.0,), (1.0,)), header)
    return path


@pytest.mark.parametrize("kind", ["finetune", "evaluate"])
def test_a_run_reports_what_it_found_right_after_it_started(kind: str, base: nn.Module, tmp_path: Path) -> None:
    given = Inputs(weights=_imported(tmp_path / "mine.safetensors", base, norm="linf", eps=0.3, dataset="digits"))
    spec = parse({"kind": kind, "base_model": "mine", "dataset": "digits"})
    run = run_evaluation(spec, tmp_path, given) if isinstance(spec, EvaluateSpec) else fine_tune(spec, tmp_path, given)  # type: ignore[arg-type]
    events = [next(run) for _ in range(2)]
    run.close()  # type: ignore[attr-defined]
    assert isinstance(events[0], Started)
    assert isinstance(events[1], Warned)
    assert events[1].code == "preflight_scaling"


def _preflight(spec: AnySpec) -> list[Warned]:
    loaded = inputs.load(spec, Inputs())
    return list(preflight(loaded, loaded.started(train_examples=0, total_steps=0)))


def test_random_weights_are_not_inspected(tmp_path: Path) -> None:
    spec = parse({"kind": "train", "architecture": "digits-cnn", "dataset": "digits"})
    assert _preflight(spec) == []


def test_a_learning_rate_far_above_the_networks_own_is_a_warning() -> None:
    spec = parse({"base_model": "digits-cnn-linf", "learning_rate": 0.2})
    assert isinstance(spec, FineTuneSpec)
    (warned,) = _preflight(spec)
    assert warned.code == "preflight_learning_rate"


def test_a_robust_accuracy_is_only_expected_on_the_data_it_was_measured_on(digits: Dataset) -> None:
    _, header = checkpoint.load(checkpoint.base_model_file("digits-cnn-linf", None))
    assert header.claims()["linf"].eps == 0.15
    assert header.trained_on("digits", digits.sha256())
    assert not header.trained_on("digits", "another")

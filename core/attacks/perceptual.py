"""The fast Lagrangian perceptual attack of Laidlaw et al. 2021 (arXiv 2006.12655, section 4 and appendix A.3).

The distance between two images is LPIPS (Zhang et al. 2018) in the features of the attacked model itself
("self-bounded"): feature maps, each position scaled to length one over its channels, are compared by their l2 distance,
with equal weight for every map whatever its resolution.
"""

from math import inf, prod

import torch
from torch import Tensor, nn

from core.attacks import DEFAULTS, AttackOptions, AttackResult, frozen
from core.attacks.arguments import check_labels
from core.attacks.losses import margin
from core.attacks.threat import PerceptualThreat
from core.data.points import check_points
from core.geometry import per_image, rescale
from core.schema.errors import BadInput
from core.schema.protocols import PERCEPTUAL_STEPS

# The distance's slope along a step is taken over this length in pixel units (l2), as in the authors' code.
_PROBE = 0.1
_TINY = 1e-10


def perceptual(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: PerceptualThreat,
    options: AttackOptions = DEFAULTS,
    *,
    noise: Tensor | None = None,
    steps: int = PERCEPTUAL_STEPS,
    margin_limit: float | None = None,
) -> AttackResult:
    """Raise the margin loss of correctly classified images, with a penalty on LPIPS distances above the bound.

    noise (batch, channels, height, width): standard normal numbers, drawn with `options.seed` by default; the attack
    starts at the image plus a hundredth of them. margin_limit: the margin in logits from which on a misclassified point
    only reduces its distance; None for no limit, as in the authors' training.

    Minimises weight * max(0, LPIPS - bound) - margin by normalised gradient steps. Over the run the weight grows from
    1 to 10 and a step's length, in units of LPIPS, falls from the bound to a tenth of it. Nothing brings a point back
    that ends outside the bound, so the attack is for training, not for evaluation. Misclassified images are returned
    unchanged. `loss` is the margin at `adversarial`. All points go through the model together. Costs 2 steps + 2
    forward and `steps` backward passes.

    Raises BadInput for wrong arguments, and for a model without feature maps.
    """
    if not options.checked:
        check_points(images, labels)
    bound = threat.bound
    if noise is None:
        noise = options.noise(len(images)).normal(torch.arange(len(images)), images.shape[1:])
    with frozen(model):
        with torch.no_grad():
            logits, own = logits_and_features(model, images)
        if not options.checked:
            check_labels(labels, logits.shape[1])
        right = logits.argmax(1) == labels
        current = (images + 0.01 * noise.to(images.device)).clamp(0, 1)
        robust = right.clone()
        for step in range(steps):
            progress = step / steps
            point = current.detach().requires_grad_()
            logits, features = logits_and_features(model, point)
            fine = 10**progress * (_distance(features, own) - bound).clamp(min=0)
            gain = margin(logits, labels, labels).clamp(max=inf if margin_limit is None else margin_limit)
            (gradient,) = torch.autograd.grad((fine - gain).sum(), point)
            with torch.no_grad():
                robust &= logits.argmax(1) == labels
                downhill = -rescale(gradient, "l2")
                _, beyond = logits_and_features(model, current + _PROBE * downhill)
                slope = _distance(beyond, features) / _PROBE
                length = bound * 0.1**progress / (slope + 1e-4)
                current = (current + per_image(length, images) * downhill).clamp(0, 1)
        with torch.no_grad():
            adversarial = torch.where(per_image(right, images), current, images)
            logits = model(adversarial)
            robust &= logits.argmax(1) == labels
            return AttackResult(adversarial, robust, loss=margin(logits, labels, labels))


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute logits (batch, classes), and the features (batch, ...) whose l2 distance is the model's own LPIPS.

    The features are the last map of each resolution: the output of each stage of a convolutional network, or the tokens
    after the blocks of a transformer; a map of one position does not count. Raises BadInput where there is no map.
    """
    maps: dict[tuple[int, ...], Tensor] = {}
    of_blocks: dict[tuple[int, ...], Tensor] = {}
    blocks = _blocks(model)
    has_channels_last = False

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        nonlocal has_channels_last
        del inputs
        if not isinstance(output, Tensor) or output.dim() not in (3, 4):
            return
        has_channels_last |= isinstance(module, nn.Linear | nn.LayerNorm)
        is_block = module in blocks
        if output.dim() == 3 or (is_block and _is_channels_last(module, output)):
            output = output.movedim(-1, 1)
        if prod(output.shape[2:]) > 1:
            maps[output.shape[2:]] = output
            if is_block:
                of_blocks[output.shape[2:]] = output

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    # Inside the blocks of a transformer are keys and attention weights, which are no maps, and before them the patches
    # with and without positions.
    found = of_blocks if has_channels_last else maps
    if not found:
        raise BadInput(
            "the model has no feature maps to compare images by",
            hint="choose a convolutional network or a transformer, or another method than pat",
            field="method",
        )
    return logits, torch.cat([_normalized(features).flatten(1) for features in found.values()], 1)


def _blocks(model: nn.Module) -> set[nn.Module]:
    """Find the blocks of a network: the outermost modules with parts of their own that stand in a row."""
    found: set[nn.Module] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        in_row = isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module.children():
            if in_row and not isinstance(child, nn.Sequential | nn.ModuleList) and any(child.children()):
                found.add(child)
            else:
                waiting.append(child)
    return found


def _is_channels_last(block: nn.Module, output: Tensor) -> bool:
    """Return whether a map (batch, ., ., .) has its channels last: as many as a layer norm of its block normalises."""
    channels = {
        module.normalized_shape[0]
        for module in block.modules()
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    }
    return output.shape[1] not in channels and output.shape[-1] in channels


def _normalized(features: Tensor) -> Tensor:
    """Scale each position to length one over the channels, and the map by 1 / sqrt(positions)."""
    # Not the root of a sum of squares, whose gradient is NaN where all channels are zero.
    lengths = features.norm(dim=1, keepdim=True) + _TINY
    return features / lengths / prod(features.shape[2:]) ** 0.5


def _distance(features: Tensor, others: Tensor) -> Tensor:
    return (features - others).norm(dim=1)

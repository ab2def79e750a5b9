"""Losses against their formulas."""

import torch

from core.attacks.losses import cross_entropy, dlr, targeted_dlr

_LOGITS = torch.tensor([[5.0, 2.0, 1.0, 0.0, -1.0], [1.0, 4.0, 3.0, 0.5, 0.0]])
_LABELS = torch.tensor([0, 2])


def test_dlr_is_the_margin_over_the_gap_of_first_and_third() -> None:
    expected = torch.tensor([-(5.0 - 2.0) / (5.0 - 1.0), -(3.0 - 4.0) / (4.0 - 1.0)])
    torch.testing.assert_close(dlr(_LOGITS, _LABELS, _LABELS), expected)


def test_targeted_dlr_is_the_gap_to_the_target_over_the_gap_to_third_and_fourth() -> None:
    targets = torch.tensor([1, 0])
    expected = torch.tensor([-(5.0 - 2.0) / (5.0 - 0.5 * (1.0 + 0.0)), -(3.0 - 1.0) / (4.0 - 0.5 * (1.0 + 0.5))])
    torch.testing.assert_close(targeted_dlr(_LOGITS, _LABELS, targets), expected)


def test_losses_do_not_notice_a_shift_and_dlr_not_a_scale() -> None:
    targets = torch.tensor([1, 0])
    for loss in (cross_entropy, dlr, targeted_dlr):
        torch.testing.assert_close(loss(_LOGITS + 7, _LABELS, targets), loss(_LOGITS, _LABELS, targets))
    for loss in (dlr, targeted_dlr):
        torch.testing.assert_close(loss(_LOGITS * 9, _LABELS, targets), loss(_LOGITS, _LABELS, targets))


def test_with_three_or_two_classes_the_targeted_loss_still_has_a_gradient() -> None:
    for classes in (2, 3):
        logits = _LOGITS[:1, :classes].clone().requires_grad_()
        targeted_dlr(logits, torch.tensor([0]), torch.tensor([1])).sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() > 0

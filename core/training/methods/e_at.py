"""Extreme-norm adversarial training (E-AT, Croce & Hein 2022, arXiv 2105.12508, section 4).

For affine classifiers, robustness to linf and l1 gives robustness to the convex hull of both balls, so only the two
extreme norms are attacked: one per batch, at the cost of training in a single norm, and the weaker one more often.
"""

from core.training.methods import sat


class Rule(sat.Rule):
    """Draws a norm with probability proportional to its running robust error, then goes on as SAT does."""

    def weights(self) -> list[float]:
        """Take each norm's robust error over all training images it was attacked on so far, from the first batch on.

        Until every norm has been seen once, or when none has any error left, all are as likely.
        """
        if any(count.seen == 0 for count in self.counts.values()):
            return super().weights()
        errors = [1 - count.robust / count.seen for count in self.counts.values()]
        return errors if any(errors) else super().weights()

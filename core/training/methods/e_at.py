"""Extreme-norm adversarial training (E-AT, Croce & Hein 2022, arXiv 2105.12508, section 4).

For affine classifiers, robustness to linf and l1 gives robustness to the convex hull of both balls, so only the two
extreme norms are attacked: one per batch, at the cost of training in a single norm, and the weaker one more often.
"""

from core.training.methods.contract import Counts
from core.training.methods.sat import SAT


class EAT(SAT):
    """The loss under one norm's attack; the norm is drawn in proportion to its running robust error."""

    def weights(self, counts: Counts) -> list[float]:
        """Return each norm's robust error over all training images attacked in it, from the first batch on.

        The weights are equal until every norm has been attacked once, and when no norm has any error.
        """
        if any(norm not in counts or counts[norm].seen == 0 for norm in self.norms):
            return super().weights(counts)
        errors = [1 - counts[norm].robust / counts[norm].seen for norm in self.norms]
        return errors if any(errors) else super().weights(counts)

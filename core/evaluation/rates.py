"""Shares of test points with their intervals."""

from math import sqrt

from core.schema.progress import Rate


def rate(count: int, total: int) -> Rate:
    """Turn a count into a share with its 95 % score interval (Wilson 1927)."""
    z = 1.959964
    share = count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # The share itself, where rounding would leave it outside its own interval.
    low = max(0.0, centre - spread) if count else 0.0
    high = min(1.0, centre + spread) if count < total else 1.0
    return Rate(value=share, count=count, total=total, low=low, high=high)

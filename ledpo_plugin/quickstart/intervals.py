"""Confidence intervals for shares of few trials, where mean +/- 2 standard errors would be wrong."""

from math import sqrt

Z95 = 1.959964


def standard_error(share: float, n: int) -> float:
    """Return the binomial standard error of a share of `n` trials."""
    return sqrt(share * (1 - share) / n)


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a share of `n` trials (Wilson 1927).

    Raises:
        ValueError: `share` is not in [0, 1] or `n` is not positive.
    """
    if not 0 <= share <= 1 or n < 1:
        raise ValueError(f"A share in [0, 1] of at least one trial is needed, not {share} of {n}.")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(before: float, after: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the interval of `after - before`, two shares of `n` trials each (Newcombe 1998, method 10).

    It takes the two as independent. Measured on the same items they are positively correlated as a rule, and
    the interval is then wider than it needs to be.
    """
    low_0, high_0 = wilson(before, n, z)
    low_1, high_1 = wilson(after, n, z)
    difference = after - before
    return (
        difference - sqrt((after - low_1) ** 2 + (high_0 - before) ** 2),
        difference + sqrt((high_1 - after) ** 2 + (before - low_0) ** 2),
    )

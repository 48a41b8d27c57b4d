"""Confidence intervals of counted shares."""

import math


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the score interval of a proportion (Wilson 1927); z = 1.96 gives 95 %.

    Args:
        share: share of the trials that succeeded.
        count: number of trials, at least one.
        z: half-width in standard deviations.
    """
    spread = z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)

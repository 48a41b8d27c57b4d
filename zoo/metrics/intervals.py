"""How far a share that was counted can be trusted."""

import math


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927); z = 1.96 gives 95 %.

    Args:
        share: of the trials that succeeded.
        count: how many trials, at least one.
        z: how many standard deviations wide.
    """
    spread = z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)

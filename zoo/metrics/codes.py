"""Use of discrete codes: how many occur, and how evenly."""

import numpy as np
from jaxtyping import Bool, Int

from zoo.core.family import Metrics


def code_perplexity(counts: Int[np.ndarray, " k"]) -> float:
    """exp of the entropy of the codes' frequencies: the number of equally frequent codes that are as varied."""
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(p * np.log(p)).sum()))


def code_use(codes: Int[np.ndarray, "n h w"], size: int, inked: Bool[np.ndarray, "n h w"] | None = None) -> Metrics:
    """Returns how the codes of images are used.

    Args:
        codes: codes 0 .. size - 1.
        size: number of codes.
        inked: positions whose patch is not blank; None: unknown.

    Returns:
        `codes_in_use`, `share_in_use`, `code_perplexity` and, if `inked` is given, `inked_code_perplexity`.
    """
    counts = np.bincount(codes.ravel(), minlength=size)
    used = int((counts > 0).sum())
    figures: Metrics = {"codes_in_use": used, "share_in_use": used / size, "code_perplexity": code_perplexity(counts)}
    if inked is not None:
        figures["inked_code_perplexity"] = code_perplexity(np.bincount(codes[inked], minlength=size))
    return figures

"""Comparison of two sets of feature vectors: Fréchet distance, kernel distance, precision and recall.

Pure NumPy functions of arrays [n d], for features of any extractor.
"""

import numpy as np
from jaxtyping import Float

BLOCK = 1024
"""Rows of a distance matrix that are in memory at once."""


def frechet_distance(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"]) -> float:
    """Distance between the normal distributions with the moments of two samples.

    Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", eq. 6:

        |mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2))

    The product S_1 S_2 is not symmetric, and its general matrix square root is unstable if a covariance is singular, as
    it is with fewer than d + 1 samples. Its eigenvalues equal those of A A^T with A = S_1^(1/2) S_2^(1/2), so the last
    trace is the sum of A's singular values. Both roots are computed from the eigenvalues of symmetric matrices;
    eigenvalues that are negative by rounding are set to zero.

    Args:
        real: at least two vectors.
        fake: at least two vectors.
    """
    (mu_1, S_1), (mu_2, S_2) = _moments(real), _moments(fake)
    shift = mu_1 - mu_2
    overlap = np.linalg.svd(_root(S_1) @ _root(S_2), compute_uv=False).sum()
    return float(shift @ shift + np.trace(S_1) + np.trace(S_2) - 2 * overlap)


def _moments(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Returns the mean and the unbiased covariance."""
    x = x.astype(np.float64)
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def _root(S: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Returns the symmetric square root of a covariance."""
    eigenvalues, U = np.linalg.eigh(S)
    return (U * np.sqrt(np.maximum(eigenvalues, 0.0))[None, :]) @ U.T


def kernel_distance(
    real: Float[np.ndarray, "n d"],
    fake: Float[np.ndarray, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x . y / d + 1)^3, unbiased at any sample size.

    Binkowski et al. 2018, "Demystifying MMD GANs", section 4 (KID). It can be negative if the distributions agree.

    Args:
        real: at least two vectors.
        fake: at least two vectors.
        subsets: number of pairs of subsets that are compared.
        subset_size: vectors in each, without replacement; at most the size of the smaller set.
        seed: seed of the choice of subsets. They are drawn from NumPy's legacy generator, whose stream never changes,
            alternately for the two sets, as in torch-fidelity.

    Returns:
        Mean and standard deviation over the subsets.
    """
    real, fake = _lift(real), _lift(fake)
    size = min(subset_size, len(real), len(fake))
    choose = np.random.RandomState(seed).choice
    found = []
    for _ in range(subsets):
        x = real[choose(len(real), size, replace=False)]
        y = fake[choose(len(fake), size, replace=False)]
        within = sum(_cubes(z @ z.T) - (np.square(z).sum(1) ** 3).sum() for z in (x, y))
        found.append(within / (size * (size - 1)) - 2 * _cubes(x @ y.T) / size**2)
    return float(np.mean(found)), float(np.std(found))


def _lift(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d1"]:
    """Returns vectors with scalar products x . y / d + 1; float64, since KID is a small difference of large sums."""
    x = x.astype(np.float64)
    return np.concatenate([x / x.shape[1] ** 0.5, np.ones((len(x), 1))], axis=1)


def _cubes(k: Float[np.ndarray, "n m"]) -> float:
    """Returns the sum of the cubes."""
    return float(np.vdot(k * k, k))


def precision_recall(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], neighbours: int = 3
) -> tuple[float, float]:
    """Precision and recall: the share of fake vectors in the real manifold, and of real vectors in the fake one.

    Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eqs. 1 and 2. The
    manifold of a set is the union of balls around its vectors, each with the distance to the vector's `neighbours`-th
    nearest other vector as radius.

    Args:
        real: more than `neighbours` vectors.
        fake: more than `neighbours` vectors.
        neighbours: k in the paper.

    Returns:
        Precision and recall.
    """
    centre = real.mean(0, keepdims=True)  # reduces rounding errors in squared distances
    real, fake = (np.asarray(x - centre, np.float32) for x in (real, fake))
    real_reach, fake_reach = _squared_reach(real, neighbours), _squared_reach(fake, neighbours)
    in_real, in_fake = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for begin in range(0, len(real), BLOCK):
        some = slice(begin, begin + BLOCK)
        squared = _squared_distances(real[some], fake)
        in_real |= (squared <= real_reach[some, None]).any(0)
        in_fake[some] = (squared <= fake_reach[None, :]).any(1)
    return float(in_real.mean()), float(in_fake.mean())


def _squared_reach(x: Float[np.ndarray, "n d"], neighbours: int) -> Float[np.ndarray, " n"]:
    """Returns the squared distance of each vector to its `neighbours`-th nearest other vector.

    Index 0 of the sorted distances is the vector itself. A margin for rounding is added, so that a ball contains
    vectors equal to its centre.
    """
    blocks = (_squared_distances(x[begin : begin + BLOCK], x) for begin in range(0, len(x), BLOCK))
    squared = np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in blocks])
    return np.maximum(squared, 0.0) + 2e-6 * np.square(x).sum(1)


def _squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Returns |x|^2 - 2 x . y + |y|^2 for all pairs, as one matrix product."""
    x_length, y_length = (np.square(z).sum(1, keepdims=True) for z in (x, y))
    left = np.concatenate([-2 * x, x_length, np.ones_like(x_length)], axis=1)
    return left @ np.concatenate([y, np.ones_like(y_length), y_length], axis=1).T


def classifier_score(logits: Float[np.ndarray, "n classes"]) -> float:
    """Exponential of the mean KL divergence of P(class | image) from its mean: from 1 to the number of classes.

    Salimans et al. 2016, "Improved techniques for training GANs", section 4. The Inception score for the logits of any
    classifier, computed over all images at once rather than over ten parts of them.
    """
    z = logits.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    p = np.exp(log_p)
    log_marginal = np.log(np.maximum(p.mean(0, keepdims=True), np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_marginal)).sum(1).mean()))


def class_shares(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " classes"]:
    """Returns the share of images for which each class is the most likely."""
    return np.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)

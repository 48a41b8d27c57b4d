"""What two sets of feature vectors have in common: Fréchet distance, kernel distance, precision and recall.

Pure NumPy functions over arrays [n d], whichever extractor made them.
"""

import numpy as np
from jaxtyping import Float

BLOCK = 1024
"""Rows of a distance matrix that are held at once."""


def frechet_distance(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"]) -> float:
    """Distance between the normal distributions that have the moments of two samples.

    Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", eq. 6:

        |mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2))

    The product S_1 S_2 is not symmetric, and a general matrix square root of it is unstable where a covariance is
    singular, as it is below d + 1 samples. Its eigenvalues are those of A A^T with A = S_1^(1/2) S_2^(1/2), so that the
    last trace is the sum of A's singular values; both roots come from the eigenvalues of a symmetric matrix, and those
    that rounding made negative are zero.

    Args:
        real: at least two vectors.
        fake: at least two vectors.
    """
    (mu_1, S_1), (mu_2, S_2) = _moments(real), _moments(fake)
    shift = mu_1 - mu_2
    overlap = np.linalg.svd(_root(S_1) @ _root(S_2), compute_uv=False).sum()
    return float(shift @ shift + np.trace(S_1) + np.trace(S_2) - 2 * overlap)


def _moments(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """Mean and unbiased covariance."""
    x = x.astype(np.float64)
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))


def _root(S: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a covariance."""
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
    """Squared maximum mean discrepancy under the kernel (x . y / d + 1)^3, without bias at any sample size.

    Binkowski et al. 2018, "Demystifying MMD GANs", section 4 (KID). It may come out below zero where the distributions
    agree.

    Args:
        real: at least two vectors.
        fake: at least two vectors.
        subsets: how many pairs of subsets are compared.
        subset_size: vectors in each, without repetition; at most as many as there are.
        seed: of the choice of subsets. They are drawn from NumPy's legacy generator, whose stream never changes, one
            set after the other, as torch-fidelity draws them.

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
    """Vectors whose scalar products are x . y / d + 1; float64, since KID is a small difference of large sums."""
    x = x.astype(np.float64)
    return np.concatenate([x / x.shape[1] ** 0.5, np.ones((len(x), 1))], axis=1)


def _cubes(k: Float[np.ndarray, "n m"]) -> float:
    """The sum of the cubes."""
    return float(np.vdot(k * k, k))


def precision_recall(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], neighbours: int = 3
) -> tuple[float, float]:
    """How much of the fake set lies where the real one does, and how much of the real set is covered.

    Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eqs. 1 and 2. A
    set's manifold is the union of balls around its vectors, each reaching to its `neighbours`-th nearest other one.

    Args:
        real: more than `neighbours` vectors.
        fake: more than `neighbours` vectors.
        neighbours: k in the paper.

    Returns:
        Precision, the share of fake vectors in the real manifold, and recall, the reverse.
    """
    centre = real.mean(0, keepdims=True)  # small numbers lose less in squared distances
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
    """Squared distance of each vector to its `neighbours`-th nearest other one; the nearest of all is itself.

    What rounding may take off is added, so that a vector is in the ball around one that is the same.
    """
    blocks = (_squared_distances(x[begin : begin + BLOCK], x) for begin in range(0, len(x), BLOCK))
    squared = np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in blocks])
    return np.maximum(squared, 0.0) + 2e-6 * np.square(x).sum(1)


def _squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """|x|^2 - 2 x . y + |y|^2 of all pairs, as one matrix product."""
    x_length, y_length = (np.square(z).sum(1, keepdims=True) for z in (x, y))
    left = np.concatenate([-2 * x, x_length, np.ones_like(x_length)], axis=1)
    return left @ np.concatenate([y, np.ones_like(y_length), y_length], axis=1).T


def classifier_score(logits: Float[np.ndarray, "n classes"]) -> float:
    """The exponential of the mean KL divergence of P(class | image) from its mean: 1 to the number of classes.

    Salimans et al. 2016, "Improved techniques for training GANs", section 4; the Inception score, by whichever
    classifier gave the logits, and over all images at once, not over ten parts of them.
    """
    z = logits.astype(np.float64)
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    p = np.exp(log_p)
    log_marginal = np.log(np.maximum(p.mean(0, keepdims=True), np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_marginal)).sum(1).mean()))


def class_shares(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " classes"]:
    """Which share of images each class is the likeliest of."""
    return np.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)

"""Whether samples are copies of training images: distances to the nearest of these, against those of held-out images.

Alaa et al. 2022, "How faithful is your synthetic data?", section 4.3, call a sample authentic if it is farther from its
nearest training image than that image is from its own nearest one. Distances are Euclidean. Letters in shapes: n
samples, m training images, d features.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from zoo.core.artifacts import Image, sheet
from zoo.core.family import Metrics

AT_ONCE = 256
"""Rows whose distances are held at once."""
SHOWN = 32
"""Samples that are shown beside their neighbours."""


def nearest(
    rows: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"], same: bool = False
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns each row's distance to the nearest of the others, and that one's number.

    Args:
        rows: points.
        others: points to search.
        same: whether both are the same points, of which none is its own neighbour.
    """
    squares, found = np.square(others).sum(1), []
    for begin in range(0, len(rows), AT_ONCE):
        some = rows[begin : begin + AT_ONCE]
        distance = np.square(some).sum(1)[:, None] + squares[None] - 2 * some @ others.T
        if same:
            distance[np.arange(len(some)), begin + np.arange(len(some))] = np.inf
        place = distance.argmin(1)
        found.append((np.sqrt(np.maximum(distance[np.arange(len(some)), place], 0)), place))
    distances, places = zip(*found, strict=True)
    return np.concatenate(distances), np.concatenate(places)


def memorisation(
    samples: Float[np.ndarray, "n d"], train: Float[np.ndarray, "m d"], held_out: Float[np.ndarray, "k d"]
) -> Metrics:
    """Returns figures of memorisation with a verdict in words.

    Args:
        samples: features or pixels of samples.
        train: those of training images, at least two.
        held_out: those of held-out images, which no model has seen.

    Returns:
        `authenticity`, the share of samples that are authentic, and of held-out images as `real_authenticity`;
        `nearer_than_held_out`, the share of samples that are nearer to a training image than the median held-out image
        is, 0.5 for a model that draws from the data's distribution; and `memorisation`, the verdict.
    """
    between, _ = nearest(train, train, same=True)
    figures: Metrics = {}
    distances = {}
    for prefix, rows in (("", samples), ("real_", held_out)):
        distances[prefix], place = nearest(rows, train)
        figures[f"{prefix}authenticity"] = float((distances[prefix] > between[place]).mean())
    nearer = float((distances[""] < np.median(distances["real_"])).mean())
    copies = float((distances[""] < 0.1 * np.median(distances["real_"])).mean())
    verdict = "copies training images" if copies > 0.05 or nearer > 0.9 else "close to training images"
    verdict = verdict if nearer > 0.65 or copies > 0.05 else "no sign of memorisation"
    told = f"{nearer:.0%} of the samples are nearer to a training image than half of the held-out images are"
    return figures | {"nearer_than_held_out": nearer, "copies": copies, "memorisation": f"{verdict}: {told}"}


def show_nearest(
    images: UInt8[np.ndarray, "n h w c"],
    samples: Float[np.ndarray, "n d"],
    train_images: UInt8[np.ndarray, "m h w c"],
    train: Float[np.ndarray, "m d"],
) -> Image:
    """Shows the first samples, each followed by its nearest training image by features and by pixels.

    Args:
        images, samples: samples and their features.
        train_images, train: training images and their features.
    """
    images, samples = images[:SHOWN], samples[:SHOWN]
    flat, train_flat = (pixels.reshape(len(pixels), -1).astype(np.float32) for pixels in (images, train_images))
    by_features, by_pixels = nearest(samples, train)[1], nearest(flat, train_flat)[1]
    return sheet(np.stack([images, train_images[by_features], train_images[by_pixels]], 1), "nearest")

"""Inception-v3 for FID: the network of TensorFlow's 2015 release, with weights in PyTorch's layout.

Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision", as used for FID by Heusel et al. 2017.
It differs from PyTorch's usual Inception-v3: images are resized as in TensorFlow 1, average pooling does not count the
padding, the last block uses max pooling, and there are 1008 classes. The weights of a convolution `name` are
`name.conv.weight` [o i kh kw] and, for its batch normalisation, `name.bn.{weight, bias, running_mean, running_var}`
[o]; the statistics are fixed, so both are folded into one affine map. Widths are those of the weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from zoo.core.errors import UserError

SIZE = 299
"""Height and width that images are resized to."""
CLASSES = 1008
EPSILON = 1e-3
"""Added to the variance in batch normalisation."""

Weights = dict[str, tuple[Any, Any]]
"""Kernel [kh kw i o] and bias [o] of every convolution, by name; the kernel of `fc` is [i o]."""
Conv = Callable[..., Float[Array, "b h2 w2 o"]]
"""`conv(x, name, ...)`: applies the convolutions of these names in sequence, each followed by ReLU."""
Map = Float[Array, "b _ _ _"]
"""Images or feature maps [b h w c]."""


def make_inception(tensors: dict[str, np.ndarray], path: str) -> Callable[[Any], tuple[Array, Array]]:
    """Makes an extractor's `apply`: the 2048 features after the last pooling, and the logits without their bias.

    Args:
        tensors: the weights, by PyTorch's names.
        path: where they are from, for errors.

    Raises:
        UserError: they are not the weights of this network.
    """
    weights = fold(tensors, path)
    return lambda images: _extract(weights, jnp.asarray(images))


@jax.jit
def _extract(
    weights: Weights, images: UInt8[Array, "b h w c"]
) -> tuple[Float[Array, "b d"], Float[Array, "b classes"]]:
    if images.shape[-1] == 1:
        images = jnp.repeat(images, 3, axis=-1)
    x = (resize(images.astype(jnp.float32), SIZE) - 128.0) / 128.0
    features = inception(weights, x)
    return features, features @ weights["fc"][0]


def fold(tensors: dict[str, np.ndarray], path: str) -> Weights:
    """Folds each convolution and its batch normalisation into one kernel and bias.

    Raises:
        UserError: tensors are missing or have other shapes, or the weights are the usual ImageNet ones rather than
            FID's.
    """
    if "fc.weight" not in tensors or "Mixed_7c.branch_pool.conv.weight" not in tensors:
        raise UserError(f"{path} holds no Inception-v3 in the layout of PyTorch's FID weights, nor a classifier")
    if len(tensors["fc.weight"]) != CLASSES:
        raise UserError(
            f"{path} has {len(tensors['fc.weight'])} classes, and FID's Inception-v3 has {CLASSES}: the usual "
            "ImageNet weights give other figures than published ones; take PyTorch's FID weights (pt_inception)"
        )
    weights: Weights = {"fc": (jnp.asarray(tensors["fc.weight"].T, jnp.float32), jnp.zeros(CLASSES))}
    try:
        for name in (name.removesuffix(".conv.weight") for name in tensors if name.endswith(".conv.weight")):
            mean, variance = tensors[f"{name}.bn.running_mean"], tensors[f"{name}.bn.running_var"]
            gain = tensors[f"{name}.bn.weight"] / np.sqrt(variance + EPSILON)
            kernel = tensors[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * gain[None, None, None, :]
            bias = tensors[f"{name}.bn.bias"] - mean * gain
            weights[name] = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)
        jax.eval_shape(inception, weights, jnp.zeros((1, SIZE, SIZE, 3)))
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}, which Inception-v3 has") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has weights of shapes that do not fit Inception-v3 ({error})") from None
    return weights


def resize(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b s s c"]:
    """Resizes bilinearly as TensorFlow 1: output pixel i is at i times the ratio of sizes, corners not aligned."""

    def along(x: Float[Array, "b h w c"], axis: int) -> Float[Array, "b h2 w2 c"]:
        last = x.shape[axis] - 1
        place = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
        low = place.astype(np.int32)
        share = jnp.expand_dims(place - low, [other for other in range(4) if other != axis])
        a, b = (jnp.take(x, np.minimum(at, last), axis) for at in (low, low + 1))
        return a + (b - a) * share

    return along(along(x, 2), 1)


def inception(weights: Weights, x: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
    """Returns the features of images from -1 to 1."""
    conv = partial(_convs, weights, "")
    x = conv(conv(x, "Conv2d_1a_3x3", stride=2), "Conv2d_2a_3x3", padding="VALID")
    x = max_pool(conv(x, "Conv2d_2b_3x3"), stride=2)
    x = max_pool(conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", padding="VALID"), stride=2)
    for name, block in BLOCKS.items():
        x = jnp.concatenate(block(partial(_convs, weights, f"{name}."), x), axis=-1)
    return x.mean((1, 2))


def _convs(weights: Weights, prefix: str, x: Map, *names: str, stride: int = 1, padding: str = "") -> Map:
    """Applies convolutions in sequence, each with ReLU; strided ones are not padded, others keep the size."""
    for name in names:
        kernel, bias = weights[prefix + name]
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding or ("SAME" if stride == 1 else "VALID"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + bias[None, None, None, :])
    return x


def max_pool(x: Map, stride: int) -> Map:
    """Max pooling over 3x3; padded only at stride 1."""
    padding = "SAME" if stride == 1 else "VALID"
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def average_pool(x: Map) -> Map:
    """Average pooling over 3x3 at stride 1; padding is not counted."""

    def total(x: Map) -> Map:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1)))


def block_a(conv: Conv, x: Map) -> list[Map]:
    """35x35: parallel 1x1, 5x5 and double 3x3 branches, and pooling."""
    return [
        conv(x, "branch1x1"),
        conv(x, "branch5x5_1", "branch5x5_2"),
        conv(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        conv(average_pool(x), "branch_pool"),
    ]


def block_b(conv: Conv, x: Map) -> list[Map]:
    """Reduction from 35x35 to 17x17."""
    return [
        conv(x, "branch3x3", stride=2),
        conv(conv(x, "branch3x3dbl_1", "branch3x3dbl_2"), "branch3x3dbl_3", stride=2),
        max_pool(x, stride=2),
    ]


def block_c(conv: Conv, x: Map) -> list[Map]:
    """17x17: 7x7 factored into 1x7 and 7x1, once and twice."""
    return [
        conv(x, "branch1x1"),
        conv(x, *(f"branch7x7_{i}" for i in (1, 2, 3))),
        conv(x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))),
        conv(average_pool(x), "branch_pool"),
    ]


def block_d(conv: Conv, x: Map) -> list[Map]:
    """Reduction from 17x17 to 8x8."""
    return [
        conv(conv(x, "branch3x3_1"), "branch3x3_2", stride=2),
        conv(conv(x, *(f"branch7x7x3_{i}" for i in (1, 2, 3))), "branch7x7x3_4", stride=2),
        max_pool(x, stride=2),
    ]


def block_e(pool: Callable[[Map], Map], conv: Conv, x: Map) -> list[Map]:
    """8x8: 3x3 split into parallel 1x3 and 3x1."""
    once, twice = conv(x, "branch3x3_1"), conv(x, "branch3x3dbl_1", "branch3x3dbl_2")
    return [
        conv(x, "branch1x1"),
        *(conv(once, f"branch3x3_2{side}") for side in "ab"),
        *(conv(twice, f"branch3x3dbl_3{side}") for side in "ab"),
        conv(pool(x), "branch_pool"),
    ]


BLOCKS: dict[str, Callable[[Conv, Map], list[Map]]] = {
    "Mixed_5b": block_a, "Mixed_5c": block_a, "Mixed_5d": block_a,
    "Mixed_6a": block_b,
    "Mixed_6b": block_c, "Mixed_6c": block_c, "Mixed_6d": block_c, "Mixed_6e": block_c,
    "Mixed_7a": block_d,
    "Mixed_7b": partial(block_e, average_pool), "Mixed_7c": partial(block_e, partial(max_pool, stride=1)),
}  # fmt: skip

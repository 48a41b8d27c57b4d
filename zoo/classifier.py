"""Image classifier: a small convolutional network whose penultimate features are used to score other models' images.

LeCun et al. 1998, "Gradient-based learning applied to document recognition", with strided convolutions instead of
pooling, with ReLU, and without normalisation, which so shallow a network does not need. Trained by cross-entropy:

    h = relu(conv_2(relu(conv_1(x))))              5x5, stride 2        [b h/4 w/4 2 width]
    features(x) = relu(W h + bias)                 the penultimate layer          [b d]
    P(class | x) = softmax(head(features(x)))                                     [b classes]

`python -m zoo.harness.extractors RUN FILE` exports a trained classifier as the weights of a feature extractor.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.artifacts import Artifacts, Image
from zoo.core.errors import UserError, require
from zoo.core.family import Batch, Family, Metrics, Model, Request, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import dropout, normal, split
from zoo.data.images.pixels import from_pixels, to_pixels
from zoo.data.specs import ImageSpec
from zoo.nn.conv import Conv
from zoo.nn.dense import Dense
from zoo.nn.losses import cross_entropy
from zoo.sampling.batches import in_batches

AT_ONCE = 16
"""Images that one call optimises, at most."""


class ConvNet(nnx.Module):
    """The classifier's network.

    Args:
        settings: the family's settings.
        spec: the image spec.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: "Classifier", spec: ImageSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        def he(fan_in: int) -> float:
            return (2 / fan_in) ** 0.5  # He et al. 2015: keeps the variance through ReLU

        width, features = settings.width, settings.features
        quarter = -(-spec.height // 4) * -(-spec.width // 4) * 2 * width
        self.conv_1 = Conv(spec.channels, width, 5, stride=2, scale=he(25 * spec.channels), rngs=rngs)
        self.conv_2 = Conv(width, 2 * width, 5, stride=2, scale=he(25 * width), rngs=rngs)
        self.dense = Dense(quarter, features, bias=True, scale=he(quarter), rngs=rngs)
        self.head = Dense(features, len(spec.classes), bias=True, scale=features**-0.5, rngs=rngs, wide=True)
        self.rate, self.dtype = settings.dropout, jnp.dtype(dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], *, key: Key[Array, ""] | None = None, rows: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b d"], Float[Array, "b classes"]]:
        """Returns features and logits.

        Args:
            x: images in [-1, 1].
            key: dropout key; None means evaluation.
            rows: each image's index in the global batch.
        """
        early, late = split(key, 2)
        x = x.astype(self.dtype)
        x = jax.nn.relu(self.conv_2(jax.nn.relu(self.conv_1(x))))
        x = dropout(rearrange(x, "b h w c -> b 1 (h w c)"), self.rate, early, rows)
        features = jax.nn.relu(self.dense(x))
        return features[:, 0], self.head(dropout(features, self.rate, late, rows))[:, 0]


class State(NamedTuple):
    """The training state of a classifier: one network."""

    net: Learner


@dataclass(frozen=True)
class Classifier(Family):
    """An image classifier whose features are used to score other families' samples."""

    width: Annotated[int, Ge(1)] = 32
    """Channels of the first convolution; the second has twice as many."""
    features: Annotated[int, Ge(1)] = 128
    """Size of the penultimate layer, whose output is the feature vector of an image."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability at the input of the last two layers."""

    accepts: ClassVar[type] = ImageSpec
    unit: ClassVar[str] = "images"
    monitor: ClassVar[tuple[str, str]] = ("accuracy", "max")

    def __post_init__(self) -> None:
        require(self, "family.")

    def init(self, spec: ImageSpec, setup: Setup, key: jax.Array) -> State:
        if not spec.classes:
            raise UserError("the data has no classes for a classifier to learn: put each class into its own folder")
        return State(Learner.create(ConvNet(self, spec, nnx.Rngs(key), setup.dtype), setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: ConvNet, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns the sum of -log P(class | x) over a batch in nats, and the number of labelled images."""
        nats, right, labelled = _judge(net, batch, key)
        return nats.sum(), labelled.sum(), {"accuracy": (right.sum(), labelled.sum())}

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        nats, right, labelled = _judge(state.net.eval_net(), batch, None)
        return {"loss": (nats, labelled), "accuracy": (right, labelled)}

    def extract(
        self, state: State, image: UInt8[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b classes"]]:
        """Returns the features and logits of images, by which other models' samples are scored."""
        return state.net.eval_net()(from_pixels(image))

    def sample(self, model: Model, request: Request, key: jax.Array) -> Artifacts:
        """Returns images that maximise a class probability: starting from noise, for each class in turn.

        Erhan et al. 2009, "Visualizing higher-layer features of a deep network". They do not look like the data: a
        classifier does not model p(x).
        """
        spec, state = model.spec, model.state
        pixels = in_batches(lambda rows: _imagine(spec, state, key, rows), request.n, AT_ONCE)
        return [Image(image) for image in pixels]


def _judge(net: ConvNet, batch: Batch, key: Any) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
    """Returns per image -log P(class | x) in nats and top-1 correctness, both 0 without a label, and a label mask."""
    _, logits = net(from_pixels(batch["image"]), key=key, rows=batch["row"])
    label = batch["label"]
    labelled = (label >= 0).astype(jnp.float32)
    nats = cross_entropy(logits[:, None], jnp.maximum(label, 0)[:, None])[:, 0]
    return nats * labelled, (logits.argmax(-1) == label) * labelled, labelled


@partial(jax.jit, static_argnums=0)
def _imagine(spec: ImageSpec, state: State, key: Key[Array, ""], rows: Int[Array, " b"]) -> UInt8[Array, "b h w c"]:
    """64 gradient ascent steps on log P(class | x), each scaled so that the largest change of a pixel is 0.1."""
    net = state.net.eval_net()

    def log_p(x: Float[Array, "b h w c"]) -> Float[Array, ""]:
        return -cross_entropy(net(x)[1][:, None], (rows % len(spec.classes))[:, None]).sum()

    def climb(_: Any, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        g = jax.grad(log_p)(x)
        largest = jnp.abs(g).max((1, 2, 3), keepdims=True)
        return jnp.clip(x + 0.1 * g / jnp.maximum(largest, 1e-12), -1.0, 1.0)

    noise = normal(key, rows, (spec.height, spec.width, spec.channels))
    return to_pixels(jax.lax.fori_loop(0, 64, climb, 0.1 * noise))

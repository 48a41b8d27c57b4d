"""Reader: a small convolutional network that tells what is in a scene of coloured digits, by which samples are scored.

A scene x has one or two objects i, in the order of their places, each with a digit, a colour and a place; of a second
object that is not there, all three are "absent", a class of their own:

    h = relu(W relu(conv_4(relu(conv_3(relu(conv_2(relu(conv_1(x)))))))) + bias)       3x3, stride 2 in conv_2, conv_4
    P(a | x) = softmax(head_a(h))             for each attribute a, of 2 objects x (digit, colour, place)
    loss = -sum_a log P(a | x)

Since the generator of scenes is known, so is what a picture should show; a model of captioned digits is scored by how
often the reader finds in a sample what its caption asks for (`zoo.metrics.reading`). The reader's own accuracy on
held-out scenes, of handwritten digits that it was not trained on, is reported beside each such score.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt8

from zoo.core.artifacts import Artifacts, Image
from zoo.core.captioned import captioned
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.family import Batch, Family, Metrics, Model, Request, RowStatistics, Scoring, Setup
from zoo.core.learner import Learner
from zoo.core.random import dropout, split
from zoo.data.captions.scenes import COLOURS, PLACES, scene_of
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import SceneSpec
from zoo.metrics.reading import own_accuracy
from zoo.nn.conv import Conv
from zoo.nn.dense import Dense
from zoo.nn.losses import cross_entropy
from zoo.sampling.batches import over_rows

AT_ONCE = 256
"""Images that one call reads, at most."""
OBJECTS = 2
CLASSES = (11, 1 + len(COLOURS), 1 + len(PLACES))
"""Classes of digit, colour and place; the last of each is "absent"."""


class Network(nnx.Module):
    """The reader's network.

    Args:
        settings: the family's settings.
        spec: spec of the scenes.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: "Reader", spec: SceneSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        def he(fan_in: int) -> float:
            return (2 / fan_in) ** 0.5  # He et al. 2015: keeps the variance through ReLU

        width, features = settings.width, settings.features
        at, convolutions = spec.channels, []
        for to, stride in ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2)):
            convolutions.append(Conv(at, to, stride=stride, scale=he(9 * at), rngs=rngs))
            at = to
        places = -(-spec.height // 4) * -(-spec.width // 4)
        self.convolutions = nnx.List(convolutions)
        self.dense = Dense(places * at, features, bias=True, scale=he(places * at), rngs=rngs)
        self.head = Dense(features, OBJECTS * sum(CLASSES), bias=True, scale=features**-0.5, rngs=rngs, wide=True)
        self.rate, self.dtype = settings.dropout, jnp.dtype(dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], *, key: Key[Array, ""] | None = None, rows: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b d"], tuple[Float[Array, "b 2 classes"], ...]]:
        """Returns features, and logits of digit, colour and place of both objects.

        Args:
            x: images in [-1, 1].
            key: dropout key; None means evaluation.
            rows: each image's index in the global batch.
        """
        early, late = split(key, 2)
        x = x.astype(self.dtype)
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        x = dropout(rearrange(x, "b h w c -> b 1 (h w c)"), self.rate, early, rows)
        features = jax.nn.relu(self.dense(x))
        logits = self.head(dropout(features, self.rate, late, rows))
        logits = rearrange(logits, "b 1 (i k) -> b i k", i=OBJECTS)
        cuts = np.cumsum(CLASSES)[:-1].tolist()
        return features[:, 0], tuple(jnp.split(logits, cuts, axis=-1))


class State(NamedTuple):
    """The training state of a reader: one network."""

    net: Learner


@dataclass(frozen=True)
class ReaderScoring(Scoring):
    """Settings of the reader's accuracy."""

    scenes: Annotated[int, Ge(0)] = 0
    """Held-out scenes on which accuracy has its intervals, for seen and for held-out combinations; 0: none."""

    def __post_init__(self) -> None:
        require(self, "")


@dataclass(frozen=True)
class Reader(Family):
    """A network that reads scenes of coloured digits."""

    width: Annotated[int, Ge(1)] = 32
    """Channels of the first convolution; the last has four times as many."""
    features: Annotated[int, Ge(1)] = 256
    """Size of the penultimate layer, which is the feature vector of an image."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.25
    """Dropout probability at the input of the last two layers."""

    accepts: ClassVar[type] = SceneSpec
    Scoring: ClassVar[type] = ReaderScoring
    unit: ClassVar[str] = "images"
    monitor: ClassVar[tuple[str, str]] = ("all_right", "max")

    def __post_init__(self) -> None:
        require(self, "family.")

    def init(self, spec: SceneSpec, setup: Setup, key: jax.Array) -> State:
        return State(Learner.create(Network(self, spec, nnx.Rngs(key), setup.dtype), setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: Network, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns the sum of -log P(a | x) over attributes and rows in nats, and the number of rows."""
        nats, right = _judge(net, batch, key)
        count = jnp.float32(len(nats))
        return nats.sum(), count, {"all_right": (right.all((1, 2)).sum(dtype=jnp.float32), count)}

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        nats, right = _judge(state.net.eval_net(), batch, None)
        one = jnp.ones_like(nats)
        figures = {"loss": (nats, one), "all_right": (right.all((1, 2)).astype(jnp.float32), one)}
        there = (batch["scene"][..., 0] >= 0).astype(jnp.float32)
        for name, of_attribute in zip(("digit", "colour", "place"), jnp.moveaxis(right, -1, 0), strict=True):
            figures[f"{name}_accuracy"] = ((of_attribute * there).sum(1), there.sum(1))
        return figures

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: ReaderScoring, key: jax.Array
    ) -> Metrics:
        return own_accuracy(partial(self.read, model), data, scoring.scenes) if scoring.scenes else {}

    def extract(
        self, state: State, image: UInt8[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b classes"]]:
        """Returns the features of images, by which other models' samples are compared, and no logits [b 0]."""
        features, _ = state.net.eval_net()(from_pixels(image))
        return features, jnp.zeros((len(image), 0))

    def read(self, model: Model, images: UInt8[np.ndarray, "b h w c"]) -> Int32[np.ndarray, "b 2 3"]:
        """Returns digit, colour and place of the objects in images, in the form of a batch's `scene`."""
        return over_rows(partial(_read, model.state.net), images, AT_ONCE)

    def sample(self, model: Model, request: Request, key: jax.Array) -> Artifacts:
        """Returns held-out scenes, drawn at random, with what is read in them."""
        if model.data is None:
            raise UserError("samples of a reader are held-out scenes, but the data is not at hand")
        batch = model.data().held_out_at(0)
        images = batch["image"][batch["valid"]]
        images = images[np.asarray(jax.random.permutation(key, len(images)))[: request.n]]
        read = [str(scene_of(objects)) or "nothing" for objects in self.read(model, images)]
        return [Image(cell) for cell in captioned(images, read)]


def _judge(net: Network, batch: Batch, key: Any) -> tuple[Float[Array, " b"], Bool[Array, "b 2 3"]]:
    """Returns -log P of each row's scene in nats, and which attributes are read right; those of an absent object are
    right if it is read as absent."""
    _, logits = net(from_pixels(batch["image"]), key=key, rows=batch["row"])
    nats, right = jnp.zeros(len(batch["row"])), []
    for of_attribute, value in zip(logits, jnp.moveaxis(batch["scene"], -1, 0), strict=True):
        target = jnp.where(value < 0, of_attribute.shape[-1] - 1, value)
        nats += cross_entropy(of_attribute, target).sum(1)
        right.append(of_attribute.argmax(-1) == target)
    return nats, jnp.stack(right, -1)


@jax.jit
def _read(net: Learner, images: UInt8[Array, "b h w c"]) -> Int32[Array, "b 2 3"]:
    """The most probable attributes; an object whose digit is absent is absent."""
    _, logits = net.eval_net()(from_pixels(images))
    digit, colour, place = (of_attribute[..., :-1].argmax(-1) for of_attribute in logits)
    absent = logits[0].argmax(-1) == CLASSES[0] - 1
    return jnp.where(absent[..., None], -1, jnp.stack([digit, colour, place], -1)).astype(jnp.int32)

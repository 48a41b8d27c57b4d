"""CLIP: vectors of images and of captions that agree where an image and a caption belong together.

Radford et al. 2021, "Learning transferable visual models from natural language supervision". Two towers map image i to
a unit vector u_i and caption j to a unit vector v_j, and the pairs of a batch are told apart by InfoNCE both ways:

    s_ij = exp(log_scale) u_i . v_j
    loss_i = -1/2 log exp(s_ii) / sum_j c_ij exp(s_ij) - 1/2 log exp(s_ii) / sum_j c_ij exp(s_ji)

c_ij is 1 for j = i and for rows j with another caption, else 0: equal captions, which scenes often share and which
dropped ones are, are not negatives of each other (in the paper all other rows are). j runs over the global batch, also
where a device or a microbatch holds only its rows P, by the two-pass gradient of Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup": a first pass without gradients computes all vectors; then
each part computes its own again, with gradients, and adds

    sum_{i in P} (d loss / d u_i) (d u_i / d theta) + (d loss / d v_i) (d v_i / d theta),    loss = sum_i loss_i

which sums to the gradient of the whole batch. Letters in shapes: b rows, n rows of the global batch, t positions of a
caption, d features of a vector. The towers are in `zoo.nets.clip_towers`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from zoo.core.artifacts import Artifacts, Image
from zoo.core.captioned import captioned
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.family import Batch, Family, Metrics, Model, Request, RowStatistics, Scoring, Setup
from zoo.core.learner import Learner
from zoo.core.random import split
from zoo.data.captions.prompts import read_prompt
from zoo.data.captions.rows import shown
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import CaptionSpec, ImageSpec
from zoo.metrics.retrieval import read_pairs, recalls, share
from zoo.nets.clip_towers import Towers, TowerSettings, unit_vectors
from zoo.nets.transformer import BlockSettings
from zoo.nn.attend import HIDDEN
from zoo.sampling.batches import over_rows

log = logging.getLogger("zoo")

AT_ONCE = 256
"""Images or captions that one call maps to vectors, at most."""


class Network(Towers):
    """The towers, and the number of rows in the global batch.

    Args:
        family: the settings.
        spec: of the images and captions.
        batch_size: rows in the global batch.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, family: "CLIP", spec: ImageSpec, batch_size: int, rngs: nnx.Rngs, dtype: DTypeLike):
        super().__init__(family.towers(spec), rngs, dtype)
        self.batch_size = batch_size

    def vectors(self, batch: Batch, key: Any) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Returns the unit vectors of images and of captions; without a key, as in evaluation, nothing is dropped."""
        image_key, text_key = split(key, 2)
        u = self.image(from_pixels(batch["image"]), key=image_key, rows=batch["row"])
        v = self.text(batch["caption"], batch["caption_length"], key=text_key, rows=batch["row"])
        return unit_vectors(u), unit_vectors(v)


class State(NamedTuple):
    """The training state: both towers."""

    net: Learner


class Table(NamedTuple):
    """Rows of the global batch: the vectors of images and captions, and the tokens of captions as float32."""

    image: Float[Array, "n d"]
    text: Float[Array, "n d"]
    caption: Float[Array, "n t"]


@dataclass(frozen=True)
class CLIPRequest(Request):
    """Held-out pictures found by a text, or texts found for held-out pictures."""

    n: Annotated[int, Ge(1)] = 8
    """Number of pictures; all held-out ones if there are fewer."""
    prompt: str | None = None
    """The n held-out pictures that agree most with this text, best first, each above its caption; left out: n held-out
    pictures drawn at random, each above the held-out caption that agrees most."""


@dataclass(frozen=True)
class CLIPScoring(Scoring):
    """Settings of the scores of held-out pairs."""

    pairs: Annotated[int, Ge(0)] = 1000
    """Held-out pairs among which captions are retrieved by images and images by captions; 0: no such scores."""

    def __post_init__(self) -> None:
        require(self, "")


@dataclass(frozen=True)
class CLIP(Family):
    """Two towers that map images and captions to vectors which agree for pairs."""

    layers: Annotated[int, Ge(1)] = 4
    """Transformer blocks of each tower."""
    heads: Annotated[int, Ge(1)] = 4
    """Attention heads."""
    width: Annotated[int, Ge(1)] = 128
    """Features of a position."""
    features: Annotated[int, Ge(1)] = 128
    """Size of the vectors."""
    patch: Annotated[int, Ge(1)] = 4
    """Height and width in pixels of the squares into which images are cut."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability of embeddings and branches."""

    accepts: ClassVar[type] = ImageSpec
    Request: ClassVar[type] = CLIPRequest
    Scoring: ClassVar[type] = CLIPScoring
    unit: ClassVar[str] = "images"
    compares_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, "family.", ("width", f"a multiple of family.heads, {self.heads}", self.width % self.heads == 0))

    def towers(self, spec: ImageSpec) -> TowerSettings:
        """Returns the settings of the towers for images and captions of a spec.

        Raises:
            UserError: there are no captions, or the images cannot be cut into patches.
        """
        if spec.caption is None:
            raise UserError("the data has no captions, and CLIP learns from pairs: give data=CaptionedImages(...)")
        if spec.height % self.patch or spec.width % self.patch:
            raise UserError(
                f"images are {spec.height} x {spec.width}, and family.patch is {self.patch}, which must divide both: "
                f"give --data.size, such as {max(spec.height // self.patch, 1) * self.patch}"
            )
        blocks = BlockSettings(layers=self.layers, width=self.width, heads=self.heads, rate=self.dropout)
        return TowerSettings(
            rows=spec.height // self.patch, columns=spec.width // self.patch, channels=spec.channels, patch=self.patch,
            symbols=spec.caption.vocab_size, length=spec.caption.length + 1, features=self.features,
            image=blocks, text=blocks,
        )  # fmt: skip

    def init(self, spec: ImageSpec, setup: Setup, key: jax.Array) -> State:
        return State(Learner.create(Network(self, spec, setup.batch_size, nnx.Rngs(key), setup.dtype), setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key, sums_fn=tabulate)
        return State(net), metrics

    def loss(
        self, net: Network, batch: Batch, key: Any, means: Table | None = None
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns the sum of InfoNCE over the batch's rows in nats, and their number.

        Args:
            net: the towers.
            batch: some or all rows of the global batch.
            key: dropout key.
            means: the table of the global batch, if the batch has only some of its rows. The gradient is then that of
                the sum over the global batch by these rows' vectors and, for the scale, that of these rows' own terms.
        """
        (u, v), count = net.vectors(batch, key), jnp.float32(len(batch["row"]))
        if means is None:
            total = info_nce(u, v, net.scale, rivals(batch["caption"])).sum()
        else:
            mine, fixed = batch["row"], jax.lax.stop_gradient
            u, v = means.image.at[mine].set(u), means.text.at[mine].set(v)
            c = rivals(jnp.round(means.caption))
            own = info_nce(fixed(u), fixed(v), net.scale, c)[mine].sum()
            whole = info_nce(u, v, fixed(net.scale), c).sum()
            total = own + (whole - fixed(whole))
        return total, count, {"scale": (net.scale * count, count)}

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        """Returns InfoNCE of each row among the valid rows of its batch: it is higher for larger batches."""
        net = state.net.eval_net()
        u, v = net.vectors(batch, None)
        nats = info_nce(u, v, net.scale, rivals(batch["caption"], batch["valid"]))
        return {"loss": (nats, jnp.ones(len(nats)))}

    def extract(
        self, state: State, image: UInt8[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b classes"]]:
        """Returns the unit vectors of images, by which other models' samples are scored, and no logits [b 0]."""
        return unit_vectors(state.net.eval_net().image(from_pixels(image))), jnp.zeros((len(image), 0))

    def image_vectors(self, model: Model, images: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b d"]:
        """Returns the unit vectors of images."""
        return over_rows(partial(_image_vectors, self, model.state.net), images, AT_ONCE)

    def text_vectors(
        self, model: Model, caption: Int[np.ndarray, "b t"], length: Int[np.ndarray, " b"]
    ) -> Float[np.ndarray, "b d"]:
        """Returns the unit vectors of captions, as `CaptionSpec.rows` returns them."""
        return over_rows(lambda rows: _text_vectors(model.state.net, *rows), (caption, length), AT_ONCE)

    def classify(
        self, model: Model, images: UInt8[np.ndarray, "b h w c"], captions: Sequence[str]
    ) -> Int[np.ndarray, " b"]:
        """Returns for each image the number of the caption that agrees most: zero-shot classification, section 3.1."""
        v = self.text_vectors(model, *_captions(model).rows(captions))
        return (self.image_vectors(model, images) @ v.T).argmax(1)

    def score(self, model: Model, rows: dict[str, Any], data: DataSet, scoring: CLIPScoring, key: jax.Array) -> Metrics:
        if not scoring.pairs:
            return {}
        held_out = read_pairs(data, scoring.pairs)
        u = self.image_vectors(model, held_out["image"])
        v = self.text_vectors(model, held_out["caption"], held_out["caption_length"])
        right = (held_out["caption"][:, None] == held_out["caption"][None]).all(-1)
        figures = recalls(u @ v.T, right, "image", "caption") | {"pairs": len(u)}
        return figures | self._zero_shot(model, held_out)

    def _zero_shot(self, model: Model, held_out: dict[str, np.ndarray]) -> Metrics:
        """The share of labelled images whose class name agrees most, if the data has classes that captions can name."""
        classes, labelled = model.spec.classes, held_out["label"] >= 0
        unknown = [name for name in classes if _captions(model).unknown_words(name)]
        if unknown:
            log.warning("zero-shot accuracy is left out: captions lack the class name %r", unknown[0])
        if unknown or not classes or not labelled.any():
            return {}
        predicted = self.classify(model, held_out["image"][labelled], classes)
        return share("zero_shot_accuracy", predicted == held_out["label"][labelled])

    def sample(self, model: Model, request: CLIPRequest, key: jax.Array) -> Artifacts:
        v = None if request.prompt is None else self.text_vectors(model, *read_prompt(_captions(model), request.prompt))
        if model.data is None:
            raise UserError("samples of CLIP are held-out pictures, but the data is not at hand")
        held_out = read_pairs(model.data())
        images = held_out["image"]
        if v is None:
            chosen = np.asarray(jax.random.permutation(key, len(images)))[: request.n]
            v = self.text_vectors(model, held_out["caption"], held_out["caption_length"])
            products = self.image_vectors(model, images[chosen]) @ v.T
            line, agreement = products.argmax(1), products.max(1)
        else:
            products = (self.image_vectors(model, images) @ v.T)[:, 0]
            line = chosen = np.argsort(-products, kind="stable")[: request.n]
            agreement = products[chosen]
        texts = shown(_captions(model), {name: array[line] for name, array in held_out.items()}, request.n)
        labels = [f"{value:.2f} {text}" for value, text in zip(agreement, texts, strict=True)]
        return [Image(cell) for cell in captioned(images[chosen], labels)]


def rivals(caption: Shaped[Array, "n t"], valid: Bool[Array, " n"] | None = None) -> Bool[Array, "n n"]:
    """Returns c_ij: whether j is i, or has another caption and both are `valid`."""
    differ = (caption[:, None] != caption[None]).any(-1)
    if valid is not None:
        differ &= valid[:, None] & valid[None]
    return differ | jnp.eye(len(caption), dtype=bool)


def info_nce(
    u: Float[Array, "n d"], v: Float[Array, "n d"], scale: Float[Array, ""], c: Bool[Array, "n n"]
) -> Float[Array, " n"]:
    """Returns the loss of each row in nats.

    Args:
        u: unit vectors of images.
        v: unit vectors of captions.
        scale: exp(log_scale).
        c: rows that each row is compared with, itself among them; symmetric.
    """
    s = scale * jnp.matmul(u, v.T, precision="highest")
    compared = jnp.where(c, s, HIDDEN)
    return 0.5 * (jax.nn.logsumexp(compared, 1) + jax.nn.logsumexp(compared, 0)) - jnp.diagonal(s)


def tabulate(net: Network, batch: Batch, key: Any) -> tuple[Table, jax.Array]:
    """Returns the table with the rows of a batch and 0 elsewhere, and their share of the global batch.

    Divided by the sum of the shares, which is 1, the sum over all parts is the table of the global batch.
    """
    rows = Table(*net.vectors(batch, key), batch["caption"].astype(jnp.float32))
    table = jax.tree.map(lambda x: jnp.zeros((net.batch_size, *x.shape[1:])).at[batch["row"]].set(x), rows)
    return table, jnp.float32(len(batch["row"]) / net.batch_size)


def _captions(model: Model) -> CaptionSpec:
    assert model.spec.caption is not None
    return model.spec.caption


@partial(jax.jit, static_argnames="family")
def _image_vectors(family: CLIP, net: Learner, images: UInt8[Array, "b h w c"]) -> Float[Array, "b d"]:
    return family.extract(State(net), images)[0]


@jax.jit
def _text_vectors(net: Learner, caption: Int[Array, "b t"], length: Int[Array, " b"]) -> Float[Array, "b d"]:
    return unit_vectors(net.eval_net().text(caption, length))

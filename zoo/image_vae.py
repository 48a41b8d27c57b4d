"""Image VAE: an encoder and a decoder trained on the evidence lower bound (ELBO).

Kingma & Welling 2014, "Auto-encoding variational Bayes". The prior of a code z of `latent` units is standard normal, a
decoder models p(x|z), and an encoder q(z|x) = N(mean, diag(sigma^2)) approximates the posterior:

    log p(x)  >=  ELBO(x) = E_q log p(x|z) - KL(q(z|x) || N(0, 1))                   (eq. 3)
    KL = 1/2 sum_j (mean_j^2 + sigma_j^2 - 1 - log sigma_j^2)                        (appendix B)
    z = mean + sigma eps,  eps ~ N(0, 1)                                             (section 2.4)

The training loss is -E_q log p(x|z) + beta w KL, with beta from Higgins et al. 2017, "beta-VAE", and w rising from 0 to
1 over `kl_warmup_steps` (Bowman et al. 2016). With free bits (Kingma et al. 2016, eq. 15) the KL term is
sum_j max(free_bits, mean over the batch of KL_j). Held-out figures are of the bound itself, beta = 1. With `iw_samples`
k > 1 training maximises a tighter bound (Burda et al. 2016, "Importance weighted autoencoders", eq. 8):

    log p(x)  >=  E log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x),   z_i ~ q(z|x)

p(x|z) is that of `zoo.nn.pixel_likelihood`: Bernoulli for binarised grey images, logistic for the levels of colour.
Images are [b h w c] from -1 (black) to 1 (white), codes are [b latent].
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from zoo.core.artifacts import Artifacts, Image, sheet
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.estimates import row_mean
from zoo.core.family import Batch, Family, Metrics, Model, Request, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import normal
from zoo.data.images.pixels import HELD_OUT_NOISE, observe, to_pixels
from zoo.data.specs import ImageSpec
from zoo.metrics.images import ImageScoring, score_samples
from zoo.metrics.latent import active_units, held_out_rows, importance_weighted
from zoo.nets.autoencoder import Autoencoder
from zoo.nn.pixel_likelihood import PixelLikelihood
from zoo.nn.variational import NO_KL, draw_code, draw_codes, free_bits, iw_bound, kl_divergence, warm_up
from zoo.sampling.batches import over_rows
from zoo.sampling.latent_paths import interpolate, lerp, most_active, slerp, traverse
from zoo.sampling.starting_images import given_pictures

AT_ONCE = 1024
"""Images that one call decodes, at most."""
COLUMNS = 16
"""Pairs of image and reconstruction in one sheet."""
TRAVERSED = 13
"""Values of a unit in a traversal, from -3 to 3."""


class State(NamedTuple):
    """The training state of a VAE: encoder and decoder."""

    net: Learner


@dataclass(frozen=True)
class ImageVAERequest(Request):
    """Images to make: samples of the prior, interpolations, traversals or reconstructions; all are means of p(x|z)."""

    interpolate: int = 0
    """Instead of samples, n rows of this many images interpolated between two codes, ends included."""
    path: Literal["slerp", "lerp"] = "slerp"
    """Path of interpolation between two codes: a great circle or a straight line."""
    traverse: Annotated[int, Ge(0)] = 0
    """Instead of samples, n sheets, in each of which this many latent units, the most active, vary from -3 to 3."""
    reconstruct: Annotated[int, Ge(0)] = 0
    """Instead of samples, this many held-out images, each above its reconstruction."""
    images: tuple[str, ...] = ()
    """Images to reconstruct, to traverse from, or to interpolate between in sequence: files, or numbers of held-out
    images."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("interpolate", "at least 2, since both ends count", self.interpolate == 0 or self.interpolate >= 2),
            ("images", "two files or more to interpolate between", not self.interpolate or len(self.images) != 1),
        )
        modes = [name for name in ("interpolate", "traverse", "reconstruct") if getattr(self, name)]
        if len(modes) > 1:
            raise UserError(f"{modes[0]} and {modes[1]} are two kinds of picture: give one of them")
        if self.images and self.reconstruct:
            raise UserError("reconstruct is of the first held-out images, and images names others: give one of them")


@dataclass(frozen=True)
class ImageVAEScoring(ImageScoring):
    """Figures to compute in addition to the bound and the active units."""

    iw_samples: Annotated[int, Ge(0)] = 0
    """Codes per image for the importance-weighted bound (k of Burda et al. 2016, eq. 8); 0: skip it."""


@dataclass(frozen=True)
class ImageVAE(PixelLikelihood, Family):
    """A variational autoencoder of images."""

    network: Literal["mlp", "conv"] = "mlp"
    """Dense layers over all pixels, or residual convolutions over patches of 4x4 pixels."""
    width: Annotated[int, Ge(1)] = 400
    """mlp: features of a hidden layer; conv: channels of a patch."""
    layers: Annotated[int, Ge(1)] = 1
    """mlp: hidden layers of each network; conv: residual blocks per level (several levels above 32 pixels)."""
    hidden: Annotated[int, Ge(1)] = 256
    """conv: features of the dense layer between the last level and the code."""
    latent: Annotated[int, Ge(1)] = 20
    """Units of a code."""
    beta: Annotated[float, Ge(0)] = 1.0
    """Weight of the KL term in training (Higgins et al. 2017)."""
    kl_warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which the KL term's weight rises from 0 to beta."""
    free_bits: Annotated[float, Ge(0)] = 0.0
    """Nats of each latent unit's KL, averaged over the batch, that are not penalised."""

    iw_samples: Annotated[int, Ge(1)] = 1
    """Codes per image in training, k of the importance-weighted bound; 1: the ELBO with its closed-form KL."""

    accepts: ClassVar[type] = ImageSpec
    Request: ClassVar[type] = ImageVAERequest
    Scoring: ClassVar[type] = ImageVAEScoring
    unit: ClassVar[str] = "images"
    symbols: ClassVar[int] = 0
    """Its codes are real-valued; see `zoo.core.codec.Codec`."""

    def __post_init__(self) -> None:
        require(
            self,
            "family.",
            ("iw_samples", f"1 with family.beta, kl_warmup_steps or free_bits, {NO_KL}",
             self.iw_samples == 1 or (self.beta, self.kl_warmup_steps, self.free_bits) == (1, 0, 0)),
        )  # fmt: skip
        super().__post_init__()

    def init(self, spec: ImageSpec, setup: Setup, key: jax.Array) -> State:
        self.check_channels(spec.channels)
        net = Autoencoder(
            self.network, (spec.height, spec.width, spec.channels), latent=self.latent,
            outputs=self.outputs(spec.channels),
            width=self.width, layers=self.layers, hidden=self.hidden, rngs=nnx.Rngs(key), dtype=setup.dtype,
        )  # fmt: skip
        return State(Learner.create(net, setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        weight = self.beta * warm_up(step, self.kl_warmup_steps)
        net, metrics = state.net.descend(
            partial(self.loss, weight=weight), batch, step, key, sums_fn=self.kl_sums if self.free_bits else None
        )
        return State(net), metrics

    def loss(
        self,
        net: Autoencoder,
        batch: Batch,
        key: Any,
        weight: Float[Array, ""] | float = 1.0,
        means: Float[Array, " latent"] | None = None,
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns -E_q log p(x|z) + weight KL summed over a batch in nats, with free bits, and the number of images."""
        pixel_key, code_key = jax.random.split(key)
        x = self.observe(batch["image"], pixel_key, batch["row"])
        if self.iw_samples > 1:
            return self.iw_loss(net, x, code_key, batch["row"])
        log_likelihood, kl = self.terms(net, x, code_key, batch["row"])
        count = jnp.asarray(float(len(kl)))
        pairs = {"reconstruction_nats": (-log_likelihood.sum(), count), "kl_nats": (kl.sum(), count)}
        return (weight * free_bits(kl, self.free_bits, means).sum(1) - log_likelihood).sum(), count, pairs

    def kl_sums(self, net: Autoencoder, batch: Batch, key: Any) -> tuple[Float[Array, " latent"], jax.Array]:
        """Returns the KL of each unit summed over a batch, and the number of images; free bits need the mean."""
        x = self.observe(batch["image"], jax.random.split(key)[0], batch["row"])  # the same x as in `loss`
        kl = kl_divergence(*net.encode(x))
        return kl.sum(0), jnp.asarray(float(len(kl)))

    def iw_loss(
        self, net: Any, x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """-log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) summed over a batch in nats; the KL is only a metric."""
        mean, log_variance = net.encode(x)
        z, log_ratio = draw_codes(mean, log_variance, key, rows, jnp.arange(self.iw_samples))
        bound = iw_bound(self.code_log_likelihood(net, x, z) + log_ratio)
        count, kl = jnp.asarray(float(len(x))), kl_divergence(mean, log_variance).sum()
        return -bound.sum(), count, {"kl_nats": (kl, count)}

    def code_log_likelihood(
        self, net: Any, x: Float[Array, "b h w c"], z: Float[Array, "s b latent"]
    ) -> Float[Array, "s b"]:
        """Returns log p(x|z) in nats of each image at its own s codes."""
        parameters = net.decode(rearrange(z, "s b latent -> (s b) latent"))
        images = repeat(x, "b h w c -> (s b) h w c", s=len(z))
        return rearrange(self.log_likelihood(images, parameters), "(s b) -> s b", s=len(z))

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        x = self.observe_held_out(batch)
        log_likelihood, kl = self.terms(state.net.eval_net(), x, key, batch["row"])
        kl, one = kl.sum(1), jnp.ones(len(kl))
        loss = kl - log_likelihood
        bits = loss / (math.log(2) * math.prod(x.shape[1:]))
        figures = {"loss": loss, "reconstruction_nats": -log_likelihood, "kl_nats": kl, "bits_per_dim": bits}
        return {name: (value, one) for name, value in figures.items()}

    def terms(
        self, net: Any, x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> tuple[Float[Array, " b"], Float[Array, "b latent"]]:
        """Returns the two terms of the bound in nats: log p(x|z) at one z ~ q(z|x), and the KL of each unit."""
        mean, log_variance = net.encode(x)
        z = draw_code(mean, log_variance, key, rows)
        return self.log_likelihood(x, net.decode(z)), kl_divergence(mean, log_variance)

    def observe(
        self, image: UInt8[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """Returns the x that is modelled, in [-1, 1]; see `zoo.data.images.pixels.observe`."""
        return observe(image, self.pixels(image.shape[-1]), key, rows)

    def observe_held_out(self, batch: Batch) -> Float[Array, "b h w c"]:
        """`observe` with the fixed noise of evaluation."""
        return self.observe(batch["image"], jax.random.key(HELD_OUT_NOISE), batch["row"])

    def image(self, parameters: Float[Array, "b h w c k"]) -> UInt8[Array, "b h w c"]:
        """Returns the mean of p(x|z) as pixels."""
        return to_pixels(self.mean(parameters))

    def iw_log_likelihood(
        self, net: Any, x: Float[Array, "b h w c"], key: Key[Array, ""], rows: Int[Array, " b"], k: Int[Array, ""] | int
    ) -> Float[Array, " b"]:
        """Returns log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x) in nats, z_i ~ q(z|x)."""
        mean, log_variance = net.encode(x)
        return importance_weighted(partial(self.code_log_likelihood, net, x), mean, log_variance, key, rows, k)

    def encode(self, state: State, batch: Batch) -> Float[Array, "b latent"]:
        """Returns the mean of q(z|x) for each image; the encoder of the family as a codec."""
        return state.net.eval_net().encode(self.observe_held_out(batch))[0]

    def latents(self, state: State, batch: Batch) -> Float[Array, "b latent"]:
        """Returns the codes, which are real numbers; see `Codec`."""
        return self.encode(state, batch)

    def decode(self, state: State, codes: Float[Array, "b latent"]) -> UInt8[Array, "b h w c"]:
        """Returns the mean of p(x|z) for each code as pixels; the decoder of the family as a codec."""
        return self.image(state.net.eval_net().decode(codes))

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: ImageVAEScoring, key: jax.Array
    ) -> Metrics:
        net, k = model.state.net, scoring.iw_samples
        figures: Metrics = {"active_units": active_units(held_out_rows(data, partial(_encode, self, net)))}
        if k:
            nll = held_out_rows(data, partial(_iw_nll, self, net, key, k))
            figures |= row_mean("iw_nll_nats", nll) | {"iw_samples": k}
        if scoring.samples:

            def draw(classes: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
                return self._decode(model, self._prior(key, len(classes)))

            figures |= score_samples(draw, data, scoring, {"sampler": "prior"}, key, model.extractor)
        return figures

    def sample(self, model: Model, request: ImageVAERequest, key: jax.Array) -> Artifacts:
        net, decode = model.state.net, partial(self._decode, model)
        names = request.images or [str(number) for number in range(request.reconstruct)]
        given = _as_batch(given_pictures(names, model)) if names else None
        codes = self._prior(key, 2 * request.n) if given is None else _encode(self, net, given)
        if request.interpolate:
            begin, end = (codes[::2], codes[1::2]) if given is None else (codes[:-1], codes[1:])
            path = {"slerp": slerp, "lerp": lerp}[request.path]
            rows = interpolate(decode, begin, end, request.interpolate, path)
            return [sheet(np.asarray(rows), "interpolation")]
        if request.traverse:
            made = _as_batch(decode(self._prior(jax.random.key(0), AT_ONCE)))
            units = most_active(_encode(self, net, made), request.traverse)
            codes = codes[: request.n] if given is None else codes
            sheets = traverse(decode, codes, units, jnp.linspace(-3.0, 3.0, TRAVERSED))
            return [sheet(np.asarray(rows), "traversal") for rows in sheets]
        if given is not None:
            pairs = np.stack([_shown(self, given), decode(codes)])
            return [sheet(pairs[:, i : i + COLUMNS], "reconstruction") for i in range(0, len(codes), COLUMNS)]
        return [Image(pixels) for pixels in decode(codes[: request.n])]

    def _prior(self, key: Key[Array, ""], n: int) -> Float[Array, "n latent"]:
        """Draws codes 0 .. n - 1 from p(z)."""
        return normal(key, jnp.arange(n), (self.latent,))

    def _decode(self, model: Model, codes: Float[Array, "n latent"]) -> UInt8[np.ndarray, "n h w c"]:
        """Decodes codes to images."""
        return over_rows(partial(_decode, self, model.state.net), codes, AT_ONCE)


def _as_batch(image: UInt8[np.ndarray, "n h w c"]) -> Batch:
    """Returns a batch of images with row numbers."""
    return {"image": image, "row": np.arange(len(image), dtype=np.int32)}


@partial(jax.jit, static_argnames="family")
def _encode(family: ImageVAE, net: Learner, batch: Batch) -> Float[Array, "b latent"]:
    return family.encode(State(net), batch)


@partial(jax.jit, static_argnames="family")
def _decode(family: ImageVAE, net: Learner, z: Float[Array, "b latent"]) -> UInt8[Array, "b h w c"]:
    return family.decode(State(net), z)


@partial(jax.jit, static_argnames="family")
def _shown(family: ImageVAE, batch: Batch) -> UInt8[Array, "b h w c"]:
    """Returns the encoder's input as pixels."""
    return to_pixels(family.observe_held_out(batch))


@partial(jax.jit, static_argnames="family")
def _iw_nll(family: ImageVAE, net: Learner, key: Key[Array, ""], k: Any, batch: Batch) -> Float[Array, " b"]:
    x = family.observe_held_out(batch)
    return -family.iw_log_likelihood(net.eval_net(), x, key, batch["row"], k)

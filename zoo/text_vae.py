"""Text VAE: a latent variable model of sentences, with remedies against posterior collapse.

Bowman et al. 2016, "Generating sentences from a continuous space". The prior of a code z of `latent` units is standard
normal, a language model conditioned on z models p(w|z) of a sentence w, and an encoder q(z|w) approximates the
posterior. Training maximises

    J = E_q log p(w|z) - beta KL(q(z|w) || N(0, 1))

with the closed-form KL and z = mean + sigma eps of `zoo.nn.variational`, and the networks of `zoo.nets.conditioned_lm`.
A decoder that sees all earlier words can ignore z; then q(z|w) equals the prior and the KL is 0 (posterior collapse).
The settings against it:

    kl_warmup_steps   beta rises from 0                                         Bowman et al. 2016
    kl_cycle_steps    and does so repeatedly                                    Fu et al. 2019
    free_bits         nats of each unit's KL that are not penalised             Kingma et al. 2016
    word_dropout      hides words from the decoder                              Bowman et al. 2016
    aggressive        trains the encoder alone until it has caught up           He et al. 2019

With `iw_samples` k > 1 training maximises the importance-weighted bound instead (Burda et al. 2016, eq. 8):

    log p(w)  >=  E log 1/k sum_i w_i,   w_i = p(w|z_i) p(z_i) / q(z_i|w),   z_i ~ q(z|w)

Held-out figures are of the bound itself, beta = 1, with one z per sentence. With `latent` 0 the family is the same
decoder as a plain language model, the baseline for a VAE's `loss`.

A batch holds `tokens` [b t+1], each row a sentence between two end-of-text tokens, and their `length` [b].
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt
from einops import rearrange, repeat
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from zoo.core.artifacts import Artifacts
from zoo.core.bounds import Why
from zoo.core.data import DataSet
from zoo.core.errors import UserError, require
from zoo.core.estimates import row_mean
from zoo.core.family import AllRows, Batch, Family, Metrics, Model, RowStatistics, Scoring, Setup
from zoo.core.learner import Learner
from zoo.core.random import split
from zoo.data.specs import LineSpec
from zoo.metrics.latent import (
    active_units,
    batch_information,
    held_out_rows,
    importance_weighted,
    mutual_information,
)
from zoo.metrics.text import perplexity
from zoo.nets.conditioned_lm import BodyKind, TextDecoder, TextDecoderSettings, TextEncoder
from zoo.nn.aggressive_encoder import Lagging
from zoo.nn.cells import Cell
from zoo.nn.linear_cross_entropy import linear_cross_entropy, row_cross_entropy
from zoo.nn.losses import cross_entropy, real_targets
from zoo.nn.variational import NO_KL, draw_code, draw_codes, free_bits, iw_bound, kl_divergence, warm_up
from zoo.sampling.tokens.sentences import SentenceRequest, write_sentences

AT_ONCE = 256
"""Sentences that one call decodes for the importance-weighted bound, at most: rows times codes of each."""
COLLAPSED = math.log(2)
"""Mutual information in nats below which the posterior counts as collapsed: less than one bit per code."""


class VAE(nnx.Module):
    """Encoder and decoder; a plain language model has no encoder."""

    def __init__(self, settings: "TextVAE", vocab_size: int, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        s = settings
        self.latent = s.latent
        self.encoder = TextEncoder(s.encoder, s.width, s.latent, rate=s.dropout, rngs=rngs) if s.latent else None
        decoder = TextDecoderSettings(
            body=s.decoder, vocab_size=vocab_size, context=s.context, layers=s.layers, width=s.width, heads=s.heads,
            latent=s.latent, rate=s.dropout, word_dropout=s.word_dropout,
        )  # fmt: skip
        self.decoder = TextDecoder(decoder, rngs, dtype)

    def encode(
        self, batch: Batch, *, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b latent"], Float[Array, "b latent"]]:
        """Returns mean and log sigma^2 of q(z|w)."""
        if self.encoder is None:
            nothing = jnp.zeros((len(batch["tokens"]), 0))
            return nothing, nothing
        words = self.decoder.embedding(batch["tokens"][:, 1:])
        return self.encoder(words, real_targets(batch), key=key, rows=batch["row"])


class State(NamedTuple):
    """The training state of a text VAE."""

    net: Learner
    """Encoder and decoder."""
    lagging: Lagging | None
    """The state of aggressive training, which decides whether a step trains the encoder alone; None: always both."""


@dataclass(frozen=True)
class TextVAEScoring(Scoring):
    """Figures to compute in addition to the bound, active units and mutual information."""

    iw_samples: Annotated[int, Ge(0)] = 0
    """Codes per sentence for the importance-weighted bound (k of Burda et al. 2016, eq. 8); 0: skip it."""

    def __post_init__(self) -> None:
        require(self, "")


@dataclass(frozen=True)
class TextVAE(Family):
    """A variational autoencoder of sentences."""

    encoder: Cell = "lstm"
    """Cell of the encoder, which is one recurrent layer."""
    decoder: BodyKind = "lstm"
    """Network of the decoder."""
    layers: Annotated[int, Ge(1)] = 1
    """Layers of the decoder."""
    heads: Annotated[int, Ge(1)] = 4
    """Attention heads of a transformer decoder, each with width / heads features."""
    width: Annotated[int, Ge(1)] = 256
    """Features of a word and of a state."""
    context: Annotated[int, Ge(2), Why("for a word and the sentence's end")] = 24
    """Words of the longest sentence, plus one for its end."""
    latent: Annotated[int, Ge(0)] = 10
    """Units of a code; 0: a plain language model."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability of word vectors, between layers, and before the head."""
    word_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the words hidden from the decoder in training."""
    beta: Annotated[float, Ge(0)] = 1.0
    """Weight of the KL term in training (Higgins et al. 2017)."""
    kl_warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which the KL term's weight rises from 0 to beta."""
    kl_cycle_steps: int = 0
    """Period in steps after which the KL term's weight restarts from 0; 0: never."""
    free_bits: Annotated[float, Ge(0)] = 0.0
    """Nats of each latent unit's KL, averaged over the batch, that are not penalised."""
    aggressive: bool = False
    """Whether to start with a phase that trains the encoder alone until it has caught up with the decoder."""
    iw_samples: Annotated[int, Ge(1)] = 1
    """Codes per sentence in training, k of the importance-weighted bound; 1: the ELBO with its closed-form KL."""
    aggressive_window: Annotated[int, Ge(1)] = 1000
    """Steps of a window; the aggressive phase ends when mutual information is no higher than in the window before."""

    accepts: ClassVar[type] = LineSpec
    Request: ClassVar[type] = SentenceRequest
    Scoring: ClassVar[type] = TextVAEScoring
    unit: ClassVar[str] = "positions"

    def __post_init__(self) -> None:
        warm, cycle = self.kl_warmup_steps, self.kl_cycle_steps
        require(
            self,
            "family.",
            ("iw_samples", f"1 with family.beta, kl_warmup_steps, free_bits or aggressive, {NO_KL}",
             self.iw_samples == 1 or (self.beta, warm, self.free_bits, self.aggressive) == (1, 0, 0, False)),
            ("iw_samples", "1 with family.latent 0, which has no codes", self.iw_samples == 1 or self.latent > 0),
            ("kl_cycle_steps", f"0 or at least family.kl_warmup_steps, {warm}", cycle == 0 or cycle >= warm >= 0),
            ("kl_cycle_steps", "0 where family.kl_warmup_steps is, since nothing rises", warm > 0 or cycle == 0),
        )  # fmt: skip
        if self.decoder == "transformer" and self.width % self.heads:
            raise UserError(f"family.width is {self.width}; it must be a multiple of family.heads, {self.heads}")
        if self.aggressive and not self.latent:
            raise UserError("family.aggressive trains an encoder, and with family.latent 0 there is none")

    @property
    def length(self) -> int:
        return self.context

    def init(self, spec: LineSpec, setup: Setup, key: jax.Array) -> State:
        vae = VAE(self, spec.tokenizer.vocab_size, nnx.Rngs(key), setup.dtype)
        return State(Learner.create(vae, setup), Lagging.begin() if self.aggressive else None)

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        weight = jnp.asarray(self.beta * warm_up(step, self.kl_warmup_steps, self.kl_cycle_steps), jnp.float32)
        loss, lagging = partial(self.loss, weight=weight), state.lagging
        sums_fn = self.kl_sums if self.free_bits and self.latent else None
        if lagging is None:
            net, metrics = state.net.descend(loss, batch, step, key, sums_fn=sums_fn)
            return State(net, None), metrics | {"kl_weight": weight}

        net, metrics = jax.lax.cond(
            lagging.alone,
            lambda net: net.descend(loss, batch, step, key, only=("encoder",), sums_fn=sums_fn),
            lambda net: net.descend(loss, batch, step, key, sums_fn=sums_fn),
            state.net,
        )
        information = batch_information(*metrics.pop("posterior").value)
        told = {"kl_weight": weight, "mutual_information_nats": information, "encoder_alone": lagging.alone * 1.0}
        return State(net, lagging.after(metrics["loss"], information, self.aggressive_window)), metrics | told

    def loss(
        self,
        net: VAE,
        batch: Batch,
        key: Any,
        weight: Float[Array, ""] | float = 1.0,
        means: Float[Array, " latent"] | None = None,
    ) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns -E_q log p(w|z) + weight KL with free bits, or -log 1/k sum_i w_i, in nats, and the row count."""
        encoder_key, code_key, decoder_key = split(key, 3)
        mean, log_variance = net.encode(batch, key=encoder_key)
        kl = kl_divergence(mean, log_variance)
        count = jnp.asarray(float(len(kl)))
        if self.iw_samples > 1:
            z, log_ratio = draw_codes(mean, log_variance, code_key, batch["row"], jnp.arange(self.iw_samples))
            bound = iw_bound(_log_likelihoods(net, batch, z, decoder_key) + log_ratio)
            return -bound.sum(), count, {"kl_nats": (kl.sum(), count)}
        z = draw_code(mean, log_variance, code_key, batch["row"])
        y = net.decoder(batch["tokens"][:, :-1], z, key=decoder_key, rows=batch["row"])
        reconstruction = linear_cross_entropy(
            y, net.decoder.embedding.table[...], batch["tokens"][:, 1:], real_targets(batch)
        )
        metrics: Metrics = {"reconstruction_nats": (reconstruction, count), "kl_nats": (kl.sum(), count)}
        if self.aggressive:
            metrics["posterior"] = AllRows((z, mean, log_variance))
        return reconstruction + weight * free_bits(kl, self.free_bits, means).sum(), count, metrics

    def kl_sums(self, net: VAE, batch: Batch, key: Any) -> tuple[Float[Array, " latent"], jax.Array]:
        """Returns the KL of each unit summed over a batch, and the number of sentences; free bits need the mean."""
        kl = kl_divergence(*net.encode(batch, key=split(key, 3)[0]))  # the same dropout as in `loss`
        return kl.sum(0), jnp.asarray(float(len(kl)))

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        net = state.net.eval_net()
        mean, log_variance = net.encode(batch)
        nats = _row_nats(net, batch, draw_code(mean, log_variance, key, batch["row"]))
        kl, one = kl_divergence(mean, log_variance).sum(1), jnp.ones(len(nats))
        words = real_targets(batch).sum(1).astype(jnp.float32)
        terms = {"elbo": -nats - kl, "reconstruction": nats, "kl": kl}
        per_sentence = {f"{name}_nats": (value, one) for name, value in terms.items()}
        per_token = {f"{name}_nats_per_token": (value, words) for name, value in terms.items()}
        return {"loss": (nats + kl, one)} | per_sentence | per_token

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: TextVAEScoring, key: jax.Array
    ) -> Metrics:
        figures: Metrics = {"perplexity_bound": perplexity(-rows["elbo_nats_per_token"])}
        if not self.latent:
            return figures
        net, k = model.state.net, scoring.iw_samples
        if k:
            figures |= row_mean("iw_nll_nats", held_out_rows(data, lambda batch: _iw_nll(self, net, batch, key, k)))
            words = rows["elbo_nats"] / rows["elbo_nats_per_token"]
            figures |= {"iw_perplexity": perplexity(figures["iw_nll_nats"] / words), "iw_samples": k}
        z, mean, log_variance = held_out_rows(data, lambda batch: _codes(net, batch, key))
        active, information = active_units(mean), mutual_information(z, mean, log_variance)
        figures |= {"active_units": active, "mutual_information_nats": information}
        return figures | {"posterior": self.verdict(rows["kl_nats"], information, active)}

    def verdict(self, kl: float, information: float, active: int) -> str:
        """Returns a sentence on whether the posterior has collapsed, with the figures and the settings to change.

        Args:
            kl: held-out KL in nats per sentence.
            information: held-out mutual information in nats.
            active: active units.
        """
        facts = f"KL {kl:.2f} and mutual information {information:.2f} nats, {active} of {self.latent} units active"
        if active and information >= COLLAPSED:
            return f"in use: {facts}"
        weighs_kl = self.iw_samples == 1
        remedies = [
            f"--family.{flag}"
            for flag, unused in (
                ("iw-samples 1", self.iw_samples > 1),
                ("free-bits 0.2", weighs_kl and not self.free_bits),
                ("kl-warmup-steps 10000", weighs_kl and not self.kl_warmup_steps),
                ("aggressive", weighs_kl and not self.aggressive),
                ("word-dropout 0.3", not self.word_dropout),
                (f"beta {self.beta / 2:g}", weighs_kl),
            )
            if unused
        ]
        return (
            f"collapsed: the decoder writes as if there were no code ({facts}); start over with "
            + (", ".join(remedies[:-1]) + " or " if remedies[1:] else "")
            + remedies[-1]
        )

    def sample(self, model: Model, request: SentenceRequest, key: jax.Array) -> Artifacts:
        if not self.latent and (request.between or request.around or request.reconstruct):
            raise UserError("the run's family.latent is 0: a plain language model has no codes of sentences")
        net, tokenizer = model.state.net, model.spec.tokenizer
        sizes = {"latent": self.latent, "context": self.context}
        return write_sentences(net.eval_net().decoder, partial(_encode, net), tokenizer, request, key, **sizes)

    def iw_log_likelihood(
        self, net: VAE, batch: Batch, key: Key[Array, ""], k: Int[Array, ""] | int
    ) -> Float[Array, " b"]:
        """Returns the importance-weighted bound of each sentence with k codes, in nats; see `importance_weighted`."""
        mean, log_variance = net.encode(batch)

        def log_likelihood(z: Float[Array, "s b latent"]) -> Float[Array, "s b"]:
            sentences = {name: repeat(batch[name], "b ... -> (s b) ...", s=len(z)) for name in ("tokens", "length")}
            nats = _row_nats(net, sentences, rearrange(z, "s b latent -> (s b) latent"))
            return rearrange(-nats, "(s b) -> s b", s=len(z))

        return importance_weighted(log_likelihood, mean, log_variance, key, batch["row"], k, most=AT_ONCE)


def _row_nats(net: VAE, batch: Batch, z: Float[Array, "b latent"]) -> Float[Array, " b"]:
    """Returns -log p(w|z) of each sentence in nats."""
    y = net.decoder(batch["tokens"][:, :-1], z)
    return row_cross_entropy(y, net.decoder.embedding.table[...], batch["tokens"][:, 1:], real_targets(batch))


def _log_likelihoods(net: VAE, batch: Batch, z: Float[Array, "k b latent"], key: Key[Array, ""]) -> Float[Array, "k b"]:
    """Returns log p(w|z) in nats of each sentence at its k codes; differentiable, with logits of one code at a time."""

    @jax.checkpoint
    def one(number: Int[Array, ""], z: Float[Array, "b latent"]) -> Float[Array, " b"]:
        y = net.decoder(batch["tokens"][:, :-1], z, key=jax.random.fold_in(key, number), rows=batch["row"])
        nats = cross_entropy(net.decoder.embedding.logits(y), batch["tokens"][:, 1:])
        return -jnp.where(real_targets(batch), nats, 0.0).sum(1)

    return jax.lax.map(lambda code: one(*code), (jnp.arange(len(z)), z))


@jax.jit
def _encode(net: Learner, tokens: Any, length: Any) -> tuple[Float[Array, "b latent"], Float[Array, "b latent"]]:
    """Returns mean and log sigma^2 of q(z|w) for rows of tokens."""
    return net.eval_net().encode({"tokens": tokens, "length": length, "row": jnp.arange(len(length))})


@jax.jit
def _codes(net: Learner, batch: Batch, key: Any) -> tuple[Float[Array, "b latent"], ...]:
    """Returns a code z ~ q(z|w) of each sentence, and the mean and log sigma^2 of q(z|w)."""
    mean, log_variance = net.eval_net().encode(batch)
    return draw_code(mean, log_variance, key, batch["row"]), mean, log_variance


@partial(jax.jit, static_argnames="family")
def _iw_nll(family: TextVAE, net: Learner, batch: Batch, key: Any, k: Any) -> Float[Array, " b"]:
    return -family.iw_log_likelihood(net.eval_net(), batch, key, k)

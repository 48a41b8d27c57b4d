"""Masked diffusion of tokens: a network learns to fill in masked tokens, and sampling unmasks them step by step.

Sahoo et al. 2024, "Simple and effective masked diffusion language models" (MDLM); Shi et al. 2024, "Simplified and
generalized masked diffusion for discrete data". Each token of x is masked by time t, independently, with probability
1 - alpha_t, and stays masked. The bound of continuous time, in nats, is

    -log p(x) <= NELBO = int_0^1 -alpha_t' / (1 - alpha_t) E[ sum_{i masked} -log p(x_i | x_t) ] dt

Here alpha_t = 1 - t, whose weight is 1 / t; by a change of variables the bound is the same for every schedule. Given t,
the number n of masked tokens of L is binomial, and each set of n tokens is equally likely. Integrated over t, the
weight of each n is 1 / n:

    int_0^1 1/t Binomial(n; L, t) dt = 1 / n,  so  NELBO = E_n[ L / n  E_{|M| = n} sum_{i in M} -log p(x_i | x_t) ]

with n uniform on 1 .. L: the average over all orders of an autoregressive model's loss (Hoogeboom et al. 2022,
"Autoregressive diffusion models"). This form is estimated: n = floor(t L) + 1 tokens are masked for a uniform t. It has
the same mean as independent masks weighted by 1 / t, and finite variance. In training, t is spread evenly over the
batch with a density that makes the variance smaller (see `loss`).

The parameterisation is SUBS: p(x_i | x_t) has no mask symbol, which is read and never predicted, and only masked tokens
are predicted. The network, an encoder that sees the whole row, has no time input: x_t shows how much is masked.

What is modelled. A row is `tokens` [b t+1]; the first, `end` or the token before the window, is given and never masked.
So x, [b t], are the targets of a language model, and bits per character are those of a bound on the same likelihood.

  - Rows of blocks (`BlockSpec`) are windows of a stream; attention crosses documents. All real targets are in the
    bound. A language model does not score the `end` that begins a document, which is certain after the one before it;
    here it is masked and scored, because an `end` in sight would reveal the one before it. So the bound is on at least
    what a language model scores.
  - Other rows are whole sequences. After its text a row is filled with `end` up to the context (or `longest`), and all
    of these are modelled and scored, so the length of the text is. The filled row is a function of the text, so the
    bound on -log P(row) is one on -log P(text and its end); samples are cut at the first `end`, which can only make
    the text more probable. `loss` divides by the text's own tokens and the `end` after it.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.core.artifacts import Artifacts
from zoo.core.data import DataSet
from zoo.core.errors import require
from zoo.core.family import Batch, Family, Metrics, Model, RowStatistics, Setup
from zoo.core.learner import Learner
from zoo.core.random import spread, uniform
from zoo.data.specs import BlockSpec, TokenSpec
from zoo.metrics.text import likelihood_statistics
from zoo.metrics.tokens import UnmaskScoring, score_language_model
from zoo.metrics.windows import strided_figures
from zoo.nets.encoder import TokenEncoder
from zoo.nets.transformer import BlockSettings
from zoo.nn.attend import Mask
from zoo.nn.losses import counted, cross_entropy, real_targets
from zoo.sampling.tokens.unmask_request import UnmaskRequest, sample_tokens


class Denoiser(TokenEncoder):
    """The network p(x_i | x_t).

    Args:
        settings: the family's settings.
        spec: the data spec.
        rngs: source of the initial values.
        dtype: computation dtype of the layers.
    """

    def __init__(self, settings: "MaskedDiffusion", spec: TokenSpec, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        s = settings
        block = BlockSettings(layers=s.layers, width=s.width, heads=s.heads, rate=s.dropout)
        sizes = {"symbols": spec.vocab_size + 1, "positions": s.context + 1, "segments": 0}
        super().__init__(**sizes, block=block, rotary=s.rotary, remat=s.remat, rngs=rngs, dtype=dtype)
        self.mask, self.end, self.outputs = spec.vocab_size, spec.end, spec.outputs
        self.in_blocks, self.longest = isinstance(spec, BlockSpec), spec.longest or s.context

    def __call__(
        self,
        x_t: Int[Array, "b t"],
        length: Int[Array, " b"],
        *,
        key: Key[Array, ""] | None = None,
        rows: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t vocab"]:
        """Returns logits of the token at each position; the mask is not among them.

        Args:
            x_t: rows of at most 1 + context tokens, some of them masked.
            length: number of tokens of each row without padding.
            key: dropout key; None means evaluation.
            rows: each row's index in the global batch.
        """
        x = self.encode(x_t, None, Mask(lengths=length), key=key, rows=rows)
        return self.token_logits(x)[:, :, : self.outputs]

    def predict(self, tokens: Int[Array, "b t"], unknown: Bool[Array, "b t"]) -> Float[Array, "b t vocab"]:
        """Returns logits of the token at each position of full rows, given all tokens that are not unknown."""
        return self(jnp.where(unknown, self.mask, tokens), jnp.full(len(tokens), tokens.shape[1]))

    def row(self, batch: Batch) -> tuple[Int[Array, "b t"], Bool[Array, "b t"]]:
        """Returns the tokens x of a batch, filled up with `end`, and which of them are modelled."""
        x, real = batch["tokens"][:, 1:], real_targets(batch)
        place = jnp.arange(x.shape[1])[None, :]
        modelled = real if self.in_blocks else jnp.broadcast_to(place < self.longest, x.shape)
        if "first" in batch:
            modelled &= place >= batch["first"][:, None]
        return jnp.where(real, x, self.end), modelled


class State(NamedTuple):
    """The training state of a masked diffusion model: one network."""

    net: Learner


@dataclass(frozen=True)
class MaskedDiffusion(Family):
    """A masked diffusion model of tokens."""

    layers: Annotated[int, Ge(1)] = 4
    """Blocks of attention and MLP."""
    heads: Annotated[int, Ge(1)] = 4
    """Attention heads, each with width / heads features."""
    width: Annotated[int, Ge(1)] = 128
    """Features of a position."""
    context: Annotated[int, Ge(1)] = 64
    """Context length in tokens, besides the one before them, which is given."""
    rotary: bool = True
    """Whether attention has rotary positions beside the learned ones."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout probability of the input and of each residual branch."""
    eval_times: Annotated[int, Ge(1)] = 16
    """Times t at which the bound of each held-out row is estimated, one in each of as many equal parts of [0, 1)."""
    remat: bool = False
    """Recompute blocks in the backward pass and store only their inputs: less memory, a third more compute."""

    accepts: ClassVar[type] = TokenSpec
    Request: ClassVar[type] = UnmaskRequest
    Scoring: ClassVar[type] = UnmaskScoring
    unit: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        require(
            self,
            "family.",
            ("width", f"a multiple of family.heads, {self.heads}", self.heads < 1 or self.width % self.heads == 0),
            (
                "width",
                f"a multiple of twice family.heads, {2 * self.heads}, with rotary positions",
                not self.rotary or self.heads < 1 or self.width % (2 * self.heads) == 0,
            ),
        )

    @property
    def length(self) -> int:
        return self.context

    def init(self, spec: TokenSpec, setup: Setup, key: jax.Array) -> State:
        return State(Learner.create(Denoiser(self, spec, nnx.Rngs(key), setup.dtype), setup))

    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        net, metrics = state.net.descend(self.loss, batch, step, key)
        return State(net), metrics

    def loss(self, net: Denoiser, batch: Batch, key: Key[Array, ""]) -> tuple[jax.Array, jax.Array, Metrics]:
        """Returns an estimate of the bound over a batch in nats, at one t a row, and the number of tokens."""
        time_key, mask_key, dropout_key = jax.random.split(key, 3)
        # t = u^2 has the density 1 / (2 sqrt t), so 2 u is the weight of a draw. The estimate at t sums t L tokens with
        # the weight 1 / t: its deviation is about 1 / sqrt t, and the best density of t is in proportion to that.
        u = spread(time_key, batch["row"])
        nats = 2 * u * self.nelbo(net, batch, jnp.square(u), mask_key, dropout_key)
        return nats.sum(), counted(batch, net.end).sum(dtype=jnp.float32), {}

    def nelbo(
        self, net: Denoiser, batch: Batch, t: Float[Array, " b"], mask_key: Key[Array, ""], dropout_key: Any = None
    ) -> Float[Array, " b"]:
        """Returns L / n sum_{i in M} -log p(x_i | x_t) of each row in nats: n of its L tokens, chosen by t, are masked.

        Its mean over uniform t and masks M is the bound; see the module's docstring.
        """
        x, modelled = net.row(batch)
        L = modelled.sum(1)
        n = jnp.minimum(jnp.floor(t * L) + 1, jnp.maximum(L, 1))  # t L may round up to L; L is 0 in padding rows
        noise = jnp.where(modelled, uniform(mask_key, batch["row"], x.shape[1:]), jnp.inf)
        masked = jnp.argsort(jnp.argsort(noise, axis=1), axis=1) < n[:, None]
        x_t = jnp.concatenate([batch["tokens"][:, :1], jnp.where(masked, net.mask, x)], axis=1)
        length = batch["length"] if net.in_blocks else jnp.full(len(x), 1 + min(x.shape[1], net.longest))
        logits = net(x_t, length, key=dropout_key, rows=batch["row"])[:, 1:]
        return L / n * (cross_entropy(logits, x) * masked).sum(1)

    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        net = state.net.eval_net()
        time_key, mask_key = jax.random.split(key)
        start = spread(time_key, batch["row"])

        def at(part: Int[Array, ""]) -> Float[Array, " b"]:
            t = (part + start) / self.eval_times
            return self.nelbo(net, batch, t, jax.random.fold_in(mask_key, part))

        nats = jax.lax.map(at, jnp.arange(self.eval_times)).mean(0)
        return likelihood_statistics(nats, counted(batch, net.end).sum(1, dtype=jnp.float32), batch)

    def score(
        self, model: Model, rows: dict[str, Any], data: DataSet, scoring: UnmaskScoring, key: jax.Array
    ) -> Metrics:
        figures = score_language_model(model, rows, data, scoring, key)
        figures["perplexity_bound"] = figures.pop("perplexity")
        figures |= {"likelihood": f"upper bound, {self.eval_times} times t a row"}
        return figures | (strided_figures(model, data, scoring.stride) if scoring.stride else {})

    def sample(self, model: Model, request: UnmaskRequest, key: jax.Array) -> Artifacts:
        return sample_tokens(model.state.net.eval_net(), model, request, key, self.context)

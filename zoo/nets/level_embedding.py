"""What conditions the networks of diffusion models: the embedding of noise level and class, and encoded captions.

Ho et al. 2020, appendix B: sines and cosines of the noise level t, then an MLP; a class adds a vector of its own. A
network of average velocities also receives the length of the interval that it averages over, embedded like t (Geng et
al. 2025, "Mean flows for one-step generative modeling", section 4.2). Captions are read by cross-attention
(`zoo.nets.captions`), and the features of their first token, which is end-of-text, add a vector of their own (Nichol et
al. 2022, "GLIDE", section 2.2, with the last token's): so every layer learns at once what the whole caption says.
"""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.nets.captions import CaptionEncoder, Context
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding
from zoo.nn.sinusoids import time_features

NEAR_ZERO = 0.01
"""Initial scale of layers that end a branch or the network: each block starts close to its shortcut (Ho et al. 2020
and others start at zero, where the layers before such a layer get no gradient in the first steps)."""


def dense(features_in: int, features_out: int, rngs: nnx.Rngs, scale: float = 1.0, **settings) -> Dense:
    """Returns a dense layer with a bias and initial scale `scale` / sqrt(fan-in)."""
    return Dense(features_in, features_out, bias=True, scale=scale * features_in**-0.5, rngs=rngs, **settings)


class Conditioned(nnx.Module):
    """A network that is conditioned on the noise level, a class or caption and, with `spans`, an interval's length."""

    settings: Any
    """Settings of the network, with `symbols`, `caption`, `spans`, `cos_first` and `frequency_shift`; see
    `UNetSettings`."""
    dtype: Any
    """Computation dtype of the layers."""

    def create_embedding(self, features: int, width: int, rngs: nnx.Rngs) -> None:
        """Creates the layers of `embed`, from `features` sines and cosines to `width` features."""
        s = self.settings
        self.time_waves = features
        self.time_in = dense(features, width, rngs)
        self.time_out = dense(width, width, rngs, activation=jax.nn.silu)
        self.classes = Embedding(s.symbols, width, scale=1.0, rngs=rngs, dtype=self.dtype) if s.symbols else None
        self.captions = CaptionEncoder(s.caption, rngs, self.dtype) if s.caption else None
        self.caption_vector = dense(s.caption.width, width, rngs) if s.caption else None
        self.span_in = dense(features, width, rngs) if s.spans else None
        self.span_out = dense(width, width, rngs, activation=jax.nn.silu) if s.spans else None

    def read(self, caption: Int[Array, "b t"], length: Int[Array, " b"]) -> Context:
        """Encodes captions, for a network that has them; see `CaptionEncoder`."""
        assert self.captions is not None, "the network has no captions"
        return self.captions(caption, length)

    def embed(
        self,
        t: Float[Array, " b"],
        symbol: Int[Array, " b"] | None,
        span: Float[Array, " b"] | None,
        context: Context | None,
    ) -> Float[Array, "b 1 e"]:
        """The embedding of noise level, class or caption, and interval."""
        embedding = self.time_out(self.time_in(self._waves(t)))
        if self.classes is not None:
            assert symbol is not None, "a network with classes needs one for every row"
            embedding = embedding + self.classes(symbol[:, None])
        if self.caption_vector is not None:
            assert context is not None, "a network with captions needs one for every row"
            embedding = embedding + self.caption_vector(context.features[:, :1].astype(self.dtype))
        if self.span_in is not None and self.span_out is not None:
            assert span is not None, "a network of averages needs the length of every row's interval"
            embedding = embedding + self.span_out(self.span_in(self._waves(span)))
        return embedding

    def _waves(self, t: Float[Array, " b"]) -> Float[Array, "b 1 w"]:
        s = self.settings
        return time_features(t, self.time_waves, s.cos_first, s.frequency_shift).astype(self.dtype)[:, None]

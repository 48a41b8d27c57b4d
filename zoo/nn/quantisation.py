"""Quantisers: maps from real vectors to a finite set of codes, with a gradient.

`Codebook` has K vectors e_k that are moving averages of the vectors assigned to them (van den Oord et al. 2017, "Neural
discrete representation learning", appendix A.1). `FiniteScalar` rounds each feature to one of a few levels and learns
nothing (Mentzer et al. 2024, "Finite scalar quantization: VQ-VAE made simple").

Letters in shapes: b rows, n positions of a row, d features, k codes.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key

FIRST_COUNT = 1e-6
"""Count of each code before the first batch: next to nothing, so that the first batch replaces the random vectors."""
SPREAD = 0.1
"""Noise on the vector of a revived code, as a share of the vector's root mean square."""


def straight_through(z: Float[Array, "..."], quantised: Float[Array, "..."]) -> Float[Array, "..."]:
    """`quantised`, exactly, with the gradient of z: copied unaltered (van den Oord et al. 2017, section 3.2)."""
    return jax.lax.stop_gradient(quantised) + (z - jax.lax.stop_gradient(z))


class Codebook(nnx.Module):
    """K vectors, moving averages of what is assigned to them; without gradient, in the network's memory.

    With n_k the number of vectors z nearest to e_k in the whole batch (appendix A.1, equations 6 to 8):

        N_k <- decay N_k + (1 - decay) n_k,    m_k <- decay m_k + (1 - decay) sum z,    e_k = m_k / N_k

    A dead code, one whose N_k is below `revive` times the mean count, becomes a vector of the current batch with some
    noise, and its count that threshold. In the first step almost all are dead, which initialises the codebook.

    Args:
        codes: number of vectors K.
        features: their size.
        decay: of the moving averages.
        revive: share of the mean count below which a code is dead.
        batch_size: rows in the global batch, from which dead codes take their new vectors.
        rngs: source of the initial vectors.
    """

    def __init__(self, codes: int, features: int, *, decay: float, revive: float, batch_size: int, rngs: nnx.Rngs):
        self.counts = nnx.Variable(jnp.full(codes, FIRST_COUNT))
        self.totals = nnx.Variable(FIRST_COUNT * jax.random.normal(rngs.params(), (codes, features)))
        self.decay, self.revive, self.batch_size = decay, revive, batch_size

    @property
    def vectors(self) -> Float[Array, "k d"]:
        """e_k of each code."""
        return self.totals[...] / self.counts[...][:, None]

    def nearest(self, z: Float[Array, "b n d"]) -> Int[Array, "b n"]:
        """Returns argmin_k |z - e_k|^2 (equation 1), as |e_k|^2 - 2 z e_k, which differs by |z|^2."""
        e = self.vectors
        return (jnp.square(e).sum(1)[None, None] - 2.0 * z @ e.T).argmin(-1)

    def lookup(self, codes: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """Returns the vectors of codes."""
        return self.vectors[codes]

    def __call__(self, z: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Int[Array, "b n"]]:
        """Returns the nearest vectors, with the gradient of z, and their codes."""
        codes = self.nearest(z)
        return straight_through(z, self.lookup(codes)), codes

    def sums(
        self, z: Float[Array, "b n d"], codes: Int[Array, "b n"], rows: Int[Array, " b"], key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Returns what `update` needs, summed over the rows of a part of the batch.

        Args:
            z: vectors.
            codes: of each vector.
            rows: each row's index in the global batch.
            key: the same for all parts of the batch.
        """
        # A product and not a scatter, whose order of summation varies on GPUs.
        chosen = jax.nn.one_hot(rearrange(codes, "b n -> (b n)"), len(self.counts[...]))
        totals = chosen.T @ rearrange(z, "b n d -> (b n) d")
        return {"counts": chosen.sum(0), "totals": totals, "candidates": self.candidates(z, rows, key)}

    def candidates(self, z: Float[Array, "b n d"], rows: Int[Array, " b"], key: Key[Array, ""]) -> Float[Array, "k d"]:
        """Returns for each code a vector of the global batch, drawn evenly, with noise; 0 if its row is elsewhere."""
        row_key, position_key, noise_key = jax.random.split(key, 3)
        row = jax.random.randint(row_key, self.counts.shape, 0, self.batch_size)
        position = jax.random.randint(position_key, self.counts.shape, 0, z.shape[1])
        here = row[:, None] == rows[None, :]
        drawn = z[here.argmax(1), position]
        # Equal vectors, such as those of blank patches, would be equally near, and rounding would choose the code.
        size = SPREAD * jnp.sqrt(jnp.square(drawn).mean(1, keepdims=True))
        return jnp.where(here.any(1)[:, None], drawn + size * jax.random.normal(noise_key, drawn.shape), 0.0)

    def update(self, sums: Mapping[str, Array]) -> None:
        """Moves the averages by one batch and revives dead codes.

        Args:
            sums: those of `sums`, added over the whole batch.
        """
        counts = self.decay * self.counts[...] + (1.0 - self.decay) * sums["counts"]
        totals = self.decay * self.totals[...] + (1.0 - self.decay) * sums["totals"]
        least = self.revive * counts.mean()
        dead = counts < least
        self.counts[...] = jnp.where(dead, least, counts)
        self.totals[...] = jnp.where(dead[:, None], least * sums["candidates"], totals)


class FiniteScalar(nnx.Module):
    """Rounds feature i to one of L_i levels; the codes are all combinations (Mentzer et al. 2024, appendix A.1).

        bounded_i = L_i / 2 tanh(z_i),    quantised_i = round(bounded_i) / (L_i // 2),    in [-1, 1]

    For even L_i the levels are -L_i / 2 .. L_i / 2 - 1: tanh is shifted by half a level, and moved so that 0 stays 0.

    Args:
        levels: L_i of each feature, at least 3.
    """

    def __init__(self, levels: Sequence[int]):
        self.levels = tuple(levels)

    def bound(self, z: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Maps z into an interval whose integers are the L_i levels."""
        levels = np.array(self.levels, np.float32)
        # Slightly more than half the distance of the outer levels, so that rounding reaches them.
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, np.float32(0.5), np.float32(0.0))
        return jnp.tanh(z + np.arctanh(offset / half)[None, None]) * half[None, None] - offset[None, None]

    def __call__(self, z: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Int[Array, "b n"]]:
        """Returns the rounded features, with the gradient of `bound`, and their codes."""
        bounded = self.bound(z)
        rounded = straight_through(bounded, jnp.round(bounded))
        digits = rounded.astype(jnp.int32) + self._half[None, None]
        return rounded / self._half[None, None], (digits * self._basis[None, None]).sum(-1)

    def lookup(self, codes: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """Returns the features of codes."""
        digits = codes[..., None] // self._basis[None, None] % np.array(self.levels, np.int32)[None, None]
        return (digits - self._half[None, None]) / self._half[None, None]

    @property
    def _half(self) -> np.ndarray:
        """L_i // 2: minus the lowest level."""
        return np.array(self.levels, np.int32) // 2

    @property
    def _basis(self) -> np.ndarray:
        """The value of each feature's digit in a code; the first feature's is 1."""
        return np.array([math.prod(self.levels[:i]) for i in range(len(self.levels))], np.int32)

"""Small masked diffusion models, batches for them, and a denoiser that is a table."""

import itertools
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import BlockSpec, LineSpec
from zoo.data.tokenizers import Characters
from zoo.masked_diffusion import Denoiser, MaskedDiffusion, State

LETTERS = Characters("abcdefgh ")
BLOCKS, LINES = BlockSpec(LETTERS), LineSpec(LETTERS)
SMALL = MaskedDiffusion(layers=2, heads=2, width=16, context=12)
SYMBOLS, POSITIONS = 3, 4
UNKNOWN = SYMBOLS


@cache
def make_net(spec=BLOCKS, family=SMALL):
    """A network with weights far from their usual start, so that every path matters."""
    graphdef, params = nnx.split(Denoiser(family, spec, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params))


@cache
def make_model(spec=BLOCKS, family=SMALL):
    """A model with the weights of `make_net`."""
    state = family.init(spec, Setup(Optimizer(), 1, 4), jax.random.key(0))
    learner = state.net
    params = jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, learner.params)
    return Model(family, spec, state._replace(net=learner.with_params(params)), 0)


def make_batch(lengths=(13, 13, 9), spec=BLOCKS):
    """Rows of random letters after end-of-text; blocks are padded, texts end before their padding."""
    tokens = np.random.default_rng(0).integers(0, 9, (len(lengths), 13)).astype(np.int32)
    tokens[:, 0] = spec.end
    for row, length in enumerate(lengths):
        tokens[row, length - (spec is LINES) :] = spec.end
    return {
        "tokens": jnp.asarray(tokens),
        "length": jnp.array(lengths, jnp.int32),
        "row": jnp.arange(len(lengths)),
        "valid": jnp.ones(len(lengths), bool),
    }


class Table(Denoiser):
    """A denoiser of 4 positions and 3 symbols: for each partly masked row, a distribution of each position.

    The rows are all of {0, 1, 2, masked}^4; distributions are drawn at random and satisfy no consistency between rows.
    """

    def __init__(self):
        self.mask, self.end, self.in_blocks, self.longest = UNKNOWN, 0, True, POSITIONS
        logits = 1.5 * np.random.default_rng(0).normal(size=(SYMBOLS + 1,) * POSITIONS + (POSITIONS, SYMBOLS))
        self.held = SimpleNamespace(logits=logits - np.log(np.exp(logits).sum(-1, keepdims=True)))

    def __call__(self, x_t, length, *, key=None, rows=None):
        table = jnp.asarray(self.held.logits, jnp.float32)
        logits = table[tuple(x_t[:, 1 + i] for i in range(POSITIONS))]
        return jnp.concatenate([jnp.zeros((len(x_t), 1, SYMBOLS)), logits], axis=1)

    def log_p(self, x, masked) -> np.ndarray:
        """log p(x_i | x_t) of every position i, where x_t is x without the positions in `masked`."""
        x_t = tuple(UNKNOWN if i in masked else symbol for i, symbol in enumerate(x))
        return self.held.logits[x_t][np.arange(POSITIONS), np.array(x)]

    def exact_bound(self, x) -> float:
        """The bound by its definition: int_0^1 1/t sum_M P(M | t) sum_{i in M} -log p(x_i | x_t) dt, by quadrature."""
        nodes, weights = np.polynomial.legendre.leggauss(8)  # exact for the polynomials of degree 3 that these are
        total = 0.0
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            for size in range(1, POSITIONS + 1):
                for masked in itertools.combinations(range(POSITIONS), size):
                    probability = t**size * (1 - t) ** (POSITIONS - size)
                    total -= weight / t * probability * self.log_p(x, masked)[list(masked)].sum()
        return total

    def mean_over_orders(self, x) -> float:
        """The mean over all 24 orders of an autoregressive model's loss, which predicts one token at a time."""
        losses = []
        for order in itertools.permutations(range(POSITIONS)):
            losses.append(-sum(self.log_p(x, order[k:])[i] for k, i in enumerate(order)))
        return float(np.mean(losses))


def state_of(net) -> State:
    """A state with a network that was not trained."""
    return State(SimpleNamespace(eval_net=lambda: net))

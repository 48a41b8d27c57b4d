"""Small sequence-to-sequence networks, pairs for them, and the probability of a target."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo import Optimizer
from zoo.core.family import Setup
from zoo.data.specs import PairSpec
from zoo.data.tokenizers import Characters
from zoo.sampling.tokens.translation import pad
from zoo.seq2seq import Seq2Seq

LENGTH = 8
SPEC = PairSpec(Characters("abcdefghij"), Characters("PQRST"))
LUONG = Seq2Seq(layers=2, width=16, embedding=8, context=LENGTH, dropout=0.0)
FAMILIES = {
    "luong": LUONG,
    "bahdanau-gru": replace(LUONG, attention="bahdanau", cell="gru"),
    "none": replace(LUONG, attention="none"),
    "transformer": replace(LUONG, network="transformer", heads=2),
}
NETWORKS = pytest.mark.parametrize("name", FAMILIES)


def make_net(family, spec=SPEC, scale=3.0):
    """A network with weights `scale` times their usual start, so that its targets vary."""
    scale = 8.0 if family.network == "transformer" else scale
    state = family.init(spec, Setup(Optimizer(), total_steps=1, batch_size=1), jax.random.key(0))
    graphdef, params = nnx.split(state.net.net())
    return nnx.merge(graphdef, jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params))


def make_batch(lengths=((3, 5), (8, 2), (4, 8), (1, 3)), length=LENGTH, seed=0):
    """Random pairs: sources of some tokens (end-of-text among them), targets of some predicted ones."""
    draw = np.random.default_rng(seed)
    end = (SPEC.source.end_of_text, SPEC.target.end_of_text)
    source = np.full((len(lengths), length), end[0], np.int32)
    target = np.full((len(lengths), length + 1), end[1], np.int32)
    for row, (s, t) in enumerate(lengths):
        source[row, : s - 1] = draw.integers(0, 10, s - 1)
        target[row, 1:t] = draw.integers(0, 5, t - 1)
    sizes = np.array(lengths, np.int32)
    rows = np.arange(len(lengths), dtype=np.int32)
    batch = {"source": source, "source_length": sizes[:, 0], "target": target, "target_length": sizes[:, 1] + 1}
    return jax.tree.map(jnp.asarray, batch | {"row": rows, "valid": rows >= 0})


def log_probability(net, source, target, length=LENGTH, spec=SPEC):
    """log P(target | source), by one look at the whole."""
    tokens, lengths = pad(spec.source, [source], 1, length)
    memory = net.encode(jnp.asarray(tokens), jnp.arange(length)[None] < lengths[:, None])
    read = jnp.asarray([[spec.target.end_of_text, *target[:-1]]], jnp.int32)
    log_probs = np.asarray(jax.nn.log_softmax(net.decode(read, memory)))[0]
    return float(log_probs[np.arange(len(target)), list(target)].sum())

"""Small masked language models, a batch for them, and transformers' BERT."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from paths import REFERENCES
from safetensors.numpy import load_file

from zoo.data.text.sentence_pairs import make_spec
from zoo.data.tokenizers import Characters
from zoo.interop.tokenizer_json import read_tokenizer
from zoo.interop.transformers import read_transformers
from zoo.masked_lm import Encoder, MaskedLM

REFERENCE = REFERENCES / "bert"
SPEC = make_spec(Characters("abcdefgh "))
BERT = MaskedLM(layers=2, heads=2, width=16, context=12, dropout=0.0)
XLNET = replace(BERT, objective="permutation")
OBJECTIVES = pytest.mark.parametrize("family", [BERT, XLNET], ids=["masked", "permutation"])


@cache
def make_net(family):
    """A network with weights far from their usual start, so that every path matters."""
    graphdef, params = nnx.split(Encoder(family, SPEC, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params))


def make_batch(rows=3, length=(12, 9, 7)):
    """Rows [CLS] a [SEP] b [SEP] of random text, padded."""
    tokens = np.random.default_rng(0).integers(0, 9, (rows, 12)).astype(np.int32)
    tokens[:, 0], tokens[:, 4] = SPEC.classify, SPEC.separate
    for row, n in enumerate(length):
        tokens[row, n - 1], tokens[row, n:] = SPEC.separate, SPEC.padding
    place, length = np.arange(12)[None], np.array(length, np.int32)
    return {
        "tokens": jnp.asarray(tokens),
        "segment": jnp.asarray(((place > 4) & (place < length[:, None])).astype(np.int32)),
        "length": jnp.asarray(length),
        "follows": jnp.arange(rows) % 2,
        "row": jnp.arange(rows),
        "valid": jnp.ones(rows, bool),
    }


@cache
def load_bert(folder):
    family, params = read_transformers(folder)
    spec = make_spec(read_tokenizer(folder, None))
    abstract = nnx.eval_shape(lambda: Encoder(family, spec, nnx.Rngs(0)))
    graphdef, _, rest = nnx.split(abstract, nnx.Param, ...)
    return family, spec, params, nnx.merge(graphdef, params, nnx.to_pure_dict(rest))


def check_bert(folder):
    """Hidden states and logits of both heads are transformers'."""
    _, _, _, net = load_bert(folder)
    arrays = load_file(folder / "expected.safetensors")
    tokens, segment, length = (jnp.asarray(arrays[name]) for name in ("tokens", "segment", "length"))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    hidden, asked = jax.jit(lambda: net(tokens, segment, length, positions))()
    real = np.arange(tokens.shape[1])[None] < np.asarray(length)[:, None]
    np.testing.assert_allclose(hidden[real], arrays["hidden"][real], atol=2e-5)
    np.testing.assert_allclose(net.token_logits(asked)[real], arrays["token_logits"][real], atol=1e-4)
    np.testing.assert_allclose(net.next_logits(hidden)[:, 0], arrays["next_logits"], atol=2e-5)

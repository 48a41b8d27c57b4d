"""Small networks with varied texts, prompts for them, and what they write."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.data.tokenizers import Characters
from zoo.sampling.tokens.continuation import make_knobs, sample_texts
from zoo.sampling.tokens.decode import write_tokens
from zoo.sampling.tokens.request import TokenRequest
from zoo.transformer_lm import Transformer, TransformerLM

END = 11
LENGTHS = (1, 3, 40, 7)
LETTERS = Characters("abcdefghijklmno")


def make_net(vocab: int = 12, context: int = 64, end: int = END, **settings) -> Transformer:
    """A small network with large weights, so that its texts vary."""
    family = TransformerLM(layers=2, heads=2, width=16, context=context, **settings)
    net = Transformer(family, vocab, end, nnx.Rngs(0))
    keys = nnx.Rngs(1)
    for _, leaf in nnx.iter_graph(net):
        if isinstance(leaf, nnx.Param):
            leaf[...] = leaf[...] + 0.4 * jax.random.normal(keys.params(), leaf.shape)
    return net


def letters_net(context: int = 64) -> Transformer:
    return make_net(LETTERS.vocab_size, context, LETTERS.end_of_text)


def prompts_of(lengths, vocab: int = 11) -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, vocab, length, np.int32) for length in lengths]


def write(
    net, prompts, *, request=None, rows=None, key=0, tokens=20, context=64, chunk=32, never=None
) -> list[list[int]]:
    """New tokens of each row, cut after end-of-text."""
    new = []

    def accept(chunk):
        new.append(chunk)
        return np.zeros(len(prompts), bool)

    write_tokens(
        net,
        prompts,
        accept,
        knobs=make_knobs(request or TokenRequest(temperature=0.0), len(prompts)),
        key=jax.random.key(key),
        rows=rows,
        max_new_tokens=tokens,
        end_of_text=net.end_of_text,
        vocab_size=net.embedding.table.shape[0],
        never=never,
        context=context,
        chunk=chunk,
    )
    written = np.concatenate(new, axis=1).tolist()
    ends = [row.index(net.end_of_text) + 1 if net.end_of_text in row else tokens for row in written]
    return [row[:end] for row, end in zip(written, ends, strict=True)]


def greedy_by_full_forward(net, prompt, tokens, context) -> list[int]:
    """The definition: the likeliest token after the window, which falls back to half the context when it is full."""
    forward = jax.jit(net.__call__)
    window, new = list(prompt), []
    for _ in range(tokens):
        if len(window) > context:
            window = window[-(context // 2) :]
        padded = np.zeros((1, context), np.int32)
        padded[0, : len(window)] = window
        token = int(forward(jnp.asarray(padded))[0, len(window) - 1].argmax())
        window.append(token)
        new.append(token)
        if token == net.end_of_text:
            break
    return new


def sample(key=0, context=64, stream=None, **request):
    asked = TokenRequest(**({"max_new_tokens": 50} | request))
    texts = sample_texts(letters_net(context), LETTERS, asked, jax.random.key(key), context=context, stream=stream)
    return [text.text for text in texts]

"""Requests to text VAEs: sentences from the prior, interpolation, posterior samples and reconstructions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Array, Float, Int, Key

from zoo.core.artifacts import Text
from zoo.core.bounds import Why
from zoo.core.errors import UserError, require
from zoo.core.family import Request
from zoo.core.random import normal
from zoo.data.sources import read_lines
from zoo.data.text.sentences import pack
from zoo.data.tokenizers import Tokenizer
from zoo.nets.conditioned_lm import Conditioned, TextDecoder
from zoo.nn.variational import draw_code
from zoo.sampling.batches import in_batches
from zoo.sampling.latent_paths import lerp
from zoo.sampling.tokens.continuation import AT_ONCE, continue_texts
from zoo.sampling.tokens.request import TokenRequest

Encode = Callable[[Int[np.ndarray, "b t"], Int[np.ndarray, " b"]], tuple[jax.Array, jax.Array]]
"""Maps rows of tokens and their lengths to the mean and log sigma^2 of q(z|w), [b latent] each."""


@dataclass(frozen=True)
class SentenceRequest(Request):
    """A request for sentences: `n` from the prior, or sentences decoded from the codes of given ones."""

    between: tuple[str, ...] = ()
    """Two sentences: decode points on the straight line between their codes, ends included, instead of the prior."""
    steps: Annotated[int, Ge(2), Why("since both ends count")] = 7
    """Number of sentences on the line of `between`."""
    around: str | None = None
    """A sentence: sample n codes from its posterior instead of the prior."""
    reconstruct: str | None = None
    """A file with one sentence per line: print each sentence, and below it its reconstruction."""
    temperature: Annotated[float | None, Ge(0), Lt(math.inf)] = None
    """Divisor of the logits; below 1, likely words become likelier; 0: always the likeliest word. None: 0 with
    `between` and `reconstruct`, otherwise 1."""
    top_k: Annotated[int, Ge(0)] = 0
    """Sample from the k likeliest words; 0: from all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Sample from the likeliest words with this total probability (nucleus sampling, Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        ends, walks = len(self.between), bool(self.between) or self.reconstruct is not None
        require(
            self,
            "",
            ("between", "two sentences, the ends of the line", ends in (0, 2)),
            ("around", "a sentence that is not empty", self.around is None or self.around.strip() != ""),
            ("reconstruct", "the name of a file", self.reconstruct != ""),
            ("n", "1 with between, whose line has steps, and with reconstruct", self.n == 1 or not walks),
        )
        modes = [name for name in ("between", "around", "reconstruct") if getattr(self, name)]
        if len(modes) > 1:
            raise UserError(f"{modes[0]} and {modes[1]} ask for different codes: give one of them")
        self.drawing(1)  # checks the sampling settings

    def drawing(self, most: int) -> TokenRequest:
        """The sampling settings, for at most `most` words per sentence."""
        greedy = self.between or self.reconstruct
        temperature = (0.0 if greedy else 1.0) if self.temperature is None else self.temperature
        return TokenRequest(max_new_tokens=most, temperature=temperature, top_k=self.top_k, top_p=self.top_p)


def write_sentences(
    decoder: TextDecoder,
    encode: Encode,
    tokenizer: Tokenizer,
    request: SentenceRequest,
    key: Key[Array, ""],
    *,
    latent: int,
    context: int,
) -> list[Text]:
    """Returns the sentences of a request.

    Args:
        decoder: the decoder, with its evaluation weights.
        encode: the compiled encoder.
        tokenizer: tokenizer of the data.
        request: the request.
        key: source of randomness; it is split into one key for codes and one for words, and sentence i folds i into
            each.
        latent: number of units of a code.
        context: maximum number of tokens in a text, including the end-of-text after it.

    Raises:
        UserError: a given sentence is empty or too long, or has characters that are not in the vocabulary.
    """
    code_key, word_key = jax.random.split(key)

    def posterior(sentences: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        return _encode_all(encode, tokenizer, sentences, context)

    def decode(z: Float[Array, "n latent"]) -> list[str]:
        return _decode_all(decoder, tokenizer, z, request.drawing(context), word_key, context)

    if request.between:
        ends, _ = posterior(request.between)
        line = lerp(ends[:1], ends[1:], jnp.linspace(0.0, 1.0, request.steps)[None])[0]
        return [Text("\n".join(decode(line)))]
    if request.reconstruct:
        sentences = read_lines(request.reconstruct, "text")
        pairs = zip(sentences, decode(posterior(sentences)[0]), strict=True)
        return [Text("\n".join(f"{sentence}\n    {made}" for sentence, made in pairs))]
    rows = jnp.arange(request.n)
    if request.around:
        mean, log_variance = (jnp.broadcast_to(x, (request.n, latent)) for x in posterior([request.around]))
        z = draw_code(mean, log_variance, code_key, rows)
    else:
        z = normal(code_key, rows, (latent,))
    return [Text(text) for text in decode(z)]


def _encode_all(
    encode: Encode, tokenizer: Tokenizer, sentences: Sequence[str], context: int
) -> tuple[jax.Array, jax.Array]:
    """Mean and log sigma^2 of each sentence's posterior, computed in batches."""
    encoded = [_tokens(tokenizer, sentence, context) for sentence in sentences]
    lines, last = pack(tokenizer, encoded), len(encoded) - 1

    def posteriors(rows: Int[Array, " b"]) -> tuple[jax.Array, jax.Array]:
        place = np.minimum(rows, last).astype(np.int64)
        return encode(*lines.rows(place, context + 1, tokenizer.end_of_text))

    mean, log_variance = in_batches(posteriors, len(encoded), AT_ONCE)
    return jnp.asarray(mean), jnp.asarray(log_variance)


def _tokens(tokenizer: Tokenizer, sentence: str, context: int) -> Int[np.ndarray, " t"]:
    ids = tokenizer.encode(sentence)
    if not len(ids):
        raise UserError("a sentence that is given is empty: give one with a word in it")
    if len(ids) >= context:
        raise UserError(
            f"the sentence {sentence!r} is {len(ids)} tokens long; the model's context of {context} holds at most "
            f"{context - 1}"
        )
    return ids


def _decode_all(
    decoder: TextDecoder,
    tokenizer: Tokenizer,
    z: Float[Array, "n latent"],
    drawing: TokenRequest,
    key: Key[Array, ""],
    context: int,
) -> list[str]:
    """The sentence of each code, decoded in batches of one size."""
    size, texts = min(AT_ONCE, 1 << (len(z) - 1).bit_length()), list[str]()
    for begin in range(0, len(z), size):
        rows = begin + np.arange(size)
        codes = z[np.minimum(rows, len(z) - 1)]
        texts += continue_texts(
            Conditioned(decoder, codes),
            tokenizer,
            [np.array([tokenizer.end_of_text], np.int32)] * size,
            drawing,
            key,
            rows=rows.tolist(),
            context=context,
        )
    return [text.strip() for text in texts[: len(z)]]

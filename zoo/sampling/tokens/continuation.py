"""Text generation from a request: prompts, sampling or beam search, stop strings and streaming."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import SupportsInt

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from zoo.core.artifacts import Text
from zoo.core.errors import UserError
from zoo.data.tokenizers import Tokenizer
from zoo.sampling.tokens.beam import beam_search
from zoo.sampling.tokens.decode import CHUNK, write_tokens
from zoo.sampling.tokens.lines import encode_lines
from zoo.sampling.tokens.logits import Knobs
from zoo.sampling.tokens.request import TokenRequest

AT_ONCE = 32
"""Texts that one call continues, at most; in a beam search, hypotheses."""
STREAM_CHUNK = 8
"""Number of tokens generated between two updates of a stream."""


class Continuation:
    """Incremental text of one row, cut before the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self.text = ""
        self.ended = False
        self._tokenizer, self._decode, self._stop = tokenizer, tokenizer.stream(), stop
        self._given = 0

    def add(self, ids: Iterable[SupportsInt]) -> str:
        """Adds tokens; returns new text that is final: no incomplete character or possible start of a stop string."""
        for token in ids:
            if self.ended:
                break
            if token == self._tokenizer.end_of_text:
                return self.finish()
            self._extend(self._decode([int(token)]))
        return self._give(len(self.text) if self.ended else len(self.text) - self._undecided())

    def finish(self) -> str:
        """Ends the text and returns the part that was held back."""
        if not self.ended:
            self._extend(self._decode([], True))
            self.ended = True
        return self._give(len(self.text))

    def _extend(self, piece: str) -> None:
        begin = max(0, len(self.text) - max((len(stop) for stop in self._stop), default=0))
        self.text += piece
        found = [at for stop in self._stop if (at := self.text.find(stop, begin)) >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], True

    def _undecided(self) -> int:
        """Length of the end of the text that could be the start of a stop string."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        return max(lengths, default=0)

    def _give(self, until: int) -> str:
        piece, self._given = self.text[self._given : until], max(self._given, until)
        return piece


def encode_prompt(tokenizer: Tokenizer, prompt: str, context: int | None) -> Int[np.ndarray, " t"]:
    """Returns the tokens of a prompt.

    An empty prompt is the beginning of a document, end-of-text; any other prompt has no end-of-text before it.

    Raises:
        UserError: the prompt does not fit into the context, or has characters that are not in the vocabulary.
    """
    ids = tokenizer.encode(prompt) if prompt else np.array([tokenizer.end_of_text], np.int32)
    if context is not None and len(ids) > context:
        raise UserError(
            f"prompt is {len(ids)} tokens long, but the model sees {context} at once; give at most that many"
        )
    return ids


def sample_texts(
    net: nnx.Module,
    tokenizer: Tokenizer,
    request: TokenRequest,
    key: Key[Array, ""],
    *,
    context: int | None,
    stream: Callable[[str], None] | None = None,
) -> list[Text]:
    """Returns the texts of a request, each the prompt and its continuation.

    Args:
        net: a network as in `zoo.sampling.tokens.decode`.
        tokenizer: tokenizer of its data.
        request: the request.
        key: source of randomness; text i uses fold_in(key, i), independently of the other texts.
        context: maximum number of tokens that the network sees; None: no limit. Longer texts continue from the last
            half of the context.
        stream: called with the prompt and then with each new piece of the text. Used only for a single text (n = 1)
            and not with `request.prompts`.

    Raises:
        UserError: the prompt does not fit.
    """
    encode = partial(_encode_fitting, tokenizer, request, context)
    write = partial(_drawn if request.num_beams == 1 else _searched, net, tokenizer, request, key, context)
    if request.prompts:
        lines = encode_lines(request.prompts, encode)
        encoded = {number: ids for number, (_, ids) in enumerate(lines) if ids is not None}
        written = dict(zip(encoded, write(encoded, None), strict=True))
        nothing: Written = [("", None)] * request.n
        return [
            Text(
                text and line + text,
                scores,
                {"prompt": line, "text": text and line + text} | (scores or {}),
                prompt=text and line,
            )
            for number, (line, _) in enumerate(lines)
            for text, scores in written.get(number, nothing)
        ]
    stream = stream if request.n == 1 else None
    prompt = request.text
    ids = encode(prompt)
    if stream is not None:
        stream(prompt)
    (texts,) = write({0: ids}, stream)
    return [Text(prompt + text, scores, prompt=prompt) for text, scores in texts]


Written = list[tuple[str, dict[str, float] | None]]
"""Continuations of one prompt, each with its scores if beam search found it."""


def _drawn(net, tokenizer, request, key, context, prompts, stream) -> list[Written]:
    """Samples n continuations of each prompt, in batches; continuation i of prompt p is row p n + i."""
    rows = [(ids, number * request.n + i) for number, ids in prompts.items() for i in range(request.n)]
    texts: Written = [
        (text, None)
        for part in np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // AT_ONCE)))
        if len(part)
        for text in continue_texts(
            net,
            tokenizer,
            [rows[row][0] for row in part],
            request,
            key,
            rows=[rows[row][1] for row in part],
            context=context,
            stream=stream,
        )
    ]
    return [texts[begin : begin + request.n] for begin in range(0, len(texts), request.n)]


def continue_texts(
    net: nnx.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[np.ndarray],
    request: TokenRequest,
    key: Key[Array, ""],
    *,
    rows: Sequence[int] | None = None,
    context: int | None,
    stream: Callable[[str], None] | None = None,
) -> list[str]:
    """Returns continuations, without their prompts, sampled in one batch; a row's result does not depend on the others.

    Arguments as for `sample_texts`, except:
        prompts: token ids of any lengths; see `encode_prompt`.
        request: sampling settings; its prompts and number of samples are not used.
        rows: the i of each text, for its key; None: in order.
    """
    continuations = [Continuation(tokenizer, request.stop) for _ in prompts]

    def accept(new: Int[np.ndarray, "b t"]) -> Bool[np.ndarray, " b"]:
        for continuation, ids in zip(continuations, new, strict=True):
            piece = continuation.add(ids)
            if stream is not None and piece:
                stream(piece)
        return np.array([continuation.ended for continuation in continuations])

    write_tokens(
        net,
        prompts,
        accept,
        knobs=make_knobs(request, len(prompts)),
        key=key,
        rows=rows,
        max_new_tokens=request.max_new_tokens,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        never=tokenizer.unknown,
        context=context,
        chunk=CHUNK if stream is None else STREAM_CHUNK,
    )
    for continuation in continuations:
        piece = continuation.finish()
        if stream is not None and piece:
            stream(piece)
    return [continuation.text for continuation in continuations]


def make_knobs(request: TokenRequest, rows: int) -> Knobs:
    """The request's sampling settings, the same for every row."""
    return Knobs(
        temperature=jnp.full(rows, request.temperature, jnp.float32),
        top_k=jnp.full(rows, request.top_k, jnp.int32),
        top_p=jnp.full(rows, request.top_p, jnp.float32),
        min_p=jnp.full(rows, request.min_p, jnp.float32),
        repetition_penalty=jnp.full(rows, request.repetition_penalty, jnp.float32),
    )


def _encode_fitting(tokenizer, request, context, prompt: str) -> Int[np.ndarray, " t"]:
    """The tokens of a prompt; raises if beam search could not fit `max_new_tokens` after it into the context."""
    ids = encode_prompt(tokenizer, prompt, context)
    room = None if context is None or request.num_beams == 1 else context - len(ids) + 1
    if room is not None and request.max_new_tokens > room:
        raise UserError(
            f"max_new_tokens is {request.max_new_tokens}, but beam search stays inside the context: after a prompt of "
            f"{len(ids)} tokens at most {room} fit"
        )
    return ids


def _searched(net, tokenizer, request, key, context, prompts, stream) -> list[Written]:
    """The best continuations of each prompt by beam search, best first; stop strings are applied afterwards."""
    at_once = max(1, AT_ONCE // request.num_beams)
    search = partial(
        beam_search,
        net,
        num_beams=request.num_beams,
        max_new_tokens=request.max_new_tokens,
        end_of_text=tokenizer.end_of_text,
        length_penalty=request.length_penalty,
        early_stopping=request.early_stopping,
        context=context,
    )
    all_ids = list(prompts.values())
    parts = [all_ids[begin : begin + at_once] for begin in range(0, len(all_ids), at_once)]
    return [_best(tokenizer, request, found, stream) for part in parts for found in search(part)]


def _best(tokenizer, request, found, stream) -> Written:
    """The texts of one prompt's best hypotheses."""
    written: Written = []
    for ids, score in found[: request.n]:
        continuation = Continuation(tokenizer, request.stop)
        piece = continuation.add(ids) + continuation.finish()
        if stream is not None:
            stream(piece)
        written.append((continuation.text, {"score": score}))
    return written

"""Translation with any encoder and decoder: beam search for the likeliest targets, and images of the attention.

The network is an `nnx.Module` with the methods

    encode(source [b s], real [b s]) -> memory                                    a pytree whose first axis is the row
    init_cache(memory, length) -> cache                                           likewise
    extend(target [b t], cache, position, memory) -> logits [b v], cache
    alignment(target [b t], memory) -> weights [b t s]

Letters in shapes: b sources, s source positions, t target positions, v target symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt8

from zoo.core.artifacts import Image, Text
from zoo.core.errors import UserError, require
from zoo.core.family import Request
from zoo.data.specs import PairSpec
from zoo.data.tokenizers import Tokenizer
from zoo.sampling.tokens.beam import EARLY_STOPPING, Beams, Rules, search
from zoo.sampling.tokens.lines import encode_lines

AT_ONCE = 128
"""Sources that one search translates, at most."""
CELL = 24
"""Side of a weight's square in an image, in pixels."""


@dataclass(frozen=True)
class TranslationRequest(Request):
    """A request for the likeliest targets of a source, found by beam search, best first."""

    n: int = 5
    """Number of targets to show."""
    source: str | None = None
    """Source to translate. Not given: a held-out source of the data, chosen by the seed."""
    sources: str = ""
    """A file with one source per line, instead of `source`. Prints the best target of each line, or with `--json` the n
    best."""
    score: str | None = None
    """Instead of searching, return the log-probability of each symbol of this target of `source`."""
    num_beams: Annotated[int, Ge(1)] = 5
    """Number of beams; 1: greedy search, which always takes the likeliest symbol."""
    length_penalty: float = 0.0
    """Targets are ranked by log-probability / length^length_penalty; above 0 favours long ones."""
    attention: str = ""
    """A PNG file to write: the attention from each symbol of the best target to each symbol of the source."""

    def __post_init__(self) -> None:
        require(
            self,
            "",
            ("n", f"from 1 to num_beams, {self.num_beams}", 1 <= self.n <= self.num_beams),
            ("length_penalty", "a finite number", bool(np.isfinite(self.length_penalty))),
            ("source", "text that is not empty", self.source is None or self.source.strip() != ""),
            (
                "sources",
                "empty where source, attention or score is given",
                not self.sources or (self.source is None and not self.attention and self.score is None),
            ),
            ("score", "a target of a source that is given", self.score is None or self.source is not None),
            ("attention", "the name of a .png file", self.attention == "" or self.attention.endswith(".png")),
        )


class Found(NamedTuple):
    """A target found by beam search."""

    tokens: Int32[np.ndarray, " t"]
    """Its symbols, with end-of-text if it was reached."""
    text: str
    score: float
    """log P(target | source) / length^length_penalty; the length includes end-of-text."""


def encode_source(spec: PairSpec, source: str, length: int) -> Int32[np.ndarray, " s"]:
    """Returns the symbols of a source and end-of-text.

    Raises:
        UserError: they are more than `length`, or some characters are not in the vocabulary.
    """
    tokens = spec.source.encode(source)
    if len(tokens) >= length:
        raise UserError(
            f"source is {len(tokens)} symbols long, but the model sees {length} with the end: give at most {length - 1}"
        )
    return np.append(tokens, spec.source.end_of_text).astype(np.int32)


def translate_lines(net: nnx.Module, spec: PairSpec, request: TranslationRequest, length: int) -> list[Text]:
    """Returns the best target of each line of the request's file, with the n best in its JSON record."""

    def encode(source: str) -> Int32[np.ndarray, " s"]:
        if not source.strip():
            raise UserError("source is empty")
        return encode_source(spec, source, length)

    lines = encode_lines(request.sources, encode)
    sources = [tokens for _, tokens in lines if tokens is not None]
    beams, penalty = request.num_beams, request.length_penalty
    found = iter(translate(net, spec, sources, length=length, num_beams=beams, length_penalty=penalty))
    texts = []
    for source, tokens in lines:
        best = [] if tokens is None else next(found)[: request.n]
        record = {"source": source, "best": [{"text": target.text, "score": target.score} for target in best]}
        texts.append(Text(best[0].text if best else "", {}, record))
    return texts


def translate(
    net: nnx.Module,
    spec: PairSpec,
    sources: Sequence[Int32[np.ndarray, " _"]],
    *,
    length: int,
    num_beams: int,
    length_penalty: float = 0.0,
) -> list[list[Found]]:
    """Returns the `num_beams` best targets of every source, best first.

    Compilation depends only on the network, `length`, `num_beams` and whether there is one source or more.

    Args:
        net: see the module's docstring.
        spec: spec of its data.
        sources: from `encode_source`.
        length: maximum number of symbols of a source or a target, including end-of-text.
        num_beams: number of beams.
        length_penalty: see `TranslationRequest`.
    """
    graphdef, state = nnx.split(net)
    rules = Rules(length, spec.target.end_of_text, length_penalty, EARLY_STOPPING[False])
    found: list[list[Found]] = [[] for _ in sources]
    # Searches for sources of similar length end at about the same step.
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    at_once = min(AT_ONCE, len(sources)) if len(sources) <= 1 else AT_ONCE
    for begin in range(0, len(order), max(at_once, 1)):
        chosen = order[begin : begin + at_once]
        tokens, lengths = pad(spec.source, [sources[i] for i in chosen], at_once, length)
        beams = _search(graphdef, state, tokens, lengths, rules, num_beams, length)
        arrays = [np.asarray(x) for x in (beams.found, beams.lengths, beams.scores, beams.filled)]
        for row, i in enumerate(chosen):
            for symbols, size, score, filled in zip(*(x[row] for x in arrays), strict=True):
                if filled:
                    ids = symbols[:size].astype(np.int32)
                    found[i].append(Found(ids, spec.target.decode(ids), float(score)))
    return found


def pad(
    tokenizer: Tokenizer, sources: Sequence[Int32[np.ndarray, " _"]], rows: int, length: int
) -> tuple[Int32[np.ndarray, "b s"], Int32[np.ndarray, " b"]]:
    """Pads sources to [rows, length], repeating the last source; returns them with the length of each."""
    padded = np.full((rows, length), tokenizer.end_of_text, np.int32)
    filled = [*sources, *[sources[-1]] * (rows - len(sources))]
    for row, tokens in enumerate(filled):
        padded[row, : len(tokens)] = tokens
    return padded, np.array([len(tokens) for tokens in filled], np.int32)


def _encode(net: Any, source: Any, length: Any) -> Any:
    return net.encode(source, jnp.arange(source.shape[1])[None, :] < length[:, None])


@partial(jax.jit, static_argnames=("graphdef", "num_beams", "size"))
def _search(graphdef: Any, state: Any, source: Any, length: Any, rules: Rules, num_beams: int, size: int) -> Beams:
    net = nnx.merge(graphdef, state)
    memory = _encode(net, source, length)
    begin = jnp.full((source.shape[0], 1), rules.end_of_text, jnp.int32)
    logits, cache = net.extend(begin, net.init_cache(memory, size), 0, memory)
    # All beams of a source share its memory, so it is not in the cache, whose rows move with the beams.
    wide = jax.tree.map(lambda x: repeat(x, "b ... -> (b k) ...", k=num_beams), memory)
    return search(
        lambda target, cache, read: net.extend(target, cache, 1 + read, wide), cache, logits, rules, num_beams, size
    )


@partial(jax.jit, static_argnames="graphdef")
def _align(graphdef: Any, state: Any, source: Any, length: Any, target: Any) -> Float[Array, "b t s"]:
    net = nnx.merge(graphdef, state)
    return net.alignment(target, _encode(net, source, length))


def draw_alignment(
    net: nnx.Module, spec: PairSpec, source: Int32[np.ndarray, " s"], target: Int32[np.ndarray, " t"], length: int
) -> Image:
    """Returns an image of the attention from each symbol of a target (rows) to each symbol of the source (columns).

    Args:
        net: see the module's docstring.
        spec: spec of its data.
        source: from `encode_source`.
        target: `Found.tokens`.
        length: as for `translate`.
    """
    tokens, lengths = pad(spec.source, [source], 1, length)
    read = np.full((1, length), spec.target.end_of_text, np.int32)
    read[0, 1 : len(target)] = target[:-1]
    weights = np.asarray(_align(*nnx.split(net), tokens, lengths, read))[0, : len(target), : len(source)]
    return Image(draw_weights(weights, symbols(spec.target, target), symbols(spec.source, source)), name="attention")


def symbols(tokenizer: Tokenizer, tokens: Int32[np.ndarray, " t"]) -> list[str]:
    """Readable names of tokens."""
    return ["end" if token == tokenizer.end_of_text else tokenizer.decode([token]) for token in tokens]


def draw_weights(
    weights: Float[np.ndarray, "t s"], rows: Sequence[str], columns: Sequence[str]
) -> UInt8[np.ndarray, "h w 1"]:
    """Draws weights from 0 (white) to 1 (black) as squares, labelled with the names of rows and columns."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    font = PIL.ImageFont.load_default(CELL // 2)
    left, top = (int(max(map(font.getlength, names))) + CELL // 2 for names in (rows, columns))
    squares = (255 * (1 - np.clip(weights, 0, 1))).astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)
    picture = np.full((top + squares.shape[0], left + squares.shape[1]), 255, np.uint8)
    picture[top:, left:] = squares
    canvas = PIL.Image.fromarray(picture)
    drawn = PIL.ImageDraw.Draw(canvas)
    for number, name in enumerate(rows):
        drawn.text((left - CELL // 4, top + CELL * (number + 0.5)), name, 0, font, anchor="rm")
    # Names of columns read from bottom to top.
    turned = PIL.Image.new("L", (top, left + squares.shape[1]), 255)
    sideways = PIL.ImageDraw.Draw(turned)
    for number, name in enumerate(columns):
        sideways.text((CELL // 4, left + CELL * (number + 0.5)), name, 0, font, anchor="lm")
    canvas.paste(turned.rotate(90, expand=True), (0, 0))
    return np.asarray(canvas)[:, :, None]

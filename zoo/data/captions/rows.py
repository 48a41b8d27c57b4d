"""Captions of images in batches: tokenized, chosen among several, dropped, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from zoo.core.data import Batch
from zoo.data.captions.draws import below
from zoo.data.specs import CaptionSpec
from zoo.data.text.sentences import Lines, pack


@dataclass(frozen=True, eq=False)
class Captions:
    """Tokenized captions of images, at least one for each.

    Attributes:
        lines: the captions, those of the first image first; cut to the longest that `CaptionSpec` allows.
        begin: where the captions of each image begin, and the end of the last.
        cut: number of captions that were longer.
    """

    lines: Lines
    begin: Int64[np.ndarray, " n_and_1"]
    cut: int

    def choose(self, place: Int64[np.ndarray, " b"], number: Float64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Returns the line of one caption of each image, selected by a number in [0, 1); 0 is the first."""
        begin = self.begin[place]
        return begin + below(number, self.begin[place + 1] - begin)


def encode_captions(spec: CaptionSpec, captions: Sequence[tuple[str, ...]]) -> Captions:
    """Tokenizes the captions of images."""
    encoded = [spec.encode(caption) for of_image in captions for caption in of_image]
    cut = sum(len(tokens) > spec.longest for tokens in encoded)
    begin = np.cumsum([0, *map(len, captions)], dtype=np.int64)
    return Captions(pack(spec.tokenizer, [tokens[: spec.longest] for tokens in encoded]), begin, cut)


def drop(
    spec: CaptionSpec,
    caption: Int32[np.ndarray, "b t"],
    length: Int32[np.ndarray, " b"],
    dropped: Bool[np.ndarray, " b"],
) -> Batch:
    """Returns `caption` and `caption_length` of a batch, in which some captions are replaced by the empty one."""
    return {
        "caption": np.where(dropped[:, None], np.int32(spec.end), caption),
        "caption_length": np.where(dropped, np.int32(2), length),
    }


def coverage(spec: CaptionSpec, captions: Sequence[str]) -> dict[str, float]:
    """Returns the shares of captions that are cut and of tokens that are unknown; see `DataSet.coverage`."""
    encoded = [spec.encode(caption) for caption in captions]
    found = {"cut_caption_share": float(np.mean([len(tokens) > spec.longest for tokens in encoded]))}
    if spec.tokenizer.unknown is None:
        return found
    return found | {"unknown_share": float(np.mean(np.concatenate(encoded) == spec.tokenizer.unknown))}


def shown(spec: CaptionSpec, batch: Batch, count: int) -> list[str]:
    """Returns the first captions of a batch as the model receives them: cut, and with unknown words marked."""
    rows = zip(batch["caption"][:count], batch["caption_length"][:count], strict=True)
    return [spec.tokenizer.decode(row[1 : length - 1]) for row, length in rows]


def cut_captions(share: float, spec: CaptionSpec) -> str:
    """Returns the share of the training captions that are cut in words; empty if there are none."""
    return f", {share:.1%} longer than {spec.longest} and cut" if share else ""

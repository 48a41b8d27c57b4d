"""Captioned images in memory."""

import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from zoo.core.artifacts import Artifacts
from zoo.core.captioned import COLUMNS, PREVIEW, captioned_grid
from zoo.core.data import Batch
from zoo.data.captions.draws import dropped, uniforms
from zoo.data.captions.rows import Captions, coverage, cut_captions, drop, shown
from zoo.data.images.image_set import ImageSet
from zoo.data.specs import CaptionSpec
from zoo.data.splits import Parts


@dataclass(frozen=True, eq=False)
class CaptionedSet(ImageSet):
    """Images in memory with their captions.

    An epoch visits each training image once, with one of its captions, drawn from (seed, row). A held-out image has
    its first caption.
    """

    encoded: Parts[Captions] = field(kw_only=True)
    caption_dropout: float = field(kw_only=True)

    @property
    def captions(self) -> CaptionSpec:
        """The spec of the captions."""
        assert self.spec.caption is not None
        return self.spec.caption

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: that of `ImageSet`, with `caption` int32 [b, length + 1] and `caption_length`."""
        _, drawn = self.drawn(step, rows)
        captions = self.encoded.train
        line = captions.choose(self.order[drawn], uniforms(self.seed, "caption", drawn, 1)[:, 0])
        tokens, length = captions.lines.rows(line, self.captions.length + 1, self.captions.end)
        lost = dropped(self.seed, drawn, self.caption_dropout)
        return super().batch_at(step, rows) | drop(self.captions, tokens, length, lost)

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`: that of `ImageSet`, with `caption` and `caption_length`, of which none is dropped."""
        batch, captions = super().held_out_at(index, rows), self.encoded.held_out[self.split]
        place = np.minimum(batch["row"], len(self.held_out_images) - 1)
        tokens, length = captions.lines.rows(captions.begin[place], self.captions.length + 1, self.captions.end)
        return batch | {"caption": tokens, "caption_length": length}

    @property
    def held_out_captions(self) -> tuple[tuple[str, ...], ...]:
        """All captions of each held-out image of the split."""
        return self.parts.held_out[self.split].captions

    def preview(self, key: jax.Array) -> Artifacts:
        """Returns the first augmented images of the first batch with their captions under them."""
        batch: dict[str, Any] = self.batch_at(0, slice(0, PREVIEW))
        image = np.asarray(jax.jit(self.augment)(batch, key)["image"])
        return [replace(captioned_grid(image, shown(self.captions, batch, PREVIEW), COLUMNS), name="batch")]

    def coverage(self) -> dict[str, float]:
        """Returns the shares of held-out captions that are cut and of unknown tokens."""
        return coverage(self.captions, [captions[0] for captions in self.held_out_captions])

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the training images, labels and captions."""
        return f"{zlib.crc32(self.encoded.train.lines.tokens.tobytes(), int(super().fingerprint(), 16)):08x}"

    def describe(self) -> str:
        """Returns the images and the number, tokens and cut ones of their training captions in one line."""
        tokenizer, captions = self.captions.tokenizer, self.encoded.train
        count = len(captions.lines)
        return (
            f"{super().describe()}; {count:,} captions in {tokenizer.vocab_size:,} tokens ({tokenizer.kind})"
            f"{cut_captions(captions.cut / count, self.captions)}"
        )

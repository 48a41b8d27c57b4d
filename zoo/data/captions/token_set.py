"""Captioned images as rows of tokens, from the same sources as `CaptionedImages`."""

import zlib
from dataclasses import dataclass, field, replace
from typing import Annotated

import jax
import numpy as np
from annotated_types import Ge, Lt
from jaxtyping import Int32, Int64

from zoo.core.artifacts import Artifacts, Image
from zoo.core.captioned import COLUMNS, PREVIEW, captioned_grid
from zoo.core.codec import Coder
from zoo.core.data import Batch, Split
from zoo.core.errors import UserError, require
from zoo.data.captions.caption_set import CaptionedSet
from zoo.data.captions.dataset import CaptionedSource
from zoo.data.captions.draws import dropped, uniforms
from zoo.data.captions.rows import drop, shown
from zoo.data.captions.scene_set import SceneSet
from zoo.data.captions.tokens import CaptionedTokenSpec, Task
from zoo.data.images.augment import NO_AUGMENTATION
from zoo.data.images.coded import CodedImages
from zoo.data.images.tokens import spec_of_codes, spec_of_pixels


@dataclass(frozen=True)
class CaptionedTokens(CaptionedSource):
    """Captions and their images as rows of tokens; see `CaptionedSource` and `zoo.data.captions.tokens`."""

    codec: str = ""
    """The run directory of a codec, such as a VQ-VAE's, whose codes are the tokens of images; empty: a token is a grey
    level of a pixel's channel, which makes long rows."""

    tell: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the training rows in which the caption follows the image, so that the model learns to describe."""

    only_asked: bool = False
    """Whether only the second half of a row is modelled, P(image | caption), and not also the first, P(caption)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "data.", ("augment", "left out for tokens", self.augment == NO_AUGMENTATION))

    def fitting(self, spec: CaptionedTokenSpec) -> "CaptionedTokens":
        """Returns these settings with the size, channels, tokenizer and longest caption of an earlier run."""
        return super().fitting(spec.picture.image)

    def check_tokenizer(self, spec: CaptionedTokenSpec) -> None:
        """Rejects a run's spec whose captions have another kind of tokenizer; see `check_kind`."""
        super().check_tokenizer(spec.picture.image)

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: CaptionedTokenSpec | None = None,
        split: Split = "dev",
        codec: Coder | None = None,
    ) -> "CaptionedTokenSet":
        """Reads the images and their captions and splits them; see `Data.open`."""
        kind = None if spec is None else spec.picture.image
        # A caption is dropped here, where the tasks of rows are known.
        whole = replace(self, caption_dropout=0.0)
        images = whole.captioned_set(batch_size=batch_size, seed=seed, spec=kind, split=split)
        tokens = (
            spec_of_pixels(images.spec, None, False) if codec is None else spec_of_codes(images.spec, codec, self.codec)
        )
        found = CaptionedTokenSpec(tokens, self.tell > 0 if spec is None else spec.tells)
        if spec is not None and spec != found:
            raise UserError(
                f"rows have {found.longest} tokens of other images than the run's: give the run's --data.codec"
            )
        if length is None or length < found.longest:
            raise UserError(
                f"family.context is {length}, and a row has {found.longest} tokens, {found.caption.length} of them of "
                f"the caption and {tokens.longest} of the image; it must be at least that"
            )
        return CaptionedTokenSet(
            found,
            images,
            codec,
            split,
            tell=self.tell,
            only_asked=self.only_asked,
            caption_dropout=self.caption_dropout,
        )


@dataclass(frozen=True, eq=False)
class CaptionedTokenSet(CodedImages):
    """Captioned images as tokens: `tokens` int32 [b, t + 1], `end`, the symbol of a task and its two halves."""

    spec: CaptionedTokenSpec
    images: SceneSet | CaptionedSet
    tell: float = field(kw_only=True)
    only_asked: bool = field(kw_only=True)
    caption_dropout: float = field(kw_only=True)

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `tokens`, `length`, `first` and `row` int32, `valid` bool [b].

        Targets before number `first` are given: the task's symbol, and the first half if only the second is modelled or
        the caption is dropped.
        """
        batch = self.images.batch_at(step, rows)
        place = step * self.images.batch_size + batch["row"].astype(np.int64)
        seed, caption = self.images.seed, self.spec.caption
        told = uniforms(seed, "task", place, 1)[:, 0] < self.tell
        lost = dropped(seed, place, self.caption_dropout) & ~told
        batch |= drop(caption, batch["caption"], batch["caption_length"], lost)
        image = self._image_tokens(batch, place)
        draws, tells = (self.spec.rows(task, batch["caption"], image) for task in ("draw", "tell"))
        given = lost | self.only_asked
        first = np.where(given, np.where(told, self.spec.begin("tell"), self.spec.begin("draw")), 1)
        tokens = np.where(told[:, None], tells, draws)
        return self._batch(tokens, first) | {"row": batch["row"], "valid": batch["valid"]}

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`: images after their captions; `images` int32 [b] counts the images of each row."""
        return self.asked_at(index, "draw", only_asked=self.only_asked, rows=rows)

    def asked_at(self, index: int, task: Task, only_asked: bool = True, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index` as rows of a task, of which only the second half or all but the symbol is scored."""
        batch = self.reference.held_out_at(index, rows)
        row = batch["row"]
        tokens = self.spec.rows(task, batch["caption"], self._image_tokens(batch, row.astype(np.int64)))
        first = np.full(row.shape, self.spec.begin(task) if only_asked else 1)
        return self._batch(tokens, first) | {
            "row": row, "valid": batch["valid"], "images": np.ones(row.shape, np.int32)
        }  # fmt: skip

    def _image_tokens(self, batch: Batch, noise: Int64[np.ndarray, " b"]) -> Int32[np.ndarray, "b n"]:
        return self.spec.picture.tokenize(batch["image"], noise % 2**31, self.codec)

    def _batch(self, tokens: np.ndarray, first: np.ndarray) -> Batch:
        length = np.full(len(tokens), tokens.shape[1], np.int32)
        return {"tokens": tokens, "length": length, "first": first.astype(np.int32)}

    def preview(self, key: jax.Array) -> Artifacts:
        """Returns the first images of the first batch, as their tokens show them, with their captions under them."""
        batch = self.images.batch_at(0, slice(0, PREVIEW))
        tokens = self._image_tokens(batch, batch["row"].astype(np.int64))
        made = [image.pixels for image in self.spec.picture.decode([*tokens], self.codec) if isinstance(image, Image)]
        return [
            replace(captioned_grid(np.stack(made), shown(self.spec.caption, batch, PREVIEW), COLUMNS), name="batch")
        ]

    def coverage(self) -> dict[str, float]:
        """Returns the shares of held-out captions that are cut and of unknown tokens."""
        return self.reference.coverage()

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the images, the captions and the codec."""
        return f"{zlib.crc32(self.spec.picture.codec.encode(), int(self.images.fingerprint(), 16)):08x}"

    def describe(self) -> str:
        """Returns the images and the number of tokens in one line."""
        tasks = f", {self.tell:.0%} of the rows tell" if self.tell else ""
        return f"{self.images.describe()}; rows of {self.spec.longest} tokens{tasks}"

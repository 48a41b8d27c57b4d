"""Captioned digits, drawn on the fly: an endless training set, and held-out scenes of combinations seen and not."""

import functools
import zlib
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Int32, Int64

from zoo.core.artifacts import Artifacts
from zoo.core.captioned import COLUMNS, PREVIEW, captioned_grid
from zoo.core.data import Batch, DataSet, Split
from zoo.data.captions import grammar
from zoo.data.captions.draws import dropped, uniforms
from zoo.data.captions.rendering import digits_of, render
from zoo.data.captions.rows import coverage, cut_captions, drop, shown
from zoo.data.captions.scenes import HELD_OUT_SEED, Drawn, cut, draw_held_out, draw_training, scene_of
from zoo.data.order import held_out_rows
from zoo.data.specs import CaptionSpec, SceneSpec
from zoo.data.splits import Part

SOME = 500
"""Number of training captions in which cut ones are counted."""


@dataclass(frozen=True, eq=False)
class SceneSet(DataSet):
    """Captioned digits. Row r of all training rows is a function of (seed, r); no scene comes twice.

    Handwritten digits of dev and test are those of MNIST's dev and test. Held-out rows do not depend on the seed:
    rows with even numbers are of combinations that are trained on, rows with odd numbers of those that are not.
    """

    spec: SceneSpec
    digit_size: int
    held_out: float
    """Share of the combinations that is held out."""
    held_out_scenes: int
    caption_dropout: float
    batch_size: int
    seed: int
    split: Split = "dev"

    @property
    def captions(self) -> CaptionSpec:
        """The spec of the captions."""
        assert self.spec.caption is not None
        return self.spec.caption

    @property
    def held_out_batches(self) -> int:
        return -(-self.held_out_scenes // self.batch_size)

    def training_scenes(self, drawn: Int64[np.ndarray, " b"]) -> Drawn:
        """Returns training scenes as attributes; `drawn` are rows counted over all batches."""
        return draw_training(self.seed, drawn, self.held_out)

    def held_out_scene(self, row: Int64[np.ndarray, " b"]) -> Drawn:
        """Returns scenes of the split as attributes."""
        return draw_held_out(row, self.held_out, self.split)

    def batch_at(self, step: int, rows: slice = slice(None)) -> Batch:
        """Training batch `step`: `image` uint8 [b h w 3], `caption` int32 [b, length + 1], `scene` int32 [b 2 3], and
        `caption_length`, `label` (-1) and `row` int32, `valid` bool [b].

        `scene` is the truth of the picture, also if the caption is dropped; see `zoo.data.captions.scenes.scene_of`.
        """
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        place = step * self.batch_size + row.astype(np.int64)
        texts, batch = self._batch(self.training_scenes(place), "train", self.seed, place)
        tokens, length = self.captions.rows(texts)
        batch |= drop(self.captions, tokens, length, dropped(self.seed, place, self.caption_dropout))
        return batch | {"row": row, "valid": np.ones(row.shape, bool)}

    def held_out_at(self, index: int, rows: slice = slice(None)) -> Batch:
        """Held-out batch `index`: the arrays of a training batch, and `held_out` int32 [b], 1 for a combination that is
        not trained on.

        Rows past the end of the split repeat its last scene and have `valid` false. No caption is dropped.
        """
        row, place, valid = held_out_rows(index, rows, self.held_out_scenes, self.batch_size)
        scenes = self.held_out_scene(place)
        texts, batch = self._batch(scenes, self.split, HELD_OUT_SEED[self.split], place)
        tokens, length = self.captions.rows(texts)
        batch |= {"caption": tokens, "caption_length": length, "held_out": scenes.held_out}
        return batch | {"row": row, "valid": valid}

    def _batch(
        self, scenes: Drawn, part: Part | Split, seed: int, place: Int64[np.ndarray, " b"]
    ) -> tuple[list[str], Batch]:
        label: Int32[np.ndarray, " b"] = np.full(len(place), -1, np.int32)
        image = render(scenes, digits_of(part), self.spec.height, self.digit_size)
        return write(scenes, seed, place), {"image": image, "label": label, "scene": scenes.objects}

    def preview(self, key: jax.Array) -> Artifacts:
        """Returns the first images of the first batch with their captions under them."""
        batch = self.batch_at(0, slice(0, PREVIEW))
        return [replace(captioned_grid(batch["image"], shown(self.captions, batch, PREVIEW), COLUMNS), name="batch")]

    @functools.cached_property
    def _held_out_captions(self) -> list[str]:
        row = np.arange(self.held_out_scenes)
        return write(self.held_out_scene(row), HELD_OUT_SEED[self.split], row)

    def coverage(self) -> dict[str, float]:
        """Returns the shares of held-out captions that are cut and of unknown tokens."""
        return coverage(self.captions, self._held_out_captions)

    def fingerprint(self) -> str:
        """Returns a CRC-32 checksum of the first 64 scenes by seed 0, and of the held-out combinations."""
        one = replace(self, seed=0, batch_size=64, caption_dropout=0.0).batch_at(0)
        arrays = (one["image"], one["caption"], cut(self.held_out)["train"])
        return f"{functools.reduce(lambda crc, array: zlib.crc32(array.tobytes(), crc), arrays, 0):08x}"

    def describe(self) -> str:
        """Returns the number of combinations, the sizes of images and digits, and the captions in one line."""
        spec, parts = self.spec, cut(self.held_out)
        row = np.arange(SOME)
        texts = write(self.training_scenes(row), self.seed, row)
        longer = coverage(self.captions, texts)["cut_caption_share"]
        tokenizer = self.captions.tokenizer
        return (
            f"captioned digits: {len(parts['train']):,} combinations of two to train on, {len(parts['dev'])} for dev "
            f"and {len(parts['test'])} for test; {self.held_out_scenes:,} scenes in {self.split}; "
            f"{spec.width}x{spec.height} with digits of {self.digit_size}; captions in {tokenizer.vocab_size} tokens "
            f"({tokenizer.kind}){cut_captions(longer, self.captions)}"
        )


def write(scenes: Drawn, seed: int, place: Int64[np.ndarray, " b"]) -> list[str]:
    """Returns a caption of each scene, drawn from (seed, row)."""
    numbers = uniforms(seed, "caption", place, grammar.CHOICES).tolist()
    return [grammar.write(scene_of(scene), drawn) for scene, drawn in zip(scenes.objects, numbers, strict=True)]

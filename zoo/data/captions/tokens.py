"""Captions and their images in one row of tokens, for models of tokens: text to image, and image to text.

A row is one of two tasks, and the symbol of its task comes first:

    draw   end  DRAW  caption  image          an image from its caption (DALL-E: Ramesh et al. 2021)
    tell   end  TELL  image  caption          the caption of an image

A caption is its tokens and end-of-text, filled up with end-of-text to its longest length m; an image is its n tokens,
row by row. Both tasks have 1 + m + n tokens after `end`, and task and place say which symbols can occur there:

    image symbols 0 .. k-1, caption tokens k .. k+v-1, DRAW k+v, TELL k+v+1, end k+v+2

A model that learns both tasks knows P(image | caption) and P(caption | image). Letters in shapes: b rows, t tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int, Int32

from zoo.core.artifacts import Artifact, Text
from zoo.core.codec import Coder
from zoo.core.errors import UserError
from zoo.data.captions.prompts import read_prompt
from zoo.data.images.tokens import ImageTokenSpec
from zoo.data.specs import CaptionSpec, Given, GivenPart, ImageSpec, TokenSpec

Task = Literal["draw", "tell"]


@dataclass(frozen=True)
class CaptionedTokenSpec(TokenSpec):
    """Rows of a task symbol, a caption and an image; see the module's docstring."""

    picture: ImageTokenSpec
    """The tokens of images, which have captions."""
    tells: bool = False
    """Whether a model learns both tasks, and not only to draw."""

    @property
    def caption(self) -> CaptionSpec:
        """The spec of the captions."""
        assert self.image.caption is not None
        return self.image.caption

    @property
    def image(self) -> ImageSpec:
        """The spec of the images."""
        return self.picture.image

    @property
    def outputs(self) -> int:
        return self.picture.symbols + self.caption.vocab_size + 2

    @property
    def vocab_size(self) -> int:
        return self.outputs + 1

    @property
    def end(self) -> int:
        return self.outputs

    @property
    def never(self) -> int | None:
        unknown = self.caption.never
        return None if unknown is None else self.picture.symbols + unknown

    @property
    def longest(self) -> int:
        return 1 + self.caption.length + self.picture.longest

    def symbol(self, task: Task) -> int:
        """Returns the symbol that begins the rows of a task."""
        return self.outputs - 2 + (task == "tell")

    def begin(self, task: Task) -> int:
        """Returns the place of the second half among the tokens after `end`: what a task asks for begins there."""
        return 1 + (self.caption.length if task == "draw" else self.picture.longest)

    def rows(
        self, task: Task, caption: Int[np.ndarray, "b t"], image: Int[np.ndarray, "b n"]
    ) -> Int32[np.ndarray, "b u"]:
        """Returns rows of a task, from `end` on.

        Args:
            task: the task.
            caption: end-of-text, tokens and end-of-text, filled up with end-of-text; see `CaptionSpec.rows`.
            image: tokens of images.
        """
        words = self.picture.symbols + caption[:, 1:]
        halves = (words, image) if task == "draw" else (image, words)
        start = np.tile(np.array([self.end, self.symbol(task)]), (len(image), 1))
        return np.concatenate([start, *halves], axis=1).astype(np.int32)

    def allowed(self, task: Task) -> Int32[np.ndarray, "t 2"]:
        """Returns the range of symbols at each place after `end`: the first, and the one after the last."""
        k, symbol = self.picture.symbols, self.symbol(task)
        words = [[k, k + self.caption.vocab_size]] * self.caption.length
        image = [[0, k]] * self.picture.longest
        halves = words + image if task == "draw" else image + words
        return np.array([[symbol, symbol + 1], *halves], np.int32)

    def decode(self, samples: Sequence[Int[np.ndarray, " t"]], codec: Coder | None) -> list[Artifact]:
        """Returns an image for each row that draws and a text for each that tells; see `TokenSpec.decode`."""
        draws = [row[self.begin("draw") :] for row in samples if row[0] == self.symbol("draw")]
        images = iter(self.picture.decode(draws, codec) if draws else [])
        return [next(images) if row[0] == self.symbol("draw") else self._text(row) for row in samples]

    def _text(self, row: Int[np.ndarray, " t"]) -> Text:
        words = row[self.begin("tell") :] - self.picture.symbols
        length = np.append(np.flatnonzero(words == self.caption.end), len(words))[0]
        return Text(self.caption.tokenizer.decode(words[:length]))

    def given(self, part: GivenPart, codec: Coder | None) -> Given:
        """Returns the rows of a request; see `TokenSpec.given`.

        A prompt asks for images, completed from a part of an image if one is kept; an image of which no part is named
        is described. Without a prompt the caption is the empty one.
        """
        unknown = np.full((1, self.picture.longest), -1, np.int32)
        if part.has_image and not part.completes:
            if not self.tells:
                raise UserError(
                    f"image is {part.image!r}, and the model was trained with data.tell 0, so it describes no images: "
                    "give keep_rows or mask to complete it"
                )
            if part.prompts:
                raise UserError(
                    f"prompt is {part.prompts[0]!r}, and image asks for a description: give keep_rows or mask to "
                    "complete the image, or leave the prompt out"
                )
            image = self.picture.whole(part, codec)
            row = self.rows("tell", np.zeros((len(image), 1 + self.caption.length), np.int32), image)[:, 1:]
            row[:, self.begin("tell") :] = -1
            return Given(row, self.allowed("tell"))
        image = self.picture.kept(part, codec) if part.has_image else unknown
        empty, _ = self.caption.rows([""])
        captions = np.concatenate([read_prompt(self.caption, prompt)[0] for prompt in part.prompts] or [empty])
        away = read_prompt(self.caption, part.negative_prompt)[0] if part.negative_prompt else empty
        m = max(len(captions), len(image))
        image = np.resize(image, (m, image.shape[1]))
        rows = self.rows("draw", np.resize(captions, (m, captions.shape[1])), image)[:, 1:]
        without = self.rows("draw", np.resize(away, (m, away.shape[1])), image)[:, 1:]
        return Given(rows, self.allowed("draw"), without)

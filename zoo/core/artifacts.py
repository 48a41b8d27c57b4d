"""Artifacts, the outputs of families: texts and images, their display and their files."""

import html
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import UInt8


@dataclass(frozen=True)
class Text:
    """A generated text.

    Attributes:
        text: the whole text, prompt included.
        scores: numbers shown beside it; {}: none, but the text is a line of a list. None: it is shown alone.
        record: its JSON object; None: the text and its scores.
        prompt: the beginning of the text that was given and not generated; may be empty.
    """

    text: str
    scores: dict[str, float] | None = None
    record: dict[str, Any] | None = None
    prompt: str = ""

    def marked(self, mark: Callable[[str], str]) -> str:
        """The text with `mark` applied to its prompt, to distinguish it from the generated part."""
        return (mark(self.prompt) if self.prompt else "") + self.text.removeprefix(self.prompt)

    def json(self) -> str:
        """The text as one line of JSON."""
        return json.dumps(self.record or {"text": self.text} | (self.scores or {}), ensure_ascii=False)

    def _repr_html_(self) -> str:
        """HTML for notebooks, with the prompt dimmed."""
        shown = replace(self, text=html.escape(self.text), prompt=html.escape(self.prompt))
        return "<pre>" + shown.marked('<span style="opacity: 0.5">{}</span>'.format) + "</pre>"


@dataclass(frozen=True, eq=False)
class Image:
    """A generated image.

    Attributes:
        pixels: grey (c = 1) or colour (c = 3).
        name: the kind of image if it shows several samples (a strip, a traversal); may be empty.
        file: the path to write it to if the request gave one; else empty.
        caption: what it was asked to show, written under it in a grid of several; may be empty.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    name: str = ""
    file: str = ""
    caption: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.name == other.name and np.array_equal(self.pixels, other.pixels)

    def png(self) -> bytes:
        """The image as a PNG file."""
        import PIL.Image

        pixels = self.pixels[..., 0] if self.pixels.shape[-1] == 1 else self.pixels
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "png")
        return file.getvalue()

    def _repr_png_(self) -> bytes:
        """PNG for notebooks; small images are enlarged by repeating pixels."""
        factor = max(1, 128 // max(self.pixels.shape[:2]))
        return Image(self.pixels.repeat(factor, 0).repeat(factor, 1)).png()


Artifact = Text | Image
Artifacts = Sequence[Artifact]


def grid(images: Sequence[Image] | UInt8[np.ndarray, "n h w c"], columns: int = 0, gap: int = 2) -> Image:
    """A grid of images of one size, filled row by row.

    Args:
        images: all of one shape.
        columns: images in a row; 0: as many as make the grid square.
        gap: white pixels between images.
    """
    pixels = np.stack([image.pixels if isinstance(image, Image) else image for image in images])
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    missing = rows * columns - len(pixels)
    pixels = np.pad(pixels, ((0, missing), (gap, 0), (gap, 0), (0, 0)), constant_values=255)
    pixels[len(pixels) - missing :] = 255
    whole = rearrange(pixels, "(r q) h w c -> (r h) (q w) c", q=columns)
    return Image(np.pad(whole, ((0, gap), (0, gap), (0, 0)), constant_values=255), "grid")


def sheet(rows: UInt8[np.ndarray, "r k h w c"], name: str) -> Image:
    """A grid with k images in each row, as one image of the given name."""
    return replace(grid(rearrange(rows, "r k h w c -> (r k) h w c"), columns=rows.shape[1]), name=name)


def deliver(artifacts: Artifacts) -> Artifacts:
    """Writes the images whose `file` is set, and returns the other artifacts."""
    for artifact in artifacts:
        if isinstance(artifact, Image) and artifact.file:
            Path(artifact.file).parent.mkdir(parents=True, exist_ok=True)
            Path(artifact.file).write_bytes(artifact.png())
    return [artifact for artifact in artifacts if not (isinstance(artifact, Image) and artifact.file)]


def listing(artifacts: Artifacts, mark: Callable[[str], str] = str) -> str:
    """Texts for printing: one line each with its scores if all are single lines with scores, else separated by rules.

    Args:
        artifacts: texts; others are ignored.
        mark: applied to the prompt of each text.
    """
    texts = [artifact for artifact in artifacts if isinstance(artifact, Text)]
    if any(text.scores is None or "\n" in text.text for text in texts):
        return "\n\n----\n\n".join(text.marked(mark) for text in texts)
    width = max((len(text.text) for text in texts), default=0)
    scored = ("  ".join(f"{name} {value:.4g}" for name, value in (text.scores or {}).items()) for text in texts)
    return "\n".join(
        text.marked(mark) + (" " * (width - len(text.text)) + f"  {scores}" if scores else "")
        for text, scores in zip(texts, scored, strict=True)
    )


def write_artifact(stem: Path, artifact: Artifact) -> Path:
    """Writes one artifact to `stem` with the suffix of its kind."""
    if isinstance(artifact, Image):
        path = stem.with_name(stem.name + ".png")
        path.write_bytes(artifact.png())
    else:
        path = stem.with_name(stem.name + ".txt")
        path.write_text(artifact.text, encoding="utf-8")
    return path


def write_artifacts(folder: Path, artifacts: Artifacts) -> list[Path]:
    """Writes artifacts into a folder as sample_0000, sample_0001, ...; several images of one size also as a grid."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        write_artifact(folder / f"sample_{i:04d}{'_' * bool(name)}{name}", artifact)
        for i, artifact in enumerate(artifacts)
        for name in [getattr(artifact, "name", "")]
    ]
    whole = together(artifacts) if len(artifacts) > 1 else None
    return paths if whole is None else [*paths, write_artifact(folder / "grid", whole)]


def write_summary(stem: Path, artifacts: Artifacts) -> Path:
    """Writes artifacts as one file if `together` can combine them, else into a folder; returns the path."""
    whole = together(artifacts)
    if whole is not None:
        return write_artifact(stem, whole)
    write_artifacts(stem, artifacts)
    return stem


def together(artifacts: Artifacts) -> Artifact | None:
    """One artifact that shows all: the only one, or a grid of images of one size; None if there is no such artifact.

    Images with captions stand in as many columns as there are captions.
    """
    if len(artifacts) == 1:
        return artifacts[0]
    images = [artifact for artifact in artifacts if isinstance(artifact, Image)]
    one_size = len({image.pixels.shape for image in images}) == 1
    if len(images) < len(artifacts) or not one_size:
        return None
    captions = [image.caption for image in images]
    if not any(captions):
        return grid(images)
    from zoo.core.captioned import captioned_grid  # only such images need its fonts

    return captioned_grid(np.stack([image.pixels for image in images]), captions, len(dict.fromkeys(captions)))

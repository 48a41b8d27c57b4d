"""Captioned images: settings, and the data sets they open."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Lt

from zoo.core.artifacts import Image
from zoo.core.bounds import Why
from zoo.core.codec import Coder
from zoo.core.data import Split
from zoo.core.errors import UserError, require
from zoo.data.captions import grammar
from zoo.data.captions.caption_set import CaptionedSet
from zoo.data.captions.emoji import split_emoji
from zoo.data.captions.latents import CaptionedLatents, captioned_latents
from zoo.data.captions.own import METADATA, captions_of_folder, captions_of_record, keep_captioned
from zoo.data.captions.rendering import least_canvas
from zoo.data.captions.rows import encode_captions
from zoo.data.captions.scene_set import SceneSet
from zoo.data.images.arrays import read_tfds
from zoo.data.images.augment import NO_AUGMENTATION, Augment
from zoo.data.images.files import LabelledImages, is_picture
from zoo.data.images.source import ImageFiles
from zoo.data.specs import CaptionSpec, ImageSpec, LatentSpec, SceneSpec
from zoo.data.splits import Parts
from zoo.data.tokenized import Kind, Tokenized, check_kind

CANVAS = 32
"""Height and width of scenes for `size` auto."""

EXCERPT = 96
"""Number of training images in an excerpt."""

Source = TypeVar("Source", bound="CaptionedSource")


@dataclass(frozen=True)
class CaptionedSource(Tokenized, ImageFiles):
    """Settings of captioned images: coloured digits by default, or the emoji, a folder or a TFDS set.

    A folder has a `metadata.jsonl` or `metadata.csv` with `file_name` and `text` (Hugging Face's `imagefolder`; several
    rows of one image are several captions), or a text file `x.txt` for each `x.png` with one caption a line. Images
    without a caption are left out, counted and named.
    """

    source: Literal["digits", "emoji"] = "digits"
    """Images of this package, used unless `path` or `tfds` is given. digits: one or two of MNIST's digits in six
    colours on black, drawn without end, with captions from a small grammar; emoji: Noto emoji without flags, with their
    English names and keywords."""

    digit_size: Annotated[int, Ge(4), Why("pixels")] = 14
    """Height and width of a digit of a scene, whose own height and width are `size`; auto: 32."""

    held_out_scenes: Annotated[int, Ge(2)] = 2000
    """Scenes in dev and in test; every other one is of a combination that is not trained on. `held_out` is the share of
    the combinations of two digits that is held out, or of the emoji's concepts."""

    caption_field: str = "text"
    """The field or column of the caption in metadata, or the feature of the TFDS set, such as 'captions/text'."""

    caption_length: Annotated[int, Ge(2), Why("end-of-text and a token")] = 32
    """Tokens of the longest caption and end-of-text; longer ones are cut."""

    caption_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the training images whose caption is the empty one, so that a model can be guided."""

    tokenizer: Kind = "words"
    """Token type: a word in lower case, a character, a byte, a byte pair learned from captions, or GPT-2's tokens."""

    vocabulary: int = 10000
    """Vocabulary size of 'words' or 'bpe'; words other than the most frequent are unknown."""

    augment: Augment = field(default_factory=Augment)
    """Random augmentation of training images, which no caption describes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        draws = self.draws_scenes
        least = least_canvas(self.digit_size)
        pixels = f"at least {least} pixels, for two digits of data.digit_size {self.digit_size}"
        require(
            self,
            "data.",
            ("size", pixels, not draws or self.canvas >= least),
            ("channels", "0 or 3 for digits in colour", not draws or self.channels != 1),
            ("augment", "left out for data.source digits", not draws or self.augment == NO_AUGMENTATION),
            ("path", "a folder of pictures with captions", not self.path.lower().endswith((".npz", ".npy"))),
        )

    @property
    def name(self) -> str:
        """Name of the source."""
        return super().name or {"digits": "captioned digits", "emoji": "Noto emoji"}[self.source]

    @property
    def draws_scenes(self) -> bool:
        """Whether the images are scenes of digits."""
        return self.is_embedded and self.source == "digits"

    @property
    def canvas(self) -> int:
        """Height and width of scenes."""
        return CANVAS if self.size == "auto" else self.size

    def check_tokenizer(self, spec: Any) -> None:
        """Rejects a run's spec whose captions have another kind of tokenizer; see `check_kind`."""
        if spec.caption is not None:
            check_kind(spec.caption.tokenizer, self.tokenizer)

    def fitting(self: Source, spec: Any) -> Source:
        """Returns these settings with the size, channels, tokenizer and longest caption of an earlier run.

        Digits of scenes keep their share of the canvas.
        """
        image, caption = spec.image, spec.caption
        changes: dict[str, Any] = {"channels": image.channels}
        if image.height == image.width:
            changes |= {"size": image.height}
            if self.draws_scenes:
                changes |= {"digit_size": self.digit_size * image.height // self.canvas}
        if caption is not None:
            changes |= {"tokenizer": caption.tokenizer.kind, "caption_length": caption.length}
        return replace(self, **changes)

    def captioned_set(
        self, *, batch_size: int, seed: int, spec: ImageSpec | None = None, split: Split = "dev"
    ) -> CaptionedSet | SceneSet:
        """Reads the images and their captions and splits them; see `Data.open`."""
        if self.draws_scenes:
            return self._scenes(batch_size, seed, spec, split)
        images = self.image_set(
            batch_size=batch_size, seed=seed, spec=None if spec is None else replace(spec, caption=None), split=split,
            augment=self.augment,
        )  # fmt: skip
        train, *rest = ([*chain.from_iterable(part.captions)] for part in images.parts.each)
        caption = self._caption_spec(spec, train, [*chain.from_iterable(rest)])
        return CaptionedSet(
            **{name: getattr(images, name) for name in ("parts", "batch_size", "seed", "name", "skipped", "split")},
            augmentation=self.augment,
            spec=replace(images.spec, caption=caption),
            encoded=images.parts.map(lambda part: encode_captions(caption, part.captions)),
            caption_dropout=self.caption_dropout,
        )

    def _scenes(self, batch_size: int, seed: int, spec: ImageSpec | None, split: Split) -> SceneSet:
        caption = self._caption_spec(spec, [*grammar.examples()], [])
        found = SceneSpec(self.canvas, self.canvas, 3, caption=caption)
        if spec is not None and vars(replace(spec, caption=caption)) != vars(found):
            raise UserError(
                f"captioned digits are {self.canvas}x{self.canvas} in colour without classes, and the run's images are "
                f"{spec.width}x{spec.height} with {spec.channels} channels and {len(spec.classes)} classes: give "
                f"--data.size {spec.height} if that fits, or other data"
            )
        return SceneSet(
            found, self.digit_size, self.held_out, self.held_out_scenes, self.caption_dropout, batch_size, seed, split
        )

    def _caption_spec(self, spec: ImageSpec | None, train: list[str], held_out: list[str]) -> CaptionSpec:
        """Returns the spec of the captions: that of an earlier run, or one made from them."""
        if self.tokenizer == "words":
            train, held_out = ([text.lower() for text in texts] for texts in (train, held_out))
        earlier = None if spec is None else spec.caption
        return earlier or CaptionSpec(self.tokenizer_of(None, train, held_out), self.caption_length)

    def pictures(
        self, split: Split = "dev", mixed: tuple[int, int] | Literal["auto"] = "auto"
    ) -> Parts[LabelledImages]:
        """Reads the images of each part and their captions; see `ImageFiles.pictures`."""
        if self.is_embedded:
            return split_emoji(self._fitting(self.background or "white", mixed), self.held_out, split)
        return super().pictures(split, mixed)

    def _read(
        self, path: str, tfds_split: str, mixed: tuple[int, int] | Literal["auto"]
    ) -> tuple[LabelledImages, LabelledImages | None]:
        if self.tfds:
            fitting = self._fitting(self.background or "white", mixed)
            captions_of = partial(captions_of_record, field=self.caption_field, name=self.tfds)
            pictures = read_tfds(self.tfds, tfds_split, self.tfds_dir, fitting, captions_of)
            return keep_captioned(pictures, f"{self.tfds} {tfds_split}"), None
        pictures, _ = super()._read(path, tfds_split, mixed)
        if is_picture(path):
            (found,) = captions_of_folder(str(Path(path).parent), (Path(path).name,), self.caption_field)
            return replace(pictures, captions=(found or ("",),)), None
        captions = captions_of_folder(path, pictures.names, self.caption_field)
        return keep_captioned(replace(pictures, captions=captions), path), None

    def excerpt(self: Source, folder: Path) -> Source:
        """Returns these settings for 96 training images of 16x16 pixels, or small scenes; see `Data.excerpt`."""
        if self.draws_scenes:
            return replace(self, size=16, digit_size=7, held_out_scenes=64)
        pictures = self.pictures().train
        records = []
        for i, image in enumerate(pictures.images[:EXCERPT]):
            (folder / f"{i}.png").write_bytes(Image(image).png())
            records += [{"file_name": f"{i}.png", "text": text} for text in dict.fromkeys(pictures.captions[i])]
        (folder / METADATA[0]).write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
        alone = replace(self, tfds="", held_out_path="", test_path="", caption_field="text")
        return replace(alone, path=str(folder), size=self._pixels or 16)


@dataclass(frozen=True)
class CaptionedImages(CaptionedSource):
    """Captioned images for models of images; see `CaptionedSource`."""

    codec: str = ""
    """The run directory of a codec, an image VAE's or a VQ-VAE's; the data are its latents, for diffusion models and
    flows. Empty: images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self, "data.", ("augment", "left out with data.codec", not self.codec or self.augment == NO_AUGMENTATION)
        )

    def fitting(self, spec: Any) -> "CaptionedImages":
        """Returns these settings with the size, channels, tokenizer and longest caption of an earlier run."""
        return super().fitting(spec.image)

    def open(
        self,
        *,
        length: int | None,
        batch_size: int,
        seed: int,
        spec: ImageSpec | LatentSpec | None = None,
        split: Split = "dev",
        codec: Coder | None = None,
    ) -> CaptionedSet | SceneSet | CaptionedLatents:
        """Reads the images and their captions and splits them; see `Data.open`.

        `caption_length` and not `length` is the longest caption.
        """
        kind = None if spec is None else spec.image
        images = self.captioned_set(batch_size=batch_size, seed=seed, spec=kind, split=split)
        if codec is None:
            return images
        return captioned_latents(images, codec, self.codec, spec if isinstance(spec, LatentSpec) else None)

"""Captions of one's own images: in `metadata.jsonl` or `metadata.csv`, in text files beside them, or in TFDS."""

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.errors import UserError
from zoo.data.images.files import LabelledImages
from zoo.data.sources import numbered_lines, read_every_line

log = logging.getLogger("zoo")

METADATA = ("metadata.jsonl", "metadata.csv")
"""Files of captions, in the format of Hugging Face's `imagefolder`."""

FILE_NAME = "file_name"
"""The field that names an image, relative to the folder of the metadata."""

NAMED = 5
"""Maximum number of images that a message names."""

Captions = tuple[tuple[str, ...], ...]


def captions_of_folder(folder: str, names: tuple[str, ...], field: str) -> Captions:
    """Returns the captions of images in a folder; some may have none.

    They are those in metadata files of the folder and its subfolders, and the lines of `x.txt` beside `x.png`.

    Args:
        folder: the folder.
        names: the images' paths in it, with forward slashes.
        field: the field or column of the caption in metadata.

    Raises:
        UserError: metadata lacks a column, is no JSON or CSV, or names a file that does not exist.
    """
    root = Path(folder).expanduser()
    found: dict[str, list[str]] = {name: [] for name in names}
    for file in sorted(path for name in METADATA for path in root.rglob(name)):
        for where, record in _records(file, field):
            image = file.parent / str(record[FILE_NAME])
            if not image.is_file():
                raise UserError(f"{where} names {record[FILE_NAME]!r}, and there is no such file in {file.parent}")
            name = Path(os.path.relpath(image, root)).as_posix()
            found.setdefault(name, []).extend(_texts(record[field], f"field {field!r} in {where}"))
    for name in names:
        beside = (root / name).with_suffix(".txt")
        if beside.is_file() and beside.read_bytes().strip():
            found[name].extend(_clean(read_every_line(str(beside))))
    return tuple(tuple(found[name]) for name in names)


def _records(file: Path, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the records of a metadata file that name an image and its caption, each after its name for errors."""
    records = _csv_records(file) if file.suffix == ".csv" else _json_records(file)
    for where, record in records:
        for name in (FILE_NAME, field):
            if name not in record:
                other = "" if name == FILE_NAME else "; --data.caption-field names another"
                raise UserError(f"{where} has no field {name!r}: it has {', '.join(map(str, record))}{other}")
        yield where, record


def _json_records(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, line in numbered_lines(file):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is a {type(record).__name__}; it must be an object with {FILE_NAME!r}")
        yield where, record


def _csv_records(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO("\n".join(read_every_line(str(file)))), strict=True)
    try:
        for record in reader:
            if None in record or None in record.values():
                raise UserError(f"line {reader.line_num} of {file} has more or fewer fields than the first line")
            yield f"line {reader.line_num} of {file}", record
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {file} is not CSV: {error}") from None


def captions_of_record(record: Mapping[str, Any], field: str, name: str) -> tuple[str, ...]:
    """Returns the captions of a TFDS record: a text, a sequence of texts, or one inside a feature, as `captions/text`.

    Raises:
        UserError: there is no such feature, or it holds other values.
    """
    value: Any = record
    for key in field.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(
                f"TFDS set {name!r} has no feature {field!r}: it has {', '.join(record)}; --data.caption-field names "
                "another"
            )
        value = value[key]
    return tuple(_texts(value, f"feature {field!r} of TFDS set {name!r}"))


def _texts(value: Any, what: str) -> list[str]:
    """Returns one text or a sequence of texts as a list; null is none."""
    values = [] if value is None else [value] if isinstance(value, str | bytes) else value
    if not isinstance(values, list | tuple | np.ndarray) or not all(isinstance(text, str | bytes) for text in values):
        raise UserError(f"{what} is {str(value)[:40]!r}; it must be a text or a list of texts")
    return _clean(text.decode() if isinstance(text, bytes) else text for text in values)


def _clean(texts: Iterable[str]) -> list[str]:
    """Returns texts with single spaces, without empty ones."""
    return [text for text in (" ".join(text.split()) for text in texts) if text]


def keep_captioned(pictures: LabelledImages, name: str) -> LabelledImages:
    """Returns the images that have a caption; the others are counted and named in the log.

    Raises:
        UserError: none has one.
    """
    places = np.array([i for i, captions in enumerate(pictures.captions) if captions], np.int64)
    missing = [i for i, captions in enumerate(pictures.captions) if not captions]
    if not len(places):
        raise UserError(
            f"none of the {len(missing)} pictures in {name} has a caption: give a {' or '.join(METADATA)} with "
            f"{FILE_NAME!r} and the caption, or x.txt beside x.png"
        )
    if missing:
        named = [pictures.names[i] if pictures.names else f"number {i}" for i in missing[:NAMED]]
        log.warning(
            "%d of %d pictures in %s have no caption and are left out: %s%s",
            len(missing), len(pictures.captions), name, ", ".join(named), ", ..." * (len(missing) > NAMED),
        )  # fmt: skip
    return pictures.take(places) if missing else pictures

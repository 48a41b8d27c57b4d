"""Where documents come from: the embedded plays, text files, JSON lines, and TensorFlow Datasets."""

import glob
import json
import lzma
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from zoo.core.errors import UserError

HELD_OUT_PLAYS = ("Macbeth", "Twelfth Night")


def read_plays() -> dict[str, str]:
    """Shakespeare's 38 plays by title; `embedded/README.md` says where they come from."""
    packed = (resources.files("zoo.data") / "embedded" / "shakespeare.jsonl.xz").read_bytes()
    plays = [json.loads(line) for line in lzma.decompress(packed).splitlines()]
    return {play["title"]: play["text"] for play in plays}


def read_documents(path: str, field: str) -> list[str]:
    """Reads a UTF-8 text file (one document), a `.jsonl` file (one a line, its `field`), or all files of a glob.

    Texts are kept as they are, line ends too; a byte order mark is dropped, and so are documents that are empty.

    Raises:
        UserError: nothing is there, or it cannot be read as that.
    """
    return [text for file in _files(path) for text in _documents(file, field) if text]


def _files(path: str) -> list[Path]:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{path} is a folder: give a file, or a glob such as '{file}/*.txt'")
    if file.exists():
        return [file]
    if glob.has_magic(path):
        found = sorted(Path(name) for name in glob.glob(str(file), recursive=True))
        files = [name for name in found if name.is_file()]
        if not files:
            raise UserError(f"no file matches {path}: give the path of a UTF-8 text file, or a glob that matches some")
        return files
    raise UserError(f"there is no file {path}: give the path of a UTF-8 text file, or a glob such as 'texts/*.txt'")


def _documents(file: Path, field: str) -> Iterator[str]:
    text = _read_text(file)
    if not text.strip():
        raise UserError(f"{file} is empty: give a file with text in it")
    if file.suffix != ".jsonl":
        yield text
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _field_of(line, field, f"line {number} of {file}")


def _read_text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}): convert it to UTF-8"
        ) from None


def _field_of(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(record, dict) or field not in record:
        names = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}, not an object"
        raise UserError(f"{where} has no field {field!r}: it has {names}")
    if not isinstance(record[field], str):
        raise UserError(f"field {field!r} in {where} is not text but {json.dumps(record[field])[:40]}")
    if not _is_unicode(record[field]):
        raise UserError(f"field {field!r} in {where} has half a surrogate pair: write the character it is part of")
    return record[field]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_tfds(name: str, split: str, folder: str, field: str) -> list[str]:
    """Reads a text feature of a prepared TensorFlow Datasets set, without TensorFlow and without downloading.

    Args:
        name: of the set, such as "lm1b" or "wiki40b/en:1.3.0"; its files are in the `array_record` format.
        split: such as "train" or "train[:10%]".
        folder: where prepared sets are; "" for TFDS's own place.
        field: the feature that holds the text.

    Raises:
        UserError: there is no such set, split or feature there.
    """
    records = open_tfds(name, split, folder)
    texts = []
    for record in records:
        if field not in record or not isinstance(record[field], bytes | str):
            texts_in = [key for key, value in record.items() if isinstance(value, bytes | str)]
            raise UserError(f"TFDS set {name!r} has no text feature {field!r}: it has {', '.join(texts_in) or 'none'}")
        value = record[field]
        texts.append(value.decode() if isinstance(value, bytes) else value)
    return [text for text in texts if text]


def open_tfds(name: str, split: str, folder: str) -> Any:
    """The records of a split of a prepared TensorFlow Datasets set, as a sequence.

    Raises:
        UserError: there is no such set or split there.
    """
    import tensorflow_datasets as tfds

    place = folder or tfds.core.constants.DATA_DIR
    try:
        source = tfds.data_source(name, split=split, data_dir=folder or None, download=False)
        iter(source)
    except Exception as error:  # TFDS has no common base for what can be wrong with a name, a folder or a split
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"TFDS has no set {name!r} with split {split!r} prepared as array_record in {place}: {reason}"
        ) from None
    return source

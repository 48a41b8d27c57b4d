"""Text sources: the embedded texts, text files, JSON lines, and TensorFlow Datasets."""

import glob
import json
import lzma
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from zoo.core.errors import UserError

DEV_PLAYS = ("Othello", "As You Like It")
TEST_PLAYS = ("Macbeth", "Twelfth Night")


def read_plays() -> dict[str, str]:
    """Returns Shakespeare's 38 plays by title; see `zoo/data/embedded/README.md` for their origin."""
    plays = [json.loads(line) for line in _embedded_lines("shakespeare.jsonl.xz")]
    return {play["title"]: play["text"] for play in plays}


def read_wordnet(part: Literal["definitions", "examples"]) -> list[str]:
    """Returns WordNet's 117,791 definitions or 48,571 usage examples; see `zoo/data/embedded/README.md`."""
    return _embedded_lines(f"wordnet_{part}.txt.xz")


def read_cmudict() -> list[tuple[str, str]]:
    """Returns CMUdict's 117,493 words of letters only, with their 125,855 pronunciations.

    A pronunciation is phones separated by spaces, vowels with their stress (0, 1 or 2). A word with several
    pronunciations occurs once for each. See `zoo/data/embedded/README.md`.
    """
    pairs = []
    for line in _embedded_lines("cmudict.txt.xz"):
        entry, phones = line.partition("#")[0].split(maxsplit=1)
        word = entry.partition("(")[0]  # alternative pronunciations are numbered: word(2)
        if word.isalpha():
            pairs.append((word, phones.strip()))
    return pairs


def read_pairs(path: str, fields: tuple[str, str]) -> list[tuple[str, str]]:
    """Reads UTF-8 files with a source, a tab and a target per line, or `.jsonl` files; `path` may be a glob.

    White space around source and target is stripped; blank lines are skipped.

    Args:
        path: of the files.
        fields: names of the source and target fields in JSON lines.

    Raises:
        UserError: no file is found, or a file cannot be read in this format; the message names the line.
    """
    return [_pair(line, fields, where, file) for file in _files(path) for where, line in numbered_lines(file)]


def _pair(line: str, fields: tuple[str, str], where: str, file: Path) -> tuple[str, str]:
    if file.suffix == ".jsonl":
        parts = [_field_of(line, field, where) for field in fields]
    else:
        parts = line.split("\t")
        if len(parts) != 2:
            count = f"{len(parts)} field{'s' * (len(parts) > 1)}"
            raise UserError(f"{where} has {count} between tabs: write a source, one tab and a target")
    source, target = (part.strip() for part in parts)
    for name, text in (("source", source), ("target", target)):
        if not text:
            raise UserError(f"{where} has an empty {name}: write one, or take the line out")
    return source, target


def _embedded_lines(name: str) -> list[str]:
    packed = (resources.files("zoo.data") / "embedded" / name).read_bytes()
    return lzma.decompress(packed).decode().removesuffix("\n").split("\n")


def read_documents(path: str, field: str) -> list[str]:
    """Reads a UTF-8 text file (one document), a `.jsonl` file (`field` of each line), or all files of a glob.

    Texts are unchanged, including line ends; byte order marks and empty documents are dropped.

    Raises:
        UserError: no file is found, or a file cannot be read in this format.
    """
    return [text for file in _files(path) for text in _documents(file, field) if text]


def read_lines(path: str, field: str) -> list[str]:
    """Reads UTF-8 files with one text per line, or `.jsonl` files (`field` of each line); `path` may be a glob.

    White space around a text is stripped; blank lines are skipped.

    Raises:
        UserError: no file is found, or a file cannot be read in this format; the message names the line.
    """
    return [text for file in _files(path) for text in map(str.strip, _texts(file, field)) if text]


def read_every_line(path: str) -> list[str]:
    """Returns all lines of one UTF-8 file, including blank ones; a final newline does not start another line.

    Raises:
        UserError: the file cannot be read, is not UTF-8 text, or is empty.
    """
    return [line.removesuffix("\r") for line in _read_text(Path(path).expanduser()).removesuffix("\n").split("\n")]


def _texts(file: Path, field: str) -> Iterator[str]:
    if file.suffix == ".jsonl":
        return _documents(file, field)
    return (line for _, line in numbered_lines(file))


def numbered_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yields the lines of a file that are not blank, each after its name for errors, such as "line 3 of FILE".

    Raises:
        UserError: the file cannot be read, is not UTF-8 text, or is empty.
    """
    for number, line in enumerate(_read_text(file).split("\n"), start=1):
        if line.strip():
            yield f"line {number} of {file}", line.removesuffix("\r")


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
    if file.suffix == ".jsonl":
        yield from (_field_of(line, field, where) for where, line in numbered_lines(file))
    else:
        yield _read_text(file)


def _read_text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file} is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}, in line {line}): "
            "convert it to UTF-8"
        ) from None
    if not text.strip():
        raise UserError(f"{file} is empty: give a file with text in it")
    return text


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
        name: name of the set, such as "lm1b" or "wiki40b/en:1.3.0"; its files are in the `array_record` format.
        split: such as "train" or "train[:10%]".
        folder: folder of prepared sets; "" for TFDS's default.
        field: the feature that holds the text.

    Raises:
        UserError: there is no such set, split or feature.
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
    """Returns the records of a split of a prepared TensorFlow Datasets set, as a sequence.

    Raises:
        UserError: there is no such set or split.
    """
    import tensorflow_datasets as tfds

    place = folder or tfds.core.constants.DATA_DIR
    try:
        source = tfds.data_source(name, split=split, data_dir=folder or None, download=False)
        iter(source)
    except Exception as error:  # TFDS has no common base class for a wrong name, folder or split
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"TFDS has no set {name!r} with split {split!r} prepared as array_record in {place}: {reason}"
        ) from None
    return source

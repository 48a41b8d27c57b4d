"""Reads and writes `tokenizer.json`, Hugging Face's tokenizer file in the folder of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from zoo.core.errors import UserError
from zoo.data import byte_pairs, word_pieces
from zoo.data.specs import SegmentSpec
from zoo.data.tokenizers import BPE, GPT2, Bytes, Characters, Tokenizer
from zoo.data.word_pieces import CLASSIFY, MASK, PADDING, WordPiece

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def read_tokenizer(folder: Path, end_of_text: Any) -> Tokenizer:
    """Reads a byte-level BPE (GPT-2's own as `GPT2`), a WordPiece, or a vocabulary of single characters.

    Args:
        folder: the folder with tokenizer.json.
        end_of_text: the id that ends a text, `eos_token_id` in config.json; the first id of a list is used. Ignored
            for a WordPiece, which ends with [SEP].

    Raises:
        UserError: the file is missing, broken or of another kind, or has no token with that id.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {FILE}; save one there by transformers' AutoTokenizer, save_pretrained")
    try:
        text = path.read_text(encoding="utf-8")
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{path} is not a {FILE} of the tokenizers library: {error}") from None
    if isinstance(library.model, tokenizers.models.WordPiece):
        return WordPiece(text)
    end_id = end_of_text[0] if isinstance(end_of_text, list) and end_of_text else end_of_text
    end = library.id_to_token(end_id) if isinstance(end_id, int) and 0 <= end_id < 2**32 else None
    if end is None:
        raise UserError(f"config.json has eos_token_id = {end_of_text!r}, which is no token in {path}")
    if isinstance(library.model, tokenizers.models.WordLevel):
        return _characters(library, end, path)
    tokenizer = BPE(text, end)
    return GPT2() if _is_gpt2(tokenizer) else tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, segments: SegmentSpec | None = None) -> None:
    """Writes a tokenizer so that transformers' `AutoTokenizer.from_pretrained(folder)` encodes texts to the same ids.

    Args:
        folder: an existing folder.
        tokenizer: the tokenizer.
        segments: the spec with the special tokens' ids, if rows are [CLS] a [SEP] b [SEP]; otherwise None.
    """
    library = _library(tokenizer)
    end = library.id_to_token(tokenizer.end_of_text)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if segments is None:
        settings |= {"bos_token": end, "eos_token": end}
    else:
        library = tokenizers.Tokenizer.from_str(library.to_str())  # a copy: `_library` may be cached
        library.add_special_tokens([PADDING, CLASSIFY, MASK])
        ids = [library.token_to_id(token) for token in (PADDING, CLASSIFY, end, MASK)]
        assert tuple(ids) == segments.special
        ends = (end, segments.separate), (CLASSIFY, segments.classify)
        library.post_processor = tokenizers.processors.BertProcessing(*ends)
        settings |= {"pad_token": PADDING, "cls_token": CLASSIFY, "sep_token": end, "mask_token": MASK}
    (folder / FILE).write_text(library.to_str(pretty=True) + "\n", encoding="utf-8")
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _library(tokenizer: Tokenizer) -> Any:
    """The equivalent tokenizer of the `tokenizers` library."""
    if isinstance(tokenizer, BPE):
        return byte_pairs.from_json(tokenizer.json, tokenizer.end_of_text_token)
    if isinstance(tokenizer, GPT2):
        return byte_pairs.gpt2()
    if isinstance(tokenizer, WordPiece):
        return word_pieces.library(tokenizer.json)
    if isinstance(tokenizer, Bytes):
        library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=byte_pairs.byte_of_symbol(), merges=[]))
        library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = tokenizers.decoders.ByteLevel()
    elif isinstance(tokenizer, Characters):
        library = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(tokenizer.characters)}))
        library.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        library.decoder = tokenizers.decoders.Fuse()
    else:
        raise UserError(f"a {type(tokenizer).__name__} tokenizer cannot be written as {FILE}")
    library.add_special_tokens([byte_pairs.END_OF_TEXT])
    return library


def _characters(library: Any, end: str, path: Path) -> Characters:
    """The alphabet of a word-level vocabulary of single characters, with consecutive ids and end-of-text last."""
    ids = library.get_vocab(with_added_tokens=True)
    words = sorted(ids, key=ids.__getitem__)
    if words[-1] != end or [ids[word] for word in words] != list(range(len(words))) or max(map(len, words[:-1])) > 1:
        raise UserError(f"{path} is a vocabulary of words; byte-level BPE and single characters can be read")
    return Characters("".join(words[:-1]))


def _is_gpt2(tokenizer: BPE) -> bool:
    """Whether ids, merges and pre-tokenizer are GPT-2's."""
    if tokenizer.pieces != GPT2().pieces or tokenizer.end_of_text != GPT2().end_of_text:
        return False
    ours, theirs = (json.loads(_library(each).to_str()) for each in (GPT2(), tokenizer))
    return all(
        theirs[part].get(name) == ours[part][name]
        for part, name in (
            ("model", "merges"),
            ("pre_tokenizer", "type"),
            ("pre_tokenizer", "add_prefix_space"),
            ("pre_tokenizer", "use_regex"),
        )
    )

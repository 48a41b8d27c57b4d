import dataclasses
import json

import numpy as np
import pytest

from zoo.core.errors import UserError
from zoo.data import byte_pairs
from zoo.data.tokenized import alphabet
from zoo.data.tokenizers import BPE, GPT2, Bytes, Characters

ODD = "Ünï ☃ 😀👩‍👩‍👧 漢字\r\n\0\ttwo  spaces\n\n <|endoftext|> don't 1234"
BPE_300 = BPE.train([ODD * 3], 300)
TOKENIZERS = [Characters(alphabet([ODD])), Bytes(), BPE_300, GPT2()]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
@pytest.mark.parametrize(
    "text", [ODD, "", "\n", "漢" * 50, "<|endoftext|>"], ids=["odd", "empty", "line", "cjk", "special"]
)
def test_round_trip_and_lengths(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())
    assert tokenizer.character_lengths()[ids].sum() == len(text)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
def test_end_of_text_stands_for_no_text(tokenizer):
    end = tokenizer.end_of_text
    assert 0 <= end < tokenizer.vocab_size == len(tokenizer.byte_lengths())
    assert tokenizer.byte_lengths()[end] == tokenizer.character_lengths()[end] == 0
    assert tokenizer.decode([end, *tokenizer.encode("two"), end]) == "two"


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
def test_fields_are_plain_json_and_make_the_same_tokenizer(tokenizer):
    fields = {field.name: getattr(tokenizer, field.name) for field in dataclasses.fields(tokenizer)}
    again = type(tokenizer)(**json.loads(json.dumps(fields)))
    assert again == tokenizer
    np.testing.assert_array_equal(again.encode(ODD), tokenizer.encode(ODD))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
def test_streaming_gives_whole_characters_only(tokenizer):
    push = tokenizer.stream()
    pushed = [push([i]) for i in tokenizer.encode(ODD)]
    assert "".join(pushed) == ODD
    assert "�" not in "".join(pushed)


def test_unfinished_character_is_held_back_until_final():
    push = Bytes().stream()
    first, _ = "é".encode()
    assert push([first]) == ""
    assert push([], True) == "�"
    assert Bytes().decode([first]) == "�"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        (" Hello", [18435]),
        ("The quick brown fox jumps over the lazy dog.", [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13]),
        ("\n\n", [628]),
    ],
)
def test_gpt2_ids(text, ids):
    assert GPT2().encode(text).tolist() == ids


def test_gpt2_special_tokens():
    assert (GPT2().end_of_text, GPT2().vocab_size) == (50256, 50257)
    assert byte_pairs.gpt2().token_to_id("<|endoftext|>") == 50256


def test_long_text_encodes_as_if_whole():
    text = "".join(f"word{i}, and  some {ODD}\nHe said: 'tis {i}\n\n\nThen more.\n漢字。\n漢字\n" for i in range(500))
    assert len(list(byte_pairs._parts(text))) > 2
    assert GPT2().encode(text).tolist() == byte_pairs.gpt2().encode(text).ids


def test_bpe_training_is_repeatable_and_bounded():
    assert BPE.train([ODD * 3], 300) == BPE_300
    assert 257 <= BPE_300.vocab_size <= 300
    assert len(BPE_300.encode("漢字")) < len("漢字".encode())


def test_characters_names_what_it_lacks():
    with pytest.raises(
        UserError, match=r"2 characters, 'é' \(U\+00E9\), '😀' \(U\+1F600\).*its 3 characters are 'abc'"
    ):
        Characters("abc").encode("abécé😀")
    with pytest.raises(UserError, match=r"the text has 'd' \(U\+0064\), that"):
        Characters("abc").encode("d")


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda tokenizer: tokenizer.kind)
def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(UserError):
        tokenizer.encode("a\udc80")


def test_character_ids_are_places_in_the_alphabet():
    printable = "".join(map(chr, range(32, 127)))
    np.testing.assert_array_equal(Characters(printable).encode(printable[::-1]), np.arange(95)[::-1])
    assert alphabet(["ba", "cab"]) == "abc"


def test_bpe_with_another_end_of_text():
    fields = json.loads(BPE_300.json)
    fields["added_tokens"][0]["content"] = "<eos>"
    fields["model"]["vocab"]["<eos>"] = fields["model"]["vocab"].pop("<|endoftext|>")
    tokenizer = BPE(json.dumps(fields), "<eos>")
    assert tokenizer.end_of_text == 0
    assert tokenizer.decode(tokenizer.encode("a <eos> b")) == "a <eos> b"
    with pytest.raises(UserError, match=r"no token '<\|endoftext\|>'.*<eos>"):
        BPE(json.dumps(fields)).encode("a")


def test_other_models_are_refused():
    fields = json.loads(BPE_300.json)
    with pytest.raises(UserError, match="cannot be read"):
        BPE("{}").encode("a")
    with pytest.raises(UserError, match="byte-level BPE"):
        BPE(json.dumps(fields | {"decoder": None})).encode("a")
    with pytest.raises(UserError, match="space before every text"):
        BPE(json.dumps(fields | {"pre_tokenizer": fields["pre_tokenizer"] | {"add_prefix_space": True}})).encode("a")

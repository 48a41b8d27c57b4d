"""Sentences as rows: how they are read, split, turned into words and batched."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest

from zoo.core.data import Spec
from zoo.core.errors import UserError
from zoo.data.sources import read_wordnet
from zoo.data.specs import LineSpec
from zoo.data.text.sentences import Sentences, encode_lines
from zoo.data.tokenizers import Words
from zoo.harness.config import from_json, to_json

LENGTH, BATCH = 20, 4
TEXTS = [f"the {'old ' * (i % 9)}dog no {i}, it's here" for i in range(60)]


def open_sentences(settings, length=LENGTH, batch_size=BATCH, seed=0, spec=None, split="dev"):
    return settings.open(length=length, batch_size=batch_size, seed=seed, spec=spec, split=split)


def by_hash(texts):
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    return Sentences(path=str(path), held_out=0.2, vocabulary=100)


def held_out_texts(data):
    decode = data.spec.tokenizer.decode
    batches = map(data.held_out_at, range(data.held_out_batches))
    return [decode(row) for batch in batches for row in batch["tokens"][batch["valid"]]]


# ------------------------------------------------------------------------------------------------ words


def test_words_come_back_with_their_spaces():
    text = "It's (the  dog's) red-brown tail; 3 tails, \"or\n\tmore\"!"
    words = Words.learn([text], 100)
    assert words.decode(words.encode(text)) == " ".join(text.split())
    assert words.unknown not in words.encode(text)
    assert words.cut(text)[:5] == [" It", "'s", " (", "the", " dog"]


def test_the_most_frequent_words_are_known():
    words = Words.learn(["a a a b b c", "a b c d"], 4)
    assert words.words == (" a", " b")
    assert words.vocab_size == 4
    assert words.decode(words.encode("b c a")) == "b <unk> a"
    assert list(words.encode("e")) == [words.unknown]
    assert Words.learn(["x y z"], 5).words == (" x", " y", " z"), "of equals, the first in the alphabet"
    assert not len(words.encode("  \n"))


def test_streamed_words_are_running_text():
    words = Words.learn(["a small dog"], 10)
    push = words.stream()
    assert "".join(push([i]) for i in words.encode("small dog")) == " small dog"


def test_a_spec_of_words_survives_json():
    spec = LineSpec(Words.learn(TEXTS, 9))
    assert from_json(json.loads(json.dumps(to_json(spec))), Spec, "spec") == spec


def test_a_vocabulary_has_room_for_more_than_its_ends(settings):
    with pytest.raises(UserError, match="vocabulary 2 is too small for words: give at least 3"):
        open_sentences(dataclasses.replace(settings, vocabulary=2))


# -------------------------------------------------------------------------------------------------- rows


def test_a_row_is_a_sentence_between_two_ends(settings):
    data = open_sentences(settings)
    end = data.spec.tokenizer.end_of_text
    batch = data.batch_at(0)
    assert batch["tokens"].shape == (BATCH, LENGTH + 1)
    for tokens, length in zip(batch["tokens"], batch["length"], strict=True):
        assert tokens[0] == end
        np.testing.assert_array_equal(tokens[length - 1 :], end)
        assert end not in tokens[1 : length - 1]
        assert data.spec.tokenizer.decode(tokens).startswith("the ")


def test_sentences_are_split_by_their_text(settings):
    data = open_sentences(settings)
    assert (len(data.train), len(data.held_out), len(data.on("test").held_out)) == (48, 6, 6)
    epoch = [data.batch_at(step)["tokens"] for step in range(12)]
    trained = {row.tobytes() for tokens in epoch for row in tokens}
    assert len(trained) == 48, "an epoch visits every sentence"
    held_out = [
        {row.tobytes() for i in range(2) for row in data.on(split).held_out_at(i)["tokens"]}
        for split in ("dev", "test")
    ]
    assert not trained & held_out[0]
    assert not trained & held_out[1]
    assert [data.batch_at(step)["tokens"].tolist() for step in range(12, 24)] != [x.tolist() for x in epoch]


def test_batches_are_functions_of_seed_and_step(settings):
    one, other = open_sentences(settings), open_sentences(settings)
    for step in (5, 0, 90):
        np.testing.assert_array_equal(one.batch_at(step)["tokens"], other.batch_at(step)["tokens"])
    seeded = open_sentences(settings, seed=1)
    assert any((one.batch_at(step)["tokens"] != seeded.batch_at(step)["tokens"]).any() for step in range(3))


@pytest.mark.parametrize("at", ["batch_at", "held_out_at"])
def test_rows_are_part_of_the_global_batch(settings, at):
    data = open_sentences(settings)
    whole = getattr(data, at)(1)
    for rows in (slice(0, 2), slice(1, 4)):
        for name, part in getattr(data, at)(1, rows).items():
            np.testing.assert_array_equal(part, whole[name][rows])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_every_held_out_sentence_is_scored_once(settings, batch_size):
    data = open_sentences(settings, length=40, batch_size=batch_size)
    words = data.spec.tokenizer
    expected = sorted(words.decode(words.encode(text)) for text in TEXTS)
    trained = [words.decode(row) for row in data.train.rows(np.arange(len(data.train)), 41, words.end_of_text)[0]]
    assert sorted(trained + held_out_texts(data) + held_out_texts(data.on("test"))) == expected


def test_the_smallest_hashes_are_test_the_next_dev_in_their_order(settings, tmp_path):
    ranked = by_hash(TEXTS)
    for texts in (TEXTS, TEXTS[::-1]):
        (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
        data = open_sentences(dataclasses.replace(settings, tokenizer="bytes"), length=90)
        assert held_out_texts(data.on("test")) == ranked[:6]
        assert held_out_texts(data) == ranked[6:12]
        assert settings.sentences().train == [text for text in texts if text not in ranked[:12]]


def test_doubles_are_in_one_part(settings, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS + TEXTS[::2]), encoding="utf-8")
    parts = settings.sentences()
    for part in parts.each:
        assert sorted(part) == sorted([*set(part), *(set(part) & set(TEXTS[::2]))])
    assert sorted(itertools.chain(*parts.each)) == sorted(TEXTS + TEXTS[::2])


def test_definitions_for_test_are_those_of_the_hash_and_as_many_are_for_dev():
    parts = Sentences().sentences()
    definitions = read_wordnet("definitions")
    ranked = by_hash(set(definitions))
    assert len(ranked) == 116_919
    assert [len(set(part)) for part in parts.each] == [116_919 - 2 * 5846, 5846, 5846]
    assert set(parts.held_out["test"]) == set(ranked[:5846])
    assert set(parts.held_out["dev"]) == set(ranked[5846 : 2 * 5846])
    assert sum(map(len, parts.each)) == len(definitions)


def test_sentences_to_score_that_are_named_are_dev_and_test(settings, tmp_path):
    other = [f"sentence {i}" for i in range(7)]
    (tmp_path / "other.txt").write_text("\n".join(other))
    halved = dataclasses.replace(settings, held_out_path=str(tmp_path / "other.txt")).sentences()
    assert halved.train == TEXTS
    assert halved.held_out == {"test": by_hash(other)[:4], "dev": by_hash(other)[4:]}
    (tmp_path / "last.txt").write_text("the last")
    apart = dataclasses.replace(settings, test_path=str(tmp_path / "last.txt"))
    both = dataclasses.replace(apart, held_out_path=str(tmp_path / "other.txt")).sentences()
    assert (both.train, both.held_out) == (TEXTS, {"dev": by_hash(other), "test": ["the last"]})
    ranked = by_hash(TEXTS)
    assert apart.sentences().held_out == {"dev": ranked[:6], "test": ["the last"]}


def test_a_source_of_any_size_can_be_scored_whole(settings, tmp_path):
    spec = open_sentences(settings).spec
    (tmp_path / "texts.txt").write_text("the dog\n")
    data = open_sentences(settings, spec=spec, split="all")
    assert held_out_texts(data) == ["the dog"]
    assert "all of 1 sentences" in data.describe()
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    whole = open_sentences(dataclasses.replace(settings, tokenizer="bytes"), length=90, split="all")
    assert held_out_texts(whole) == by_hash(TEXTS)
    (tmp_path / "texts.txt").write_text("dog " * 30)
    with pytest.raises(UserError, match="no sentence of less than 20 tokens"):
        open_sentences(settings, spec=spec, split="all")


def test_sentences_that_are_too_long_are_left_out_and_counted(settings):
    words = Words.learn(TEXTS, 30)
    fitting = [text for text in TEXTS if len(words.encode(text)) < 12]
    assert 0 < len(fitting) < len(TEXTS)
    lines = encode_lines(words, TEXTS, 12)
    assert (len(lines), lines.too_long) == (len(fitting), len(TEXTS) - len(fitting))
    data = open_sentences(settings, length=12)
    assert len(data.train) + len(data.held_out) + len(data.on("test").held_out) == len(fitting)
    assert f"({lines.too_long} of 12 tokens or more left out)" in data.describe()
    assert max(data.batch_at(step)["length"].max() for step in range(20)) == 13


def test_a_runs_tokenizer_is_used_again(settings):
    spec = open_sentences(settings).spec
    again = open_sentences(dataclasses.replace(settings, vocabulary=9), spec=spec)
    assert again.spec is spec
    with pytest.raises(UserError, match=r"tokenizer is words, not bytes: give --data\.tokenizer words"):
        dataclasses.replace(settings, tokenizer="bytes").check_tokenizer(spec)


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
def test_other_tokenizers_cut_sentences_too(settings, kind):
    data = open_sentences(dataclasses.replace(settings, tokenizer=kind, vocabulary=270), length=80)
    assert set(held_out_texts(data)) < set(TEXTS)


def test_unknown_words_are_told(settings):
    data = open_sentences(dataclasses.replace(settings, vocabulary=3), length=40)
    for split, texts in (("test", by_hash(TEXTS)[:6]), ("dev", by_hash(TEXTS)[6:12])):
        ids = np.concatenate([data.spec.tokenizer.encode(text) for text in texts])
        assert f"{np.mean(ids == data.spec.tokenizer.unknown):.1%} of those in {split}" in data.on(split).describe()


# -------------------------------------------------------------------------------------------------- files


def test_wordnet_has_its_sentences():
    definitions, examples = read_wordnet("definitions"), read_wordnet("examples")
    assert (len(definitions), len(examples)) == (117_791, 48_571)
    assert "an entity that has physical existence" in definitions
    assert "she was able to program her computer" in examples
    assert all(text == text.strip() and text for text in definitions + examples)
    assert not any('"' in text for text in definitions + examples)


def test_json_lines_and_windows_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"s": " one two "}\n\n{"s": "three"}\n{"s": "four"}\n')
    (tmp_path / "b.txt").write_bytes(b"one two\r\nthree\r\nfour\r\n")
    read = [
        open_sentences(Sentences(path=str(tmp_path / name), field="s", held_out=0.5, tokenizer="bytes"), length=20)
        for name in ("a.jsonl", "b.txt")
    ]
    assert held_out_texts(read[0]) == held_out_texts(read[1])
    assert len(read[0].train) == len(read[1].train) == 1


def test_held_out_sentences_may_have_a_file_of_their_own(settings, tmp_path):
    (tmp_path / "other.txt").write_text("the dog\nold\n")
    settings = dataclasses.replace(settings, held_out_path=str(tmp_path / "other.txt"))
    data = open_sentences(settings, length=40)
    assert {*held_out_texts(data), *held_out_texts(data.on("test"))} == {"the dog", "old"}
    assert len(data.train) == len(TEXTS)
    (tmp_path / "other.txt").write_text("the dog\n")
    with pytest.raises(UserError, match=r"other.txt has 1 different sentence, too few for dev and test: give at .* 2"):
        open_sentences(settings, length=40)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("empty.txt", b" \n\n", r"empty\.txt is empty"),
        ("latin1.txt", b"fine\ncaf\xe9\n", r"not UTF-8 text \(byte 0xe9 at offset 8, in line 2\)"),
        (
            "one.txt",
            b"once\nonce\n",
            r"one\.txt has 1 different sentence, too few for train, dev and test: give at least 3",
        ),
        ("bad.jsonl", b'{"text": "fine"}\n{"txt": 1}\n', r"line 2 of .*bad\.jsonl has no field 'text'"),
        ("worse.jsonl", b'{"text": "fine"}\nnot json\n', r"line 2 of .*worse\.jsonl is not JSON"),
        (
            "long.txt",
            b"a b c d e f g h\na b c d e f g i\na b c d e f g j\n",
            r"no sentence to train on of less than 7 tokens",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=message):
        open_sentences(Sentences(path=str(tmp_path / name)), length=7)


def test_settings_that_do_not_fit(settings):
    with pytest.raises(UserError, match=r"held-out 1\.5 is not a share"):
        open_sentences(dataclasses.replace(settings, held_out=1.5))
    with pytest.raises(UserError, match=r"without a --data\.path"):
        open_sentences(Sentences(held_out_path="x.txt"))
    with pytest.raises(UserError, match="no context length"):
        open_sentences(settings, length=None)

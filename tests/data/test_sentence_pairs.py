"""Pairs of segments: what a row holds, where its second segment comes from, and what is refused."""

import json

import numpy as np
import pytest
from paths import REFERENCES

from zoo.core.errors import UserError
from zoo.data.sources import DEV_PLAYS, TEST_PLAYS, read_documents, read_plays
from zoo.data.specs import SegmentSpec
from zoo.data.text.sentence_pairs import SentencePairs, make_spec
from zoo.data.tokenizers import Bytes, Characters
from zoo.data.word_pieces import WordPiece

LENGTH, BATCH = 40, 16


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two documents that have no letter in common, and one that is held out; no line is there twice."""
    folder = tmp_path_factory.mktemp("documents")
    for name, letters in (("lower", "abcdefgh"), ("upper", "ABCDEFGH")):
        lines = [f"{a}{b}{c} {c}{b}{a}," for a in letters for b in letters for c in letters[:2]]
        (folder / f"{name}.txt").write_text("\n\n".join("\n".join(lines[i : i + 4]) for i in range(0, len(lines), 4)))
    (folder / "held.out").write_text("\n".join(f"{i:03d} {i * i:06d}" for i in range(200)))
    return {"path": str(folder / "*.txt"), "held_out_path": str(folder / "held.out")}


@pytest.fixture(scope="module")
def pairs(paths):
    return SentencePairs(**paths, tokenizer="characters").open(length=LENGTH, batch_size=BATCH, seed=0)


def segments(pairs, batch):
    """The texts (a, b) of each row, its frame checked."""
    spec, found = pairs.spec, []
    for tokens, segment, length in zip(batch["tokens"], batch["segment"], batch["length"], strict=True):
        row = tokens[:length].tolist()
        first, last = (i for i, token in enumerate(row) if token == spec.separate)
        assert row[0] == spec.classify
        assert last == length - 1
        assert (tokens[length:] == spec.padding).all()
        assert segment.tolist() == [0] * (first + 1) + [1] * (last - first) + [0] * (LENGTH - length)
        found.append((spec.tokenizer.decode(row[1:first]), spec.tokenizer.decode(row[first + 1 : last])))
    return found


def test_what_follows_follows_and_what_does_not_is_from_another_place_of_the_same_document(pairs, paths):
    texts, kinds = read_documents(paths["path"], "text"), []
    for step in range(12):
        batch = pairs.batch_at(step)
        for (a, b), follows in zip(segments(pairs, batch), batch["follows"], strict=True):
            (text,) = [text for text in texts if a in text]
            assert a == a.rstrip()
            end, begin = text.index(a) + len(a), text.index(b)
            assert begin == 0 or text[begin - 1] == "\n"
            assert text[: text.index(a)].endswith("\n") or text.startswith(a)
            assert text[end:begin].isspace() == bool(follows)
            if not follows:
                assert begin + len(b) <= text.index(a) or begin >= end + len(b)
            kinds.append(follows)
    assert 0.35 < np.mean(kinds) < 0.65


def test_neither_segment_is_short_and_lengths_tell_nothing(pairs):
    a, b, follows = [], [], []
    for step in range(40):
        batch = pairs.batch_at(step)
        first, second = zip(*segments(pairs, batch), strict=True)
        a += map(len, first)
        b += map(len, second)
        follows += batch["follows"].tolist()
    assert min(a) >= LENGTH // 4 - 3
    assert min(b) >= LENGTH // 4 - 3
    for sizes in (np.array(a), np.array(b)):
        real, other = (sizes[np.array(follows) == value] for value in (1, 0))
        spread = np.hypot(real.std() / len(real) ** 0.5, other.std() / len(other) ** 0.5)
        assert abs(real.mean() - other.mean()) < 4 * spread


def test_a_batch_is_a_function_of_seed_and_step(pairs, paths):
    again = SentencePairs(**paths, tokenizer="characters").open(length=LENGTH, batch_size=BATCH, seed=0)
    other = SentencePairs(**paths, tokenizer="characters").open(length=LENGTH, batch_size=BATCH, seed=1)
    whole, part = pairs.batch_at(3), again.batch_at(3, slice(4, 9))
    for name, value in whole.items():
        np.testing.assert_array_equal(value[4:9], part[name])
    assert (whole["tokens"] != other.batch_at(3)["tokens"]).any()
    assert (whole["tokens"] != pairs.batch_at(4)["tokens"]).any()


def test_every_line_begins_a_row_before_one_does_so_again(pairs):
    count = len(pairs.train.begins)
    batches = [pairs.batch_at(step) for step in range(-(-count // BATCH))]
    begins = [a[:8] for batch in batches for a, _ in segments(pairs, batch)][:count]
    assert len(set(begins)) == count


def test_held_out_rows_are_apart_half_of_them_follow_and_all_are_there_once(pairs):
    rows = [pairs.held_out_at(index) for index in range(pairs.held_out_batches)]
    valid = np.concatenate([batch["valid"] for batch in rows])
    follows = np.concatenate([batch["follows"] for batch in rows])[valid]
    assert abs(follows.sum() - len(follows) / 2) <= 0.5
    texts = [pair for batch in rows for pair in segments(pairs, batch)]
    numbers = [{line[:3] for line in a.split("\n")} for (a, _), real in zip(texts, valid, strict=True) if real]
    assert sum(map(len, numbers)) == len(set.union(*numbers))
    assert all(a[:3].isdecimal() for a, _ in texts)
    again = pairs.held_out_at(0, slice(2, 5))
    np.testing.assert_array_equal(again["tokens"], rows[0]["tokens"][2:5])


def test_windows_are_those_of_the_split_and_the_first_are_from_anywhere(pairs):
    found = {}
    for split in ("dev", "test"):
        data = pairs.on(split)
        batches = [data.held_out_at(index) for index in range(data.held_out_batches)]
        windows = [a for batch in batches for a, _ in np.array(segments(data, batch))[batch["valid"]]]
        found[split] = [int(a.lstrip()[:3]) for a in windows]
        assert f"{len(windows)} pairs in {split}" in data.describe()
        assert found[split] != sorted(found[split])
    assert max(found["dev"]) < 100 <= min(found["test"]), "the held-out document is halved"


def test_a_document_with_one_place_for_b_always_goes_on(tmp_path):
    (tmp_path / "short.txt").write_text("one\ntwo\nthree")
    source = {"path": str(tmp_path / "short.txt"), "held_out_path": str(tmp_path / "short.txt")}
    pairs = SentencePairs(**source, tokenizer="bytes").open(length=32, batch_size=8, seed=0)
    assert (pairs.batch_at(0)["follows"] == 1).all()


def test_one_line_is_cut_anywhere(tmp_path):
    (tmp_path / "line.txt").write_text("abcdefghijklmnopqrstuvwxyz" * 4)
    pairs = SentencePairs(path=str(tmp_path / "line.txt"), tokenizer="bytes").open(length=8, batch_size=8, seed=0)
    batch = pairs.batch_at(0)
    assert (batch["length"] == 8).all()
    assert (batch["segment"].sum(1) >= 2).all()


def test_special_tokens_come_after_all_others():
    assert make_spec(Characters("abc")) == SegmentSpec(Characters("abc"), padding=4, classify=5, mask=6)
    spec = make_spec(Bytes())
    assert (spec.separate, spec.vocab_size) == (256, 260)


@pytest.mark.parametrize(
    ("settings", "length", "named"),
    [({"tokenizer": "wordpiece"}, 40, "wordpiece"), ({}, 4, "at least 5"), ({"vocabulary": 3}, 40, "257")],
)
def test_what_makes_no_pairs_is_named(paths, settings, length, named):
    with pytest.raises(UserError, match=named):
        SentencePairs(**paths, **settings).open(length=length, batch_size=2, seed=0)


def test_a_split_without_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(UserError, match="two tokens"):
        SentencePairs(path=str(tmp_path / "a.txt"), tokenizer="bytes").open(length=8, batch_size=2, seed=0)


def test_a_run_with_another_tokenizer_is_refused(pairs):
    with pytest.raises(UserError, match=r"--data\.tokenizer characters"):
        SentencePairs(tokenizer="bpe").check_tokenizer(pairs.spec)


def test_the_default_has_two_plays_for_dev_and_two_for_test():
    parts, plays = SentencePairs().documents(), read_plays()
    assert parts.held_out["dev"] == [plays[title] for title in DEV_PLAYS]
    assert parts.held_out["test"] == [plays[title] for title in TEST_PLAYS]
    assert len(parts.train) == 34


def test_word_pieces_of_a_text():
    folder = REFERENCES / "bert"
    tokenizer = WordPiece((folder / "tokenizer.json").read_text())
    for case in json.loads((folder / "expected.json").read_text())["encoded"]:
        assert tokenizer.encode(case["text"]).tolist() == case["ids"]
    assert tokenizer.decode(tokenizer.encode("The  quick\nFOX jumps")) == "the quick fox jumps"
    assert 4 not in tokenizer.encode("[MASK]").tolist()
    spec = make_spec(tokenizer)
    assert spec.special == (0, 2, 3, 4)
    assert spec.vocab_size == tokenizer.vocab_size
    with pytest.raises(UserError, match="BPE"):
        WordPiece(json.dumps(json.loads((folder.parent / "gpt2" / "tokenizer.json").read_text()))).encode("a")

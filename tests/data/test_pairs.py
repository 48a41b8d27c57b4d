"""Pairs of sources and targets: CMUdict, files, the split by source, and batches of similar length."""

import hashlib
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from zoo.core.errors import UserError
from zoo.data.pairs.dataset import Pairs, encode_pairs, split_pairs
from zoo.data.sources import read_cmudict
from zoo.data.tokenizers import Words

LENGTH, BATCH = 9, 4


def open_pairs(settings, length=LENGTH, batch_size=BATCH, seed=0, spec=None, split="dev"):
    return settings.open(length=length, batch_size=batch_size, seed=seed, spec=spec, split=split)


def three_parts(pairs, dev, test):
    """The pairs of train, dev and test."""
    parts = split_pairs(pairs, dev, test)
    return parts.train, parts.held_out["dev"], parts.held_out["test"]


@pytest.fixture
def pairs():
    """Thirty sources of 1 to 6 letters, every fifth with two targets."""
    made = [
        ("abcdef"[: 1 + i % 6] + "xyz"[i % 3] * (i // 6 % 3), f"{i % 5} {i % 4}" + " C" * (i % 4)) for i in range(30)
    ]
    return made + [(source, f"C {target}") for source, target in made[::5]]


@pytest.fixture
def file(pairs, tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs), encoding="utf-8")
    return Pairs(path=str(path), dev=0.2, test=0.2)


def texts_of(data, batch):
    """The pairs in a batch's valid rows."""
    spec, found = data.spec, []
    for row in np.flatnonzero(batch["valid"]):
        source = batch["source"][row][: batch["source_length"][row]]
        target = batch["target"][row][: batch["target_length"][row]]
        assert source[-1] == spec.source.end_of_text
        assert target[0] == target[-1] == spec.target.end_of_text
        for side, tokens, name in ((spec.source, source, "source"), (spec.target, target, "target")):
            assert (batch[name][row][len(tokens) :] == side.end_of_text).all()
        found.append((spec.source.decode(source[:-1]), spec.target.decode(target[1:-1])))
    return found


def test_cmudict_is_words_of_letters_with_their_pronunciations():
    pairs = read_cmudict()
    words = {word for word, _ in pairs}
    assert (len(words), len(pairs)) == (117_493, 125_855)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert [phones for word, phones in pairs if word == "read"] == ["R EH1 D", "R IY1 D"]
    assert ("aalborg", "AO1 L B AO0 R G") in pairs  # where a remark follows
    train, dev, test = three_parts(pairs, 0.05, 0.05)
    ranked = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    assert list(dict(test)) == ranked[:5875]
    assert list(dict(dev)) == ranked[5875 : 2 * 5875]
    sizes = [len({word for word, _ in part}) for part in (train, dev, test)]
    assert sizes == [117_493 - 2 * 5875, 5875, 5875]
    phones = Words.learn((phones for _, phones in train), 8000)
    assert phones.vocab_size == 69 + 2
    assert phones.decode(phones.encode("HH AH0 L OW1")) == "HH AH0 L OW1"


def test_no_source_is_in_two_parts_whatever_the_order(pairs):
    parts = three_parts(pairs, 0.2, 0.2)
    sources = [{source for source, _ in part} for part in parts]
    assert sum(map(len, sources)) == len({source for source, _ in pairs})
    assert sorted(itertools.chain(*parts)) == sorted(set(pairs))
    again = three_parts(pairs[::-1], 0.2, 0.2)
    assert [set(part) for part in again] == [set(part) for part in parts]
    many = {source for source, _ in pairs}
    assert len(sources[2]) == round(0.2 * len(many))
    assert all(three_parts([("a", "1"), ("b", "2"), ("c", "3")], 0.4, 0.4))


def test_an_epoch_has_every_pair_and_batches_of_similar_length(file, pairs):
    data = open_pairs(file)
    train, *_ = three_parts(pairs, 0.2, 0.2)
    orders = []
    for epoch in range(2):
        batches = [data.batch_at(epoch * data.batches + i) for i in range(data.batches)]
        seen = [pair for batch in batches for pair in texts_of(data, batch)]
        assert set(seen) == set(train)
        assert len(train) <= len(seen) < len(train) + BATCH
        orders.append(seen)
        # Cut from one sorted list, batches meet at their ends; one is filled up with the shortest pairs.
        sizes = [np.maximum(batch["source_length"], batch["target_length"] - 1) for batch in batches]
        spans = [(size.min(), size.max()) for size in sizes]
        uniform = sorted(sorted(spans, key=lambda span: span[1] - span[0])[:-1])
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(uniform))
        assert spans != sorted(spans)
    assert orders[0] != orders[1]


def test_batches_are_functions_of_seed_and_step(file):
    one, other, seeded = open_pairs(file), open_pairs(file), open_pairs(file, seed=1)
    for step in (5, 0, 31, 5):
        whole = one.batch_at(step)
        for name, value in other.batch_at(step).items():
            np.testing.assert_array_equal(whole[name], value)
            np.testing.assert_array_equal(one.batch_at(step, slice(1, 3))[name], value[1:3])
    assert any((one.batch_at(step)["source"] != seeded.batch_at(step)["source"]).any() for step in range(3))


def test_shapes_and_types(file):
    data = open_pairs(file)
    for batch in (data.batch_at(0), data.held_out_at(0)):
        assert batch["source"].shape == (BATCH, LENGTH)
        assert batch["target"].shape == (BATCH, LENGTH + 1)
        assert all(batch[name].dtype == np.int32 for name in batch.keys() - {"valid"})
        assert batch["valid"].dtype == bool


def test_every_held_out_pair_is_there_once(file, pairs):
    _, *held_out = three_parts(pairs, 0.2, 0.2)
    most = 0
    for split, part in zip(("dev", "test"), held_out, strict=True):
        data = open_pairs(file).on(split)
        batches = [data.held_out_at(index) for index in range(data.held_out_batches)]
        assert [pair for batch in batches for pair in texts_of(data, batch)] == part
        np.testing.assert_array_equal(np.concatenate([b["row"] for b in batches]), np.arange(BATCH * len(batches)))
        assert data.references() == {s: [t for other, t in part if other == s] for s, _ in part}
        most = max(most, *map(len, data.references().values()))
    assert most > 1


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["excerpt", "whole"])
def test_the_first_held_out_pairs_are_as_long_as_any(tmp_path, whole):
    """Sorted by length, five batches of 32 of CMUdict's dev words had 4.2 letters on average instead of 7.5."""
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in read_cmudict()[::20]), encoding="utf-8")
    settings = Pairs() if whole else Pairs(path=str(path), dev=0.2, test=0.2)
    data = open_pairs(settings, length=32, batch_size=32)
    batches = [data.held_out_at(i) for i in range(data.held_out_batches)]
    letters = np.concatenate([batch["source_length"][batch["valid"]] for batch in batches]) - 1
    assert len(letters) == (6295 if whole else 1259)
    assert letters[:160].mean() == pytest.approx(letters.mean(), abs=4 * letters.std() / 160**0.5)


def test_a_source_of_any_size_can_be_scored_whole(file, pairs, tmp_path):
    spec = open_pairs(file).spec
    whole = open_pairs(file, spec=spec, split="all")
    seen = [pair for i in range(whole.held_out_batches) for pair in texts_of(whole, whole.held_out_at(i))]
    assert sorted(seen) == sorted(set(pairs))
    assert "all of 36 pairs" in whole.describe()
    (tmp_path / "pairs.tsv").write_text("abc\t1 2\nabc\tC\n")
    tiny = open_pairs(file, spec=spec, split="all")
    assert texts_of(tiny, tiny.held_out_at(0)) == [("abc", "1 2"), ("abc", "C")]
    assert tiny.references() == {"abc": ["1 2", "C"]}


def test_pairs_that_are_too_long_are_counted_and_left_out(file, pairs):
    data = open_pairs(file, length=6)
    fits = [max(len(source), len(target.split())) < 6 for source, target in pairs]
    train, dev, test = three_parts(pairs, 0.2, 0.2)
    seen = {pair for step in range(data.batches) for pair in texts_of(data, data.batch_at(step))}
    assert seen == {pair for pair, fit in zip(pairs, fits, strict=True) if fit and pair in train}
    kept = len(data.train) + len(data.held_out) + len(data.on("test").held_out)
    left_out = len(train) + len(dev) + len(test) - kept
    assert left_out > 0
    assert f"({left_out} of 6 tokens or more left out)" in data.describe()
    assert len(encode_pairs(data.spec, pairs, 6)) == sum(fits)
    with pytest.raises(UserError, match=r"no pair to train on of less than 2 tokens"):
        open_pairs(file, length=2)


def test_json_lines_and_a_spec_that_is_kept(pairs, tmp_path, file):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"in": source, "out": target}) + "\n" for source, target in pairs))
    settings = replace(file, path=str(path), source_field="in", target_field="out")
    data, same = open_pairs(settings), open_pairs(file)
    assert data.spec == same.spec
    assert data.fingerprint() == same.fingerprint()
    assert set(data.spec.examples) <= set(data.references())
    assert open_pairs(settings, spec=data.spec).spec is data.spec
    with pytest.raises(UserError, match=r"source-tokenizer is characters, not bytes: give --data.source-tokenizer"):
        replace(settings, source_tokenizer="bytes").check_tokenizer(data.spec)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"in": f"q{i}é", "out": "A"}) + "\n" for i in range(9)))
    with pytest.raises(UserError, match="that the tokenizer lacks"):
        open_pairs(settings, spec=data.spec)


BAD_FILES = {
    "one.tsv": ("a\tA\nb\n", "line 2 of .*one.tsv has 1 field between tabs"),
    "three.tsv": ("a\tA\n\nb\tB\tC\n", "line 3 of .*three.tsv has 3 fields between tabs"),
    "source.tsv": ("a\tA\n \tB\n", "line 2 of .*source.tsv has an empty source"),
    "target.tsv": ("a\t\n", "line 1 of .*target.tsv has an empty target"),
    "few.tsv": (
        "a\tA\na\tB\nb\tC\n",
        "few.tsv has 2 different sources, too few for train, dev and test: give at least 3",
    ),
    "field.jsonl": ('{"source": "a"}\n', "line 1 of .*field.jsonl has no field 'target'"),
    "empty.tsv": ("", "empty.tsv is empty"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    contents, message = BAD_FILES[name]
    (tmp_path / name).write_text(contents)
    with pytest.raises(UserError, match=message) as raised:
        open_pairs(Pairs(path=str(tmp_path / name)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shares", [{"dev": 0.0}, {"test": 1.0}, {"dev": 0.6, "test": 0.4}])
def test_bad_settings(shares):
    with pytest.raises(UserError, match="data"):
        Pairs(**shares)

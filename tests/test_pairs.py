"""Pairs of sources and targets: CMUdict, files, the split by source, and batches of similar length."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from zoo.core.errors import UserError
from zoo.data.pairs import Pairs, encode_pairs, split_pairs
from zoo.data.sources import read_cmudict
from zoo.data.tokenizers import Words

LENGTH, BATCH = 9, 4


def open_pairs(settings, length=LENGTH, batch_size=BATCH, seed=0, spec=None):
    return settings.open(length=length, batch_size=batch_size, seed=seed, spec=spec)


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
    train, dev, test = split_pairs(pairs, 0.05, 0.05)
    sizes = [len({word for word, _ in part}) for part in (train, dev, test)]
    assert sizes == [117_493 - 2 * 5875, 5875, 5875]
    phones = Words.learn((phones for _, phones in train), 8000)
    assert phones.vocab_size == 69 + 2
    assert phones.decode(phones.encode("HH AH0 L OW1")) == "HH AH0 L OW1"


def test_no_source_is_in_two_parts_whatever_the_order(pairs):
    parts = split_pairs(pairs, 0.2, 0.2)
    sources = [{source for source, _ in part} for part in parts]
    assert sum(map(len, sources)) == len({source for source, _ in pairs})
    assert sorted(itertools.chain(*parts)) == sorted(set(pairs))
    again = split_pairs(pairs[::-1], 0.2, 0.2)
    assert [set(part) for part in again] == [set(part) for part in parts]
    many = {source for source, _ in pairs}
    assert len(sources[2]) == round(0.2 * len(many))
    assert all(split_pairs([("a", "1"), ("b", "2"), ("c", "3")], 0.4, 0.4))


def test_an_epoch_has_every_pair_and_batches_of_similar_length(file, pairs):
    data = open_pairs(file)
    train, *_ = split_pairs(pairs, 0.2, 0.2)
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
    data = open_pairs(file)
    _, dev, test = split_pairs(pairs, 0.2, 0.2)
    batches = [data.held_out_at(index) for index in range(data.held_out_batches)]
    assert sorted(pair for batch in batches for pair in texts_of(data, batch)) == sorted(dev)
    np.testing.assert_array_equal(np.concatenate([b["row"] for b in batches]), np.arange(BATCH * len(batches)))
    assert data.references("test") == {s: [t for other, t in test if other == s] for s, _ in test}
    assert any(len(targets) > 1 for part in ("dev", "test") for targets in data.references(part).values())


def test_pairs_that_are_too_long_are_counted_and_left_out(file, pairs):
    data = open_pairs(file, length=6)
    fits = [max(len(source), len(target.split())) < 6 for source, target in pairs]
    train, dev, _ = split_pairs(pairs, 0.2, 0.2)
    seen = {pair for step in range(data.batches) for pair in texts_of(data, data.batch_at(step))}
    assert seen == {pair for pair, fit in zip(pairs, fits, strict=True) if fit and pair in train}
    left_out = len(train) + len(dev) - len(data.train) - len(data.dev)
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
    assert set(data.spec.examples) <= {source for source, _ in data.texts["dev"]}
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
    "few.tsv": ("a\tA\na\tB\nb\tC\n", "2 different sources: give at least three"),
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

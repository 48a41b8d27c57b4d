import dataclasses
import hashlib
import json
from itertools import chain, pairwise

import numpy as np
import pytest

from zoo.core.errors import UserError
from zoo.data.sources import DEV_PLAYS, TEST_PLAYS, read_plays
from zoo.data.specs import BlockSpec
from zoo.data.text import Text
from zoo.data.tokenizers import Bytes, Characters

LENGTH, BATCH = 7, 3


def open_text(settings, length=LENGTH, batch_size=BATCH, seed=0, spec=None, split="dev"):
    return settings.open(length=length, batch_size=batch_size, seed=seed, spec=spec, split=split)


def stream_of(texts):
    """The bytes of documents, each between two end-of-text tokens."""
    return [i for text in texts for i in (256, *text.encode(), 256)]


def parts_of(settings):
    """The documents of each part, by name."""
    parts = settings.documents()
    return {"train": parts.train, **parts.held_out}


@pytest.fixture
def corpus(tmp_path):
    """Eleven documents of odd lengths, in JSON lines."""
    texts = [f"{i} " + "αβγ déf"[: i % 8] * i + chr(0x4E00 + i) for i in range(11)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts), encoding="utf-8")
    return Text(path=str(path), field="body", tokenizer="bytes", held_out=0.3), texts


def scored_pairs(batch):
    """Every (input, target) of the valid rows' real tokens, document boundaries among them."""
    pairs = []
    for tokens, length, valid in zip(batch["tokens"], batch["length"], batch["valid"], strict=True):
        if valid:
            pairs += list(pairwise(tokens[:length]))
    return pairs


def held_out_batches(data):
    return [data.held_out_at(index) for index in range(data.held_out_batches)]


def test_batches_are_functions_of_seed_and_step(corpus):
    settings, _ = corpus
    one, other = open_text(settings), open_text(settings)
    for step in (5, 0, 900, 5):
        np.testing.assert_array_equal(one.batch_at(step)["tokens"], other.batch_at(step)["tokens"])
    seeded = open_text(settings, seed=1)
    assert any((one.batch_at(step)["tokens"] != seeded.batch_at(step)["tokens"]).any() for step in range(3))


@pytest.mark.parametrize("at", ["batch_at", "held_out_at"])
def test_rows_are_part_of_the_global_batch(corpus, at):
    data = open_text(corpus[0], batch_size=6)
    whole = getattr(data, at)(1)
    for rows in (slice(0, 2), slice(2, 6), slice(5, None)):
        part = getattr(data, at)(1, rows)
        assert part.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][rows])


def test_shapes_and_types(corpus):
    data = open_text(corpus[0])
    for batch in (data.batch_at(0), data.held_out_at(0)):
        assert batch["tokens"].shape == (BATCH, LENGTH + 1)
        for name in batch.keys() - {"valid", "continues"}:
            assert batch[name].dtype == np.int32
        assert batch["valid"].dtype == bool
        np.testing.assert_array_equal(batch["row"], np.arange(BATCH))


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("length", [1, 4, 7, 60])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_held_out_token_is_a_target_once(corpus, share, split, length, batch_size):
    settings = dataclasses.replace(corpus[0], held_out=share)
    data = open_text(settings, length, batch_size).on(split)
    held_out = parts_of(settings)[split]
    stream = stream_of(held_out)
    batches = held_out_batches(data)
    assert sorted(pair for batch in batches for pair in scored_pairs(batch)) == sorted(pairwise(stream))
    np.testing.assert_array_equal(data.held_out, stream)
    rows = np.concatenate([batch["row"] for batch in batches])
    np.testing.assert_array_equal(rows, np.arange(len(rows)))
    assert sum(batch["bytes"].sum() for batch in batches) == sum(len(text.encode()) for text in held_out)
    assert sum(batch["characters"].sum() for batch in batches) == sum(map(len, held_out))
    for batch in batches:
        np.testing.assert_array_equal(batch["length"][~batch["valid"]], 0)


def test_an_epoch_covers_every_training_token(corpus):
    settings, _ = corpus
    data = open_text(settings, batch_size=1)
    stream = stream_of(parts_of(settings)["train"])
    for epoch in range(3):
        rows = [data.batch_at(epoch * data.blocks + i)["tokens"][0] for i in range(data.blocks)]
        pairs = [pair for row in rows for pair in pairwise(row)]
        circle = list(zip(stream, stream[1:] + stream[:1], strict=True))
        for pair in set(circle):
            assert circle.count(pair) <= pairs.count(pair)
        assert len(circle) <= len(pairs) < len(circle) + LENGTH


def test_epochs_differ_in_order_and_in_where_blocks_begin(corpus):
    data = open_text(corpus[0], batch_size=1)
    epochs = [
        [tuple(data.batch_at(epoch * data.blocks + i)["tokens"][0]) for i in range(data.blocks)] for epoch in range(4)
    ]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def write_documents(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_whole_documents_are_in_one_part_whatever_their_order(tmp_path):
    texts = [f"document {i % 40}" for i in range(50)]
    settings = Text(path=write_documents(tmp_path / "a.jsonl", texts), held_out=0.2)
    parts = parts_of(settings)
    ranked = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert set(parts["test"]) == set(ranked[:4])
    assert set(parts["dev"]) == set(ranked[4:8])
    assert set(parts["train"]) == set(ranked[8:])
    assert sorted(chain(*parts.values())) == sorted(texts), "doubles are kept"
    write_documents(tmp_path / "a.jsonl", texts[::-1])
    assert {name: set(part) for name, part in parts_of(settings).items()} == {
        name: set(part) for name, part in parts.items()
    }


def test_few_documents_make_three_parts_too(tmp_path):
    three = parts_of(Text(path=write_documents(tmp_path / "a.jsonl", ["one", "two", "three"])))
    assert [len(part) for part in three.values()] == [1, 1, 1]
    first, last = sorted(["one and", "two"], key=lambda text: hashlib.sha256(text.encode()).digest())
    two = parts_of(Text(path=write_documents(tmp_path / "a.jsonl", ["one and", "two"]), held_out=0.9))
    assert two == {"train": [last], "dev": [first[: len(first) // 2]], "test": [first[len(first) // 2 :]]}
    for text in ("a", "ab"):
        with pytest.raises(
            UserError, match=f"has {len(text)} characters?, too few for train, dev and test: give at least 3"
        ):
            parts_of(Text(path=write_documents(tmp_path / "a.jsonl", [text])))


def test_one_document_is_cut_at_its_end(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("0123456789" * 10)
    data = open_text(Text(path=str(path), held_out=0.25))
    tokenizer = data.spec.tokenizer
    assert tokenizer.decode(data.train) == ("0123456789" * 10)[:75]
    assert tokenizer.decode(data.held_out) == ("0123456789" * 10)[75:87]
    assert tokenizer.decode(data.on("test").held_out) == ("0123456789" * 10)[87:]
    assert parts_of(Text(path=str(path))).keys() == {"train", "dev", "test"}
    assert [len(part[0]) for part in parts_of(Text(path=str(path))).values()] == [90, 5, 5]


def test_texts_to_score_that_are_named_are_dev_and_test(tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name}-{name} ")
    paths = {name: str(tmp_path / f"{name}.txt") for name in ("train", "dev", "test")}
    halved = parts_of(Text(path=paths["train"], held_out_path=paths["dev"]))
    assert halved == {"train": ["train-train "], "dev": ["dev-"], "test": ["dev "]}
    whole = parts_of(Text(path=paths["train"], held_out_path=paths["dev"], test_path=paths["test"]))
    assert whole == {"train": ["train-train "], "dev": ["dev-dev "], "test": ["test-test "]}
    only_test = parts_of(Text(path=paths["train"], test_path=paths["test"], held_out=0.5))
    assert only_test == {"train": ["train-tra"], "dev": ["in "], "test": ["test-test "]}
    write_documents(tmp_path / "many.jsonl", [f"text {i}" for i in range(9)])
    several = parts_of(Text(path=paths["train"], held_out_path=str(tmp_path / "many.jsonl")))
    assert (len(several["dev"]), len(several["test"])) == (5, 4)
    assert set(several["dev"] + several["test"]) == {f"text {i}" for i in range(9)}


def test_the_first_windows_are_from_anywhere(tmp_path):
    """Windows are ordered by a hash of their tokens: those of the first batches are spread over the text."""
    path = tmp_path / "one.txt"
    path.write_text("".join(f"{i:06d}|" for i in range(2000)))
    data = open_text(Text(path=str(path), held_out=0.5), length=7, batch_size=50)
    first = data.held_out_at(0)["tokens"][:, 1:]
    places = np.array([int(text[:6]) for text in (data.spec.tokenizer.decode(row) for row in first) if text[0] != "|"])
    assert abs(places.mean() - 1250) < 4 * 500 / 12**0.5 / 50**0.5


def test_a_source_of_any_size_can_be_scored_whole(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text("ab")
    data = open_text(Text(path=str(path)), spec=BlockSpec(Characters("abc")), split="all")
    assert [pair for batch in held_out_batches(data) for pair in scored_pairs(batch)] == [(3, 0), (0, 1), (1, 3)]
    assert "all of 1 documents, 2 characters; 4 tokens" in data.describe()
    plays = Text().documents("all")
    assert plays.held_out["all"] == plays.train == list(read_plays().values())


def test_shakespeare_has_two_plays_for_dev_and_two_for_test():
    plays = read_plays()
    assert len(plays) == 38
    data = open_text(Text(), length=64)
    tokenizer = data.spec.tokenizer
    end = tokenizer.end_of_text
    assert TEST_PLAYS == ("Macbeth", "Twelfth Night")
    for split, titles in (("dev", DEV_PLAYS), ("test", TEST_PLAYS)):
        assert tokenizer.decode(data.on(split).held_out) == "".join(plays[title] for title in titles)
    assert (data.train == end).sum() == 2 * 34
    for name in ("MACBETH", "OTHELLO", "VIOLA", "ROSALIND"):
        assert f"\n{name}:\n" not in tokenizer.decode(data.train)
    assert "\n\nROMEO:\n" in tokenizer.decode(data.train)
    assert "38" not in tokenizer.characters
    assert "34 documents to train on, 2 for dev and 2 for test" in data.describe()
    assert not set("*_#\\") & set(tokenizer.characters)


def test_bpe_learns_from_the_training_text_only(tmp_path):
    (tmp_path / "train.txt").write_text("the cat and the dog " * 50)
    (tmp_path / "test.txt").write_text("zebra " * 50)
    settings = Text(
        str(tmp_path / "train.txt"), held_out_path=str(tmp_path / "test.txt"), tokenizer="bpe", vocabulary=300
    )
    tokenizer = open_text(settings).spec.tokenizer
    assert len(tokenizer.encode(" the")) == 1
    assert len(tokenizer.encode(" zebra")) == 6


def test_byte_order_mark_goes_and_line_ends_stay(tmp_path):
    path = tmp_path / "dos.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"one line\r\n" * 20)
    data = open_text(Text(path=str(path)))
    assert data.spec.tokenizer.decode(data.train).startswith("one line\r\none line\r\n")


def test_glob_reads_each_file_as_a_document(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / name).write_text(f"text of {name} " * 5)
    assert {len(part) for part in parts_of(Text(path=f"{tmp_path}/*.txt")).values()} == {1}
    (tmp_path / "sub" / "d.txt").write_text("text of d " * 5)
    assert [len(part) for part in parts_of(Text(path=f"{tmp_path}/**/*.txt")).values()] == [2, 1, 1]


def test_a_spec_keeps_its_tokenizer_and_refuses_what_it_lacks(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcabc" * 10)
    spec = BlockSpec(Characters("zabc"))
    assert open_text(Text(path=str(path)), spec=spec).spec is spec
    path.write_text("abcabc" * 10 + "xé")
    with pytest.raises(UserError, match=r"2 characters, 'x' \(U\+0078\), 'é' \(U\+00E9\)"):
        open_text(Text(path=str(path)), spec=spec)
    with pytest.raises(UserError, match=r"run's tokenizer is bytes, not characters.*--data.tokenizer bytes"):
        Text().check_tokenizer(BlockSpec(Bytes()))
    Text(tokenizer="bytes").check_tokenizer(BlockSpec(Bytes()))


BAD_FILES = {
    "missing.txt": (None, "there is no file .*missing.txt"),
    "none*.txt": (None, r"no file matches .*none\*.txt"),
    "empty.txt": (b"", "empty.txt is empty"),
    "blank.txt": (b" \n\n", "blank.txt is empty"),
    "latin1.txt": (b"caf\xe9 " * 30, r"latin1.txt is not UTF-8 text \(byte 0xe9 at offset 3, in line 1\)"),
    "short.txt": (b"abcd", r"short.txt has 4 tokens to train on, and a block needs 8"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2 of .*bad.jsonl is not JSON"),
    "field.jsonl": (
        b'{"text": "a"}\n\n{"body": "b", "id": 1}\n',
        "line 3 of .*field.jsonl has no field 'text': it has body, id",
    ),
    "list.jsonl": (b"[1]\n", "line 1 of .*has no field 'text'.*list"),
    "number.jsonl": (b'{"text": 3}\n', "field 'text' in line 1 of .*number.jsonl is not text but 3"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', "half a surrogate pair"),
    "": (None, "is a folder.*glob"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    contents, message = BAD_FILES[name]
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(UserError, match=message) as raised:
        open_text(Text(path=str(tmp_path / name)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Text(held_out=0.0), "held-out 0.0"),
        (Text(held_out=1.5), "held-out 1.5"),
        (Text(tokenizer="bpe", vocabulary=100), "vocabulary 100"),
        (Text(path="a.txt", tfds="lm1b"), "two sources"),
        (Text(tfds="no_such_set_at_all", tfds_dir="nowhere"), "no_such_set_at_all"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        open_text(settings)


@pytest.fixture
def tfds_folder(tmp_path):
    """A prepared set of 20 texts, split in two, in array_record files."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": np.int64})
    splits = []
    for split, count in (("train", 15), ("test", 5)):
        records = [
            features.serialize_example(features.encode_example({"text": f"{split} text {i} é", "id": i}))
            for i in range(count)
        ]
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="tiny", split=split, filetype_suffix="array_record"
        )
        writer = ArrayRecordWriter(str(folder / f"tiny-{split}.array_record-00000-of-00001"), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        lengths = [count]
        size = sum(map(len, records))
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=splits, filename_template=None, check_data=False
    )
    return tmp_path


def test_tfds(tfds_folder):
    data = open_text(Text(tfds="tiny", tfds_dir=str(tfds_folder), tfds_held_out_split="test"))
    assert "15 documents to train on, 3 for dev and 2 for test" in data.describe()
    assert "train text 3 é" in data.spec.tokenizer.decode(data.train)
    held_out = [data.spec.tokenizer.decode(data.on(split).held_out) for split in ("dev", "test")]
    assert sum("test text 4 é" in text for text in held_out) == 1
    both = Text(tfds="tiny", tfds_dir=str(tfds_folder), tfds_held_out_split="train", tfds_test_split="test")
    assert [len(part) for part in parts_of(both).values()] == [15, 15, 5]
    alone = parts_of(Text(tfds="tiny", tfds_dir=str(tfds_folder), tfds_test_split="test", held_out=0.4))
    assert [len(part) for part in alone.values()] == [12, 3, 5]
    with pytest.raises(UserError, match=r"no text feature 'body'.*text"):
        open_text(Text(tfds="tiny", tfds_dir=str(tfds_folder), field="body"))
    with pytest.raises(UserError, match="validation"):
        open_text(Text(tfds="tiny", tfds_dir=str(tfds_folder), tfds_split="validation"))


def test_rows_of_a_stream_go_on_where_they_ended(corpus):
    settings, _ = corpus
    data = open_text(dataclasses.replace(settings, order="stream"))
    stream = stream_of(parts_of(settings)["train"])
    rounds = -(-len(stream) // (BATCH * LENGTH)) + 1
    batches = [data.batch_at(step) for step in range(2 * rounds)]
    for before, after in pairwise(batches):
        np.testing.assert_array_equal(after["tokens"][:, 0], before["tokens"][:, -1])
        assert after["continues"].all()
    assert not batches[0]["continues"].any()
    circle = set(zip(stream, stream[1:] + stream[:1], strict=True))
    assert {pair for batch in batches[:rounds] for pair in scored_pairs(batch)} == circle
    np.testing.assert_array_equal(data.batch_at(5, slice(1, 3))["tokens"], batches[5]["tokens"][1:3])
    other = open_text(dataclasses.replace(settings, order="stream"), seed=1)
    assert (other.batch_at(0)["tokens"] != batches[0]["tokens"]).any()
    assert not open_text(settings).batch_at(5)["continues"].any()

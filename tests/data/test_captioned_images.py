"""One's own captioned images: metadata, text files and TFDS; their batches, specs and previews."""

import csv
import io
import json
import logging
from dataclasses import replace

import jax
import numpy as np
import PIL.Image
import pytest
from image_data_cases import arrays, save

from zoo.core.captioned import captioned_grid
from zoo.core.errors import UserError
from zoo.data.captions import CaptionedImages, draws
from zoo.data.captions.own import captions_of_record
from zoo.data.images.augment import Augment
from zoo.data.specs import CaptionSpec, ImageSpec
from zoo.data.tokenizers import Words
from zoo.harness.config import from_json, to_json

PICTURES = arrays(12, 8)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures, 0.png to 11.png, of which the last two are in a subfolder."""
    for i, image in enumerate(PICTURES):
        save(tmp_path, image, name(i))
    return tmp_path


def name(i):
    return f"{i}.png" if i < 10 else f"more/{i}.png"


def captions_of(i):
    """Picture i has one caption if i is even, two if it is odd."""
    return [f"Picture number {i}", f"the  {i}th one"][: 1 + i % 2]


def write_jsonl(folder, rows, field="text"):
    records = [{"file_name": file, field: text, "other": 1} for file, text in rows]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


def write_csv(folder, rows, field="text"):
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file_name", field), *rows])


def write_texts(folder, rows):
    for file, text in rows:
        with (folder / file).with_suffix(".txt").open("a", encoding="utf-8") as beside:
            beside.write(f"{text}\n")


def open_captions(folder, batch_size=4, seed=0, spec=None, split="dev", **settings):
    settings = {"path": str(folder), "held_out": 0.5, "caption_length": 8, "caption_dropout": 0.0} | settings
    return CaptionedImages(**settings).open(length=None, batch_size=batch_size, seed=seed, spec=spec, split=split)


def found(data):
    """The captions of every picture, by its number."""
    numbers = {image.tobytes(): i for i, image in enumerate(PICTURES)}
    return {
        numbers[image.tobytes()]: [*captions]
        for part in data.parts.each
        for image, captions in zip(part.images, part.captions, strict=True)
    }


def texts(data, batch):
    rows = zip(batch["caption"], batch["caption_length"], strict=True)
    return [data.captions.tokenizer.decode(row[1 : length - 1]) for row, length in rows]


ROWS = [(name(i), text) for i in range(12) for text in captions_of(i)]
RIGHT = {i: [" ".join(text.split()) for text in captions_of(i)] for i in range(12)}

# ------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_texts])
def test_every_format_gives_the_same_captions(folder, write):
    write(folder, ROWS)
    data = open_captions(folder)
    assert found(data) == RIGHT
    assert [len(part.images) for part in data.parts.each] == [6, 3, 3]
    assert data.spec == ImageSpec(8, 8, 3, caption=data.captions)
    assert "18 captions" in open_captions(folder, split="all").describe()


def test_captions_in_subfolders_lists_and_other_fields(folder):
    records = [{"file_name": f"{i}.png", "says": RIGHT[i]} for i in range(10)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_csv(folder / "more", [("10.png", RIGHT[10][0])], "says")
    write_texts(folder, [(name(11), text) for text in RIGHT[11]])
    assert found(open_captions(folder, caption_field="says")) == RIGHT


def test_pictures_without_captions_are_left_out_counted_and_named(folder, caplog):
    write_jsonl(folder, [row for row in ROWS if row[0] not in ("3.png", "more/11.png")] + [("3.png", " ")])
    with caplog.at_level(logging.WARNING, "zoo"):
        data = open_captions(folder)
    assert found(data) == {i: RIGHT[i] for i in range(12) if i not in (3, 11)}
    assert "2 of 12 pictures in" in caplog.text
    assert "have no caption and are left out: 3.png, more/11.png" in caplog.text


@pytest.mark.parametrize(
    ("write", "rows", "message"),
    [
        (write_jsonl, [("12.png", "a")], r"line 1 of .*metadata\.jsonl names '12\.png', and there is no such file"),
        (write_csv, [("0.png", "a"), ("", "b")], r"line 3 of .*metadata\.csv names ''"),
        (lambda f, r: write_jsonl(f, r, "body"), ROWS, r"line 1 of .* has no field 'text': it has file_name, body, ot"),
        (lambda f, r: write_csv(f, r, "body"), ROWS, r"no field 'text': it has file_name, body; --data\.caption-field"),
        (write_jsonl, [("0.png", 5)], r"field 'text' in line 1 of .* is '5'; it must be a text or a list of texts"),
        (write_csv, [("0.png", "a", "b")], "line 2 of .* has more or fewer fields than the first line"),
        (write_jsonl, [("0.png", "")], "none of the 12 pictures in .* has a caption"),
        (write_texts, [], "none of the 12 pictures in .* has a caption"),
        (lambda f, _: (f / "metadata.jsonl").write_text("[1]"), [], "line 1 of .* is a list; it must be an object"),
        (lambda f, _: (f / "metadata.jsonl").write_text("{"), [], "line 1 of .* is not JSON"),
    ],
)
def test_bad_captions(folder, write, rows, message):
    write(folder, rows)
    with pytest.raises(UserError, match=message):
        open_captions(folder)


def test_other_bad_input(folder):
    with pytest.raises(UserError, match=r"a\.npz'; it must be a folder of pictures with captions"):
        CaptionedImages(path="a.npz")
    write_texts(folder, [("0.png", "a"), ("1.png", "b")])
    with pytest.raises(UserError, match="has 2 different pictures, too few"):
        open_captions(folder)


def test_tfds_records():
    record = {"image": 0, "text": b"one", "captions": {"text": np.array([b" a  b", b""], object), "id": np.arange(2)}}
    assert captions_of_record(record, "text", "tiny") == ("one",)
    assert captions_of_record(record, "captions/text", "tiny") == ("a b",)
    with pytest.raises(UserError, match="'tiny' has no feature 'caption': it has image, text, captions"):
        captions_of_record(record, "caption", "tiny")
    with pytest.raises(UserError, match="feature 'captions/id' of TFDS set 'tiny' is"):
        captions_of_record(record, "captions/id", "tiny")


def test_tfds(tmp_path, caplog):
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
        }
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="tiny", split="train", filetype_suffix="array_record"
    )
    writer = ArrayRecordWriter(str(folder / "tiny-train.array_record-00000-of-00001"), "group_size:1")
    size = 0
    for i, image in enumerate(PICTURES):
        png = io.BytesIO()
        PIL.Image.fromarray(image).save(png, "png")
        png.seek(0)
        captions = [{"text": text, "id": i} for text in captions_of(i) if i != 4]
        record = features.serialize_example(features.encode_example({"image": png, "captions": captions}))
        writer.write(record)
        size += len(record)
    writer.close()
    info = tfds.core.SplitInfo(name="train", shard_lengths=[12], num_bytes=size, filename_template=template)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[info], filename_template=None, check_data=False
    )
    with caplog.at_level(logging.WARNING, "zoo"):
        data = open_captions("", tfds="tiny", tfds_dir=str(tmp_path), caption_field="captions/text")
    assert found(data) == {i: RIGHT[i] for i in range(12) if i != 4}
    assert "1 of 12 pictures in tiny train have no caption and are left out: number 4" in caplog.text


# ------------------------------------------------------------------------------------------- batches


def test_an_epoch_has_every_picture_with_one_of_its_captions(folder):
    write_jsonl(folder, ROWS)
    data = open_captions(folder, batch_size=6)
    numbers = {image.tobytes(): i for i, image in enumerate(PICTURES)}
    told = {}
    for epoch in range(12):
        batch = data.batch_at(epoch)
        pictures = [numbers[image.tobytes()] for image in batch["image"]]
        assert len(set(pictures)) == 6
        for i, text in zip(pictures, texts(data, batch), strict=True):
            told.setdefault(i, []).append(text)
    for i, captions in told.items():
        assert set(captions) == {text.lower() for text in RIGHT[i]}
        assert len(captions) == 12
        assert i % 2 == 0 or 1 <= captions.count(RIGHT[i][0].lower()) <= 11
    assert batch["caption"].shape == (6, 9)
    assert batch["caption"].dtype == batch["caption_length"].dtype == np.int32
    np.testing.assert_array_equal(batch["caption"][:, 0], data.captions.end)
    part, whole = data.batch_at(7, slice(2, 5)), data.batch_at(7)
    for key in whole:
        np.testing.assert_array_equal(part[key], whole[key][2:5])
    other = open_captions(folder, batch_size=3)
    np.testing.assert_array_equal(other.batch_at(15)["caption"], whole["caption"][3:])


def test_held_out_pictures_have_their_first_caption_and_it_is_not_dropped(folder):
    write_jsonl(folder, ROWS)
    data = open_captions(folder, batch_size=2, caption_dropout=0.9, tokenizer="characters", caption_length=30)
    for split in ("dev", "test"):
        on = data.on(split)
        batches = [on.held_out_at(i) for i in range(on.held_out_batches)]
        rows = np.concatenate([batch["caption"][batch["valid"]] for batch in batches])
        first = [captions[0] for captions in on.held_out_captions]
        np.testing.assert_array_equal(rows, on.captions.rows(first)[0])
        assert len({row.tobytes() for row in rows}) > 1
        assert len(first) == 3
    lengths = np.concatenate([data.batch_at(step)["caption_length"] for step in range(10)])
    np.testing.assert_array_equal(lengths == 2, draws.dropped(0, np.arange(20), 0.9))
    assert 10 < (lengths == 2).sum() < 20


def test_cut_and_unknown_words_are_counted(folder):
    write_jsonl(folder, ROWS)
    data, cut = open_captions(folder), open_captions(folder, caption_length=3)
    train = [len(text.split()) for captions in data.parts.train.captions for text in captions]
    assert f"{np.mean(np.array(train) > 2):.1%} longer than 2 and cut" in cut.describe()
    assert max(texts(cut, cut.batch_at(0)), key=len).split() == max(texts(cut, cut.batch_at(0)), key=len).split()[:2]
    words = {word for captions in data.parts.train.captions for text in captions for word in text.lower().split()}
    first = [captions[0].lower().split() for captions in data.held_out_captions]
    unknown = [word not in words for text in first for word in text]
    assert data.coverage() == {"cut_caption_share": 0, "unknown_share": pytest.approx(np.mean(unknown))}
    assert cut.coverage()["cut_caption_share"] == 1
    assert np.mean(unknown) > 0


def test_captions_of_one_picture(folder):
    write_texts(folder, [("0.png", "one caption")])
    spec = open_captions_spec()
    for i, caption in enumerate(("one caption", "")):
        settings = CaptionedImages().of_image(str(folder / f"{i}.png"), spec)
        data = settings.open(length=None, batch_size=1, seed=0, spec=spec, split="all")
        np.testing.assert_array_equal(data.held_out_at(0)["image"][0], PICTURES[i])
        assert data.held_out_captions == ((caption,),)


def open_captions_spec():
    return ImageSpec(8, 8, 3, caption=CaptionSpec(Words((" a", " caption", " one")), 6))


# --------------------------------------------------------------------------------------------- specs


def test_specs_survive_json_and_those_of_runs_without_captions_load():
    spec = open_captions_spec()
    saved = json.loads(json.dumps(to_json(spec)))
    assert from_json(saved, ImageSpec, "spec") == spec
    earlier = {key: value for key, value in saved.items() if key != "caption"}
    assert from_json(earlier, ImageSpec, "spec") == ImageSpec(8, 8, 3)
    settings = CaptionedImages(source="emoji", size=32, caption_length=9)
    assert from_json(json.loads(json.dumps(to_json(settings))), CaptionedImages, "data") == settings


def test_a_spec_of_captions():
    spec = open_captions_spec().caption
    assert (spec.length, spec.longest, spec.vocab_size, spec.end, spec.tokenizer.unknown) == (6, 5, 5, 4, 3)
    rows, lengths = spec.rows(["A caption", "", "one one a a a a caption"])
    np.testing.assert_array_equal(lengths, [4, 2, 7])
    np.testing.assert_array_equal(rows, [[4, 0, 1, 4, 4, 4, 4], [4, 4, 4, 4, 4, 4, 4], [4, 2, 2, 0, 0, 0, 4]])
    assert spec.unknown_words("One, two a TWO") == (",", "two")
    assert spec.encode("one two").tolist() == [2, 3]


def test_the_spec_of_an_earlier_run_is_kept(folder):
    write_jsonl(folder, ROWS)
    spec = open_captions_spec()
    data = open_captions(folder, spec=spec)
    assert data.spec == spec
    assert set(data.batch_at(0)["caption"].flat) <= {0, 2, 3, 4}
    fitted = CaptionedImages(path="here", tokenizer="bytes").fitting(spec)
    assert (fitted.tokenizer, fitted.caption_length, fitted.size, fitted.channels) == ("words", 6, 8, 3)
    plain = CaptionedImages(tokenizer="bytes").fitting(replace(spec, height=16, width=16, caption=None))
    assert (plain.tokenizer, plain.caption_length, plain.size, plain.digit_size) == ("bytes", 32, 16, 7)
    with pytest.raises(UserError, match=r"give --data\.size 40"):
        open_captions(folder, spec=replace(spec, height=40, width=40))


@pytest.mark.parametrize("settings", [{}, {"path": "here"}])
def test_an_excerpt_is_small_and_opens(folder, tmp_path_factory, settings):
    write_jsonl(folder, ROWS)
    if settings:
        settings = {"path": str(folder), "held_out": 0.5}
    data = CaptionedImages(**settings).excerpt(tmp_path_factory.mktemp("excerpt"))
    if settings:
        opened = data.open(length=None, batch_size=2, seed=0)
        assert opened.spec.height == 16
        assert {caption for captions in found_captions(opened) for caption in captions} <= {
            text for texts in RIGHT.values() for text in texts
        }
    else:
        assert (data.size, data.digit_size, data.held_out_scenes) == (16, 7, 64)


def found_captions(data):
    return [captions for part in data.parts.each for captions in part.captions]


# ------------------------------------------------------------------------------------------- preview


def test_the_preview_has_the_captions_under_the_pictures(folder):
    write_jsonl(folder, ROWS)
    data = open_captions(folder, batch_size=3, size=16, augment=Augment(brightness=0.5))
    (shown,) = data.preview(jax.random.key(0))
    image = np.asarray(jax.jit(data.augment)(data.batch_at(0), jax.random.key(0))["image"])
    np.testing.assert_array_equal(shown.pixels, captioned_grid(image, texts(data, data.batch_at(0)), 8).pixels)
    assert (image != data.batch_at(0)["image"]).any()
    assert data.fingerprint() != open_captions(folder, size=16, caption_length=3).fingerprint()


def test_a_sheet_shows_pictures_and_wrapped_captions():
    images = np.zeros((3, 16, 16, 1), np.uint8)
    long = "a caption of so many words that it needs several lines under its picture, and more than there are for it"
    pixels = captioned_grid(images, ["a", long, ""], columns=3).pixels
    height, width, _ = pixels.shape
    assert width == 3 * (112 + 4) + 4
    assert height == 4 + 112 + 4 * 13 + 4 + 4
    cells = [pixels[4:, 4 + 116 * i : 116 * (i + 1)] for i in range(3)]
    assert all((cell[:112] == 0).all() for cell in cells)
    ink = [(cell[112:] < 128).any(-1).any(1) for cell in cells]
    assert [lines.nonzero()[0].max() < 15 for lines in ink] == [True, False, True]
    assert len({cell[112:].tobytes() for cell in cells}) == 3
    other = captioned_grid(images, ["a", long + " at all", ""], columns=3).pixels
    np.testing.assert_array_equal(pixels, other)  # what does not fit is left out
    assert (captioned_grid(images, ["a", "b" + long, ""], columns=3).pixels != pixels).any()

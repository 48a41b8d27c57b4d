"""What families make is shown and written as it was made."""

import io

import numpy as np
import PIL.Image
import pytest

from zoo.core.artifacts import Image, Text, deliver, grid, listing, together, write_artifacts, write_summary
from zoo.harness.rundir import RunDir


def pictures(n: int, channels: int = 3, size: int = 4) -> list[Image]:
    rng = np.random.default_rng(0)
    return [Image(rng.integers(0, 256, (size, size, channels), dtype=np.uint8)) for _ in range(n)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(channels):
    (image,) = pictures(1, channels)
    read = np.asarray(PIL.Image.open(io.BytesIO(image.png())))
    np.testing.assert_array_equal(read.reshape(image.pixels.shape), image.pixels)


def test_a_grid_has_every_image_in_reading_order():
    images = pictures(5, channels=1)
    whole = grid(images, columns=3, gap=1).pixels
    assert whole.shape == (2 * 5 + 1, 3 * 5 + 1, 1)
    for i, image in enumerate(images):
        top, left = 1 + 5 * (i // 3), 1 + 5 * (i % 3)
        np.testing.assert_array_equal(whole[top : top + 4, left : left + 4], image.pixels)
    assert (whole[6:, 11:] == 255).all(), "the place without an image is white"
    assert (whole[0] == 255).all()


def test_images_of_one_size_are_shown_together_and_others_are_not():
    assert isinstance(together(pictures(4)), Image)
    assert together([*pictures(2), *pictures(1, size=5)]) is None
    assert together([Text("a"), Text("b")]) is None
    (one,) = pictures(1)
    assert together([one]) is one


def test_a_folder_holds_each_image_and_the_grid(tmp_path):
    images = [*pictures(3), Image(pictures(1)[0].pixels, "strip")]
    written = [path.name for path in write_artifacts(tmp_path, images)]
    assert written == ["sample_0000.png", "sample_0001.png", "sample_0002.png", "sample_0003_strip.png", "grid.png"]
    assert {path.name for path in tmp_path.iterdir()} == set(written)


def test_a_summary_is_one_file_where_one_shows_all(tmp_path):
    assert write_summary(tmp_path / "images", pictures(4)).name == "images.png"
    assert write_summary(tmp_path / "text", [Text("a")]).read_text() == "a"
    assert [path.name for path in sorted(write_summary(tmp_path / "texts", [Text("a"), Text("b")]).iterdir())] == [
        "sample_0000.txt",
        "sample_0001.txt",
    ]


def test_samples_that_were_asked_for_are_numbered(tmp_path):
    rundir = RunDir(tmp_path)
    first = rundir.next_samples()
    write_summary(first, pictures(2))
    assert (first.name, rundir.next_samples().name) == ("asked_0000", "asked_0001")


def test_equal_images_are_equal():
    (one,) = pictures(1)
    assert one == Image(one.pixels.copy())
    assert one != Image(255 - one.pixels)
    assert one != Image(one.pixels, "strip")


def test_a_notebook_shows_small_pictures_enlarged():
    (image,) = pictures(1)
    assert PIL.Image.open(io.BytesIO(image._repr_png_())).size == (128, 128)


def test_pictures_with_a_file_of_their_own_are_written_there(tmp_path):
    text, picture = Text("a"), Image(np.zeros((2, 3, 1), np.uint8), "attention", str(tmp_path / "new" / "a.png"))
    assert deliver([text, picture]) == [text]
    assert (tmp_path / "new" / "a.png").read_bytes() == picture.png()


def test_lines_with_scores_are_a_list_and_other_texts_ruled_off():
    scored = [Text("long line", {"score": -1.23456}), Text("b", {"score": -2.0, "rank": 3.0})]
    assert listing(scored) == "long line  score -1.235\nb          score -2  rank 3"
    assert listing([*scored, Text("c")]) == "long line\n\n----\n\nb\n\n----\n\nc"
    assert listing([Text("two\nlines", {"score": 1.0})]) == "two\nlines"
    assert listing([]) == ""


def test_a_prompt_is_marked_where_a_text_begins_with_one():
    texts = [Text("to be", {"score": 1.5}, prompt="to"), Text("be", {"score": 2.0})]
    assert listing(texts, str.upper) == "TO be  score 1.5\nbe     score 2"
    assert listing([Text("to\nto", prompt="to"), Text("be")], str.upper) == "TO\nto\n\n----\n\nbe"
    assert Text("<b>a & b", prompt="<b>")._repr_html_() == (
        '<pre><span style="opacity: 0.5">&lt;b&gt;</span>a &amp; b</pre>'
    )


def test_images_among_scores_are_files_of_the_run(tmp_path):
    (image,) = pictures(1)
    kept = RunDir(tmp_path).keep_images(30, {"fid": 1.5, "nearest": image})
    assert kept == {"fid": 1.5, "nearest": str(tmp_path / "scored" / "step_00000030_nearest.png")}
    assert (tmp_path / "scored" / "step_00000030_nearest.png").read_bytes() == image.png()

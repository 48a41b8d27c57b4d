"""What comes out of the scripts: on standard output, on standard error, in folders."""

import json
import math
import sys
from pathlib import Path

import pytest
from cli_cases import Train, listing, records
from command_line import CONFIG, TEXT, TINY, call, refused, start

pytestmark = pytest.mark.xdist_group("command_line")  # whose tests share a trained run


def test_training_says_nothing_on_standard_output(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "--eval-every", "3")
    assert (result.code, result.out) == (0, "")
    assert "step 6/6" in result.err
    assert "held-out" in result.err
    assert f"python sample.py {tmp_path}/run" in result.err
    assert "\x1b" not in result.err


def test_evaluate_prints_one_json_object(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    result = call(capsys, "evaluate", trained, "--json")
    assert (result.code, result.err) == (0, "")
    scores = json.loads(result.out)
    assert {"step", "loss", "perplexity", "bits_per_character", "bits_per_byte"} <= scores.keys()
    assert math.isclose(scores["perplexity"], math.exp(scores["loss"]), rel_tol=1e-6)
    last = [record for record in records(trained) if record["split"] == "eval"][-1]
    assert math.isclose(scores["loss"], last["loss"], rel_tol=1e-6)
    assert json.loads((trained / "scores.jsonl").read_text().splitlines()[-1]) == scores
    assert scores["seed"] == 0


def test_evaluate_takes_the_checkpoint_that_is_asked_for(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    def step(name: str) -> int:
        return json.loads(call(capsys, "evaluate", trained, "--json", "--checkpoint", name).out)["step"]

    assert (step("last"), step("6"), step("4")) == (6, 6, 4)
    scored = [record for record in records(trained) if record["split"] == "eval"]
    assert step("best") == min(scored, key=lambda record: record["loss"])["step"]


def test_a_run_directory_holds_what_it_promises(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()} - {"scores.jsonl"}  # other tests have evaluated this run
    expected = {"config.json", "spec.json", "metrics.jsonl", "launches.jsonl", "log.txt", "tensorboard", "checkpoints"}
    assert names == expected
    lines = records(trained)
    for line in lines:
        assert list(line)[:3] == ["step", "split", "loss"]
        assert line["split"] in ("train", "eval")
        assert all(isinstance(value, int | float | str) for value in line.values())
        assert line["seconds"] >= 0
    training = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert all(line["tokens_per_second"] > 0 for line in training)
    assert [line["step"] for line in lines if line["split"] == "eval"] == [3, 6]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    launch = json.loads((trained / "launches.jsonl").read_text())
    assert launch["from_step"] == 0
    assert {"jax", "flax", "optax"} <= launch["versions"].keys()
    assert "held-out" in (trained / "log.txt").read_text()
    assert [path.stat().st_size > 0 for path in (trained / "tensorboard").iterdir()] == [True]


def test_samples_are_all_that_standard_output_holds(capsys: pytest.CaptureFixture[str], trained: Path) -> None:
    asked = ("--max-new-tokens", "12", "--prompt", "Line ")
    one = call(capsys, "sample", trained, *asked)
    assert (one.code, one.err) == (0, "")
    assert one.out.startswith("Line ")
    assert one.out.endswith("\n")
    three = call(capsys, "sample", trained, *asked, "--n", "3")
    assert (three.code, three.err) == (0, "")
    texts = three.out.removesuffix("\n").split("\n\n----\n\n")
    assert len(texts) == 3
    assert texts[0] == one.out.removesuffix("\n")
    assert call(capsys, "sample", trained, *asked, "--seed", "1").out != one.out


def test_in_a_terminal_the_prompt_is_dim(
    capsys: pytest.CaptureFixture[str], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--prompt", "Line", "--max-new-tokens", "5")
    plain = [call(capsys, "sample", trained, *asked, *n).out for n in ((), ("--n", "2"))]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = [call(capsys, "sample", trained, *asked, *n).out for n in ((), ("--n", "2"))]
    for before, after in zip(plain, shown, strict=True):
        texts = [text.removeprefix("Line") for text in before.split("\n\n----\n\n")]
        assert after == "\n\n----\n\n".join(f"\x1b[2mLine\x1b[0m{text}" for text in texts)
    assert "\x1b" not in call(capsys, "sample", trained, *asked, "--json").out


def test_samples_in_a_folder_overwrite_none(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    asked, folder = ("--max-new-tokens", "12", "--n", "2"), tmp_path / "a" / "b"
    printed = call(capsys, "sample", trained, *asked).out
    result = call(capsys, "sample", trained, *asked, "--out", folder)
    assert (result.code, result.err) == (0, "")
    paths = [Path(line) for line in result.out.splitlines()]
    assert paths == [folder / "sample_0000.txt", folder / "sample_0001.txt"]
    assert "\n\n----\n\n".join(path.read_text() for path in paths) == printed.removesuffix("\n")
    before = listing(folder)
    refused(call(capsys, "sample", trained, *asked, "--out", folder), str(folder), "--out")
    assert listing(folder) == before


def test_a_reader_that_leaves_early(trained: Path) -> None:
    """A real pipe, closed after ten bytes, as `| head -c 10` does."""
    with start("sample", trained, "--max-new-tokens", "400") as process:
        assert process.stdout
        assert process.stderr
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    assert told == ""


def test_a_text_that_changed_since_the_run_began_is_told(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = ("--data.path", text, "--rundir", tmp_path / "run", "--eval-batches", 1, "--parallel.devices", 1)
    first = call(capsys, "train", CONFIG, *TINY, *flags, "--steps", 2)
    assert first.code == 0
    assert "is not what it was" not in call(capsys, "train", CONFIG, "--steps", 3, *flags).err
    text.write_text(TEXT.replace("7", "8"))
    assert "the data is not what it was" in call(capsys, "train", CONFIG, "--steps", 4, *flags).err

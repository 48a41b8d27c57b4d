"""What the training loop tells of steps and settings that a user might not expect."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from zoo import Optimizer, Run
from zoo.core.parallel import Parallel
from zoo.data.images import Images
from zoo.data.text import Text
from zoo.dcgan import DCGAN
from zoo.harness.loop import fit, warn
from zoo.lstm_lm import LSTMLM

RUN = Run(
    family=LSTMLM(layers=1, width=4, embedding=4, context=1), data=Text(), parallel=Parallel(devices=1), steps=12,
    batch_size=1, log_every=4, eval_every=0, eval_batches=1, save_every=0,
)  # fmt: skip


def test_steps_without_anything_to_predict_are_reported(tmp_path):
    """Of documents of one character, windows of one token are a character, the end, or the boundary, without loss."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": "abcdefgh"[n % 8] * (1 + n // 8)}) + "\n" for n in range(24)))
    trained = fit(replace(RUN, data=Text(path=str(texts), field="text"), steps=40, rundir=str(tmp_path / "run")))
    lines = (Path(trained.path) / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["split"] == "train"]
    assert all(("loss" in line) == (line["skipped"] == 0) for line in steps)
    told = (Path(trained.path) / "log.txt").read_text()
    reported = [line for line in told.splitlines() if "changed nothing" in line]
    count = sum(int(line.split("step ")[1].split(": ")[1].split(" of")[0]) for line in reported)
    # `updates` leaves out every step that changed nothing.
    assert 0 < count == 40 - int(trained.model.state.net.updates)


@pytest.mark.parametrize(("schedule", "start", "words"), [
    ("cosine", 100, "at step 100 from 0.0001 to 0.00055, as the schedule is cosine"),
    ("linear", 50, "at step 50 from 0.00055 to 0.000775"),
    ("constant", 100, ""),
    ("wsd", 80, ""),
    ("wsd", 90, "at step 90 from 0.00055 to 0.001"),
])  # fmt: skip
def test_a_longer_run_says_where_the_learning_rate_jumps(caplog, schedule, start, words):
    run = replace(RUN, optimizer=Optimizer(schedule=schedule), steps=100)
    with caplog.at_level(logging.INFO, "zoo"):
        warn(run, run, start)
        assert not caplog.text
        warn(run, replace(run, steps=200), start)
    assert words in caplog.text
    assert bool(words) == bool(caplog.text)


def test_microbatches_that_change_the_result_are_warned_of(caplog):
    optimizer = Optimizer(name="adam", microbatches=2)
    with caplog.at_level(logging.INFO, "zoo"):
        warn(RUN, replace(RUN, optimizer=optimizer), 0)
        run = Run(family=DCGAN(), data=Images(), optimizer=Optimizer(name="adam"))
        warn(run, run, 0)
        assert not caplog.text
        run = replace(run, optimizer=optimizer)
        warn(run, run, 0)
    assert "--optimizer.microbatches" in caplog.text
    assert DCGAN.couples_rows in caplog.text

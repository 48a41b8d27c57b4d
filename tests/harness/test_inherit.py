"""`--init.from RUN` on the command line: what the new run takes from the old one, and what flags change."""

import json
import shutil
from dataclasses import replace

import pytest
from command_line import CONFIG, TEXT, call, refused
from paths import REFERENCES, ROOT

from zoo import Run
from zoo.core.parallel import Parallel
from zoo.data.images import Images
from zoo.data.pairs import Pairs
from zoo.data.specs import BlockSpec, ImageSpec, PairSpec
from zoo.data.text import Text
from zoo.data.tokenizers import Bytes, Characters
from zoo.harness.flags import load_config
from zoo.harness.loop import fit
from zoo.interop.transformers import import_run
from zoo.transformer_lm import TransformerLM

FAMILY = TransformerLM(
    layers=1, heads=2, kv_heads=1, width=16, context=16, positions="rope", norm="rmsnorm", mlp="swiglu", mlp_width=24
)
SHORT = ("--steps", "1", "--batch-size", "8", "--eval-batches", "1", "--score-every", "0", "--sample-every", "0")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def source(text, tmp_path_factory):
    """A run of one step that is like the config in neither its network nor its tokenizer."""
    rundir = tmp_path_factory.mktemp("runs") / "source"
    data = Text(path=str(text), tokenizer="bytes")
    run = Run(family=FAMILY, data=data, parallel=Parallel(devices=1), steps=1, batch_size=8, rundir=str(rundir))
    fit(replace(run, eval_batches=1))
    return rundir


def test_the_source_gives_the_settings_that_no_flag_gives(capsys, source, text, tmp_path):
    source = shutil.copytree(source, tmp_path / "source")
    flags = ("--init.from", source, "--data.path", text, "--rundir", tmp_path / "new", *SHORT)
    result = call(capsys, "train", CONFIG, *flags, "--family.dropout", "0.25")
    assert result.code == 0, result.err
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    expected = vars(FAMILY) | {"dropout": 0.25}
    assert {name: saved["family"][name] for name in expected} == expected
    assert saved["data"]["tokenizer"] == "bytes"
    assert saved["optimizer"]["learning_rate"] == load_config(CONFIG).optimizer.learning_rate
    (taken,) = [line for line in result.err.splitlines() if line.startswith(f"settings from {source}")]
    assert "--family.positions rope" in taken
    assert "--family.width 16" in taken
    assert "--data.tokenizer bytes" in taken
    assert "dropout" not in taken
    assert f"settings that differ from {source}: --family.dropout is 0.0 there and 0.25 here" in result.err
    # The same command resumes it, and does not need the source.
    shutil.rmtree(source)
    assert call(capsys, "train", CONFIG, *flags, "--family.dropout", "0.25", "--steps", "2").code == 0


@pytest.mark.slow
def test_an_imported_checkpoint_is_fine_tuned_without_a_flag_of_its_shape(capsys, text, tmp_path):
    imported, new = tmp_path / "imported", tmp_path / "new"
    import_run(REFERENCES / "llama", imported)
    result = call(capsys, "train", CONFIG, "--init.from", imported, "--data.path", text, "--rundir", new, *SHORT)
    assert result.code == 0, result.err
    theirs, ours = (json.loads((run / "config.json").read_text())["family"] for run in (imported, new))
    assert ours == theirs | {"context": min(theirs["context"], load_config(CONFIG).family.context)}


def test_a_flag_that_the_weights_do_not_fit_is_refused(capsys, source, text, tmp_path):
    flags = ("--init.from", source, "--data.path", text, "--rundir", tmp_path / "new", *SHORT)
    refused(call(capsys, "train", CONFIG, *flags, "--family.mlp-width", "32"), "mlp_width is 24 there and 32 here")
    refused(call(capsys, "train", CONFIG, *flags, "--data.tokenizer", "bpe"), "--data.tokenizer bytes")
    assert not (tmp_path / "new").exists()


def test_a_run_of_another_family_is_refused(capsys, source, text, tmp_path):
    config = ROOT / "configs" / "lstm_lm.py"
    flags = ("--init.from", source, "--data.path", text, "--rundir", tmp_path / "new", *SHORT)
    refused(call(capsys, "train", config, *flags), str(source), "TransformerLM", "LSTMLM")


def test_only_rotary_positions_let_the_context_be_the_configs():
    config = TransformerLM(context=64)
    assert replace(FAMILY, context=8192).for_fine_tuning(config).context == 64
    assert FAMILY.for_fine_tuning(config).context == 16
    learned = TransformerLM(context=1024, width=64)
    assert learned.for_fine_tuning(config) == learned


def test_data_is_set_to_an_earlier_spec():
    assert Text().fitting(BlockSpec(Bytes())).tokenizer == "bytes"
    pairs = Pairs().fitting(PairSpec(Bytes(), Characters("ab")))
    assert (pairs.source_tokenizer, pairs.target_tokenizer) == ("bytes", "characters")
    images = Images(path="folder", size=8).fitting(ImageSpec(64, 64, 3))
    assert (images.path, images.size, images.channels) == ("folder", 64, 3)
    assert Images(size=8).fitting(ImageSpec(20, 30, 1)).size == 8

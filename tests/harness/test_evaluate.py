"""Which rows are scored: dev, test, all, or another source; and what is recorded of them."""

import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from command_line import CONFIG, TEXT, TINY, call, refused

from zoo import Run, fit, load_config
from zoo.classifier import Classifier
from zoo.data.images import Images
from zoo.data.images.pixels import from_pixels
from zoo.data.text import Text
from zoo.flow_matching import FlowMatching, FlowScoring
from zoo.harness.flags import parse_flags
from zoo.harness.trained import Trained
from zoo.vqvae import VQVAE, VQVAEScoring

CUT = int(len(TEXT) * 0.8)
MIDDLE = CUT + (len(TEXT) - CUT) // 2
PARTS = {"dev": TEXT[CUT:MIDDLE], "test": TEXT[MIDDLE:], "all": TEXT}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A language model of a few steps on a text, and beside it what the text's parts must be."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "text.txt").write_text(TEXT)
    for name, text in PARTS.items():
        (folder / f"{name}.txt").write_text(text)
    data = ("--data.path", str(folder / "text.txt"), "--data.held-out", "0.2", "--rundir", str(folder / "run"))
    run = load_config(CONFIG)
    # One step with a large rate, so that the parts have different losses.
    return fit(parse_flags(Run, run, [*TINY, *data, "--steps", "3", "--optimizer.learning-rate", "0.1"], "test"))


def scores(capsys: pytest.CaptureFixture[str], trained: Trained, *flags: object) -> dict:
    result = call(capsys, "evaluate", trained.path, "--json", *flags)
    assert (result.code, result.err) == (0, "")
    record = json.loads(result.out)
    assert json.loads((trained.path / "scores.jsonl").read_text().splitlines()[-1]) == record
    return record


def test_a_split_scores_as_its_text_alone(trained, capsys):
    """The same text in a file of its own, all of which is scored, has the same loss."""
    folder, losses = trained.path.parent, {}
    for split in PARTS:
        flags = ("--split", split) if split != "dev" else ()
        found = scores(capsys, trained, *flags)
        assert (found["split"], found["data"]) == (split, str(folder / "text.txt"))
        alone = scores(capsys, trained, "--data.path", folder / f"{split}.txt")
        assert (alone["split"], alone["data"]) == ("all", str(folder / f"{split}.txt"))
        assert alone["loss"] == pytest.approx(found["loss"], rel=1e-6)
        assert trained.evaluate(split=split)["loss"] == pytest.approx(found["loss"], rel=1e-6)
        losses[split] = found["loss"]
    assert len({round(loss, 4) for loss in losses.values()}) == 3


def test_training_looks_at_dev_alone(trained, capsys):
    lines = [json.loads(line) for line in (trained.path / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "eval"][-1]
    assert last["loss"] == pytest.approx(scores(capsys, trained)["loss"], rel=1e-6)
    assert trained.data.split == "dev"


def test_another_source_may_be_tiny_or_split(trained, capsys):
    folder = trained.path.parent
    (folder / "tiny.txt").write_text("Li")
    tiny = scores(capsys, trained, "--data.path", folder / "tiny.txt")
    net, tokenizer = trained.net(), trained.model.spec.tokenizer
    stream = np.array([[tokenizer.end_of_text, *tokenizer.encode("Li"), tokenizer.end_of_text]])
    logits = np.asarray(net(jnp.asarray(stream[:, :-1])), np.float64)[0]
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(3), stream[0, 1:]]
    assert tiny["loss"] == pytest.approx(nats.mean(), rel=1e-4)
    other = scores(capsys, trained, "--data.path", folder / "all.txt", "--split", "test")
    assert other["split"] == "test"
    assert other["loss"] == pytest.approx(scores(capsys, trained, "--split", "test")["loss"], rel=1e-6)
    held_out = trained.held_out("all", Text(path=str(folder / "tiny.txt")))
    assert trained.evaluate(data=held_out)["loss"] == pytest.approx(tiny["loss"], rel=1e-6)


def test_another_source_that_does_not_fit_is_named(trained, capsys):
    folder = trained.path.parent
    (folder / "greek.txt").write_text("αβγ" * 9)
    refused(call(capsys, "evaluate", trained.path, "--data.path", folder / "greek.txt"), "'α' (U+03B1)", "lacks")
    refused(call(capsys, "evaluate", trained.path, "--data.path", folder / "none.txt"), "there is no file")
    bytewise = ("--data.path", folder / "all.txt", "--data.tokenizer", "bytes")
    refused(call(capsys, "evaluate", trained.path, *bytewise), "tokenizer is characters, not bytes")
    wrong = call(capsys, "evaluate", trained.path, "--split", "train")
    assert wrong.code == 2
    assert "dev" in wrong.err


def test_images_of_another_source(capsys, tmp_path):
    random = np.random.default_rng(0)
    for name, size, n in (("a", 8, 40), ("b", 8, 3), ("large", 9, 3)):
        images = random.integers(0, 256, (n, size, size, 1), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(n) % 2)
    run = Run(
        family=Classifier(width=4, features=6), data=Images(path=str(tmp_path / "a.npz")), steps=1, batch_size=8,
        rundir=str(tmp_path / "run"),
    )  # fmt: skip
    trained = fit(run)
    assert scores(capsys, trained, "--split", "test")["split"] == "test"
    found = scores(capsys, trained, "--data.path", tmp_path / "b.npz")
    assert found["split"] == "all"
    spec, data = trained.model.spec, np.load(tmp_path / "b.npz")
    logits = np.asarray(trained.net()(from_pixels(jnp.asarray(data["images"])))[1], np.float64)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(3), data["labels"]]
    assert found["loss"] == pytest.approx(nats.mean(), rel=1e-4)
    assert spec.classes == ("0", "1")
    large = call(capsys, "evaluate", trained.path, "--data.path", tmp_path / "large.npz")
    refused(large, "9x9", "8x8", "--data.size 8")


@pytest.fixture
def grey(tmp_path):
    """Forty labelled grey images of 28x28 pixels, and one in a file."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 2)
    PIL.Image.fromarray(images[0, :, :, 0]).save(tmp_path / "one.png")
    return Images(path=str(tmp_path / "images.npz"))


@pytest.mark.parametrize(
    ("family", "scoring", "figures"),
    [
        (VQVAE(width=4, layers=1), VQVAEScoring(samples=8), {"reconstruction_nats"}),
        pytest.param(
            FlowMatching(network="dit", patch=7, width=8, heads=1, layers=1),
            FlowScoring(samples=8, steps=2, ode_images=30, ode_steps=1),
            {"ode_bits_per_dim", "bits_per_dim_of", "ode_images"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["vqvae", "flow"],
)
def test_one_image_has_its_likelihood_and_no_samples(grey, family, scoring, figures, tmp_path, capsys):
    """Whatever the run's settings ask for, since samples are compared with many images; the file has no class."""
    run = Run(family=family, data=grey, steps=1, batch_size=8, scoring=scoring, rundir=str(tmp_path / "run"))
    found = scores(capsys, fit(run), "--image", tmp_path / "one.png")
    assert figures <= found.keys()
    assert (found["rows"], "samples" in found, "fid" in found) == (1, False, False)
    assert found.get("ode_images", 1) == 1
    assert found.get("bits_per_dim_of", "p(x)") == "p(x)"

"""Metrics of images: figures from features against other programs and by hand, and how samples are scored."""

import hashlib
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_metrics_cases import check_metrics
from paths import REFERENCES
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.linalg import sqrtm

from zoo.classifier import Classifier, ConvNet
from zoo.core.errors import UserError
from zoo.core.extractor import Extractor
from zoo.core.family import Model, Request, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.images import Images
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import ImageSpec
from zoo.harness import extractors
from zoo.harness.config import Run
from zoo.harness.extractors import MNIST, load_extractor, write_extractor
from zoo.harness.loop import fit
from zoo.harness.trained import Trained, inference_state
from zoo.metrics import images as image_metrics
from zoo.metrics.features import class_shares, classifier_score, frechet_distance, kernel_distance, precision_recall
from zoo.metrics.images import ImageScoring, compare, score_samples

GREY = ImageSpec(28, 28, 1)


def test_figures_are_those_of_torch_fidelity():
    check_metrics(REFERENCES)


def test_frechet_distance_is_the_formula_by_scipys_matrix_square_root():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 6)), rng.standard_normal((40, 6)) @ rng.standard_normal((6, 6)) + 0.3
    S_1, S_2 = np.cov(x.T), np.cov(y.T)
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    expected = shift + np.trace(S_1 + S_2 - 2 * sqrtm(S_1 @ S_2).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_fewer_vectors_than_dimensions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 40))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 0.1) == pytest.approx(40 * 0.01, abs=1e-6)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * (np.square(x.mean(0)).sum() + np.trace(np.cov(x.T))))
    assert frechet_distance(np.zeros((5, 3)), np.ones((4, 3))) == 3


def test_kernel_distance_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))

    def mean(a, b, pairs):
        return np.mean([(a[i] @ b[j] / 3 + 1) ** 3 for i, j in pairs])

    every = [(i, j) for i in range(5) for j in range(5)]
    others = [(i, j) for i, j in every if i != j]
    expected = mean(x, x, others) + mean(y, y, others) - 2 * mean(x, y, every)
    assert kernel_distance(x, y, subsets=3) == pytest.approx((expected, 0))


def test_kernel_distance_is_unbiased_where_frechet_distance_is_not():
    rng = np.random.default_rng(0)
    x, small, large = (rng.standard_normal((n, 8)) for n in (2000, 30, 1000))
    kid, kid_std = kernel_distance(x, small, subsets=200)
    assert abs(kid) < 3 * kid_std
    assert frechet_distance(x, small) > 10 * frechet_distance(x, large)


def test_precision_and_recall_by_hand():
    line = np.arange(8.0)[:, None]
    # Each ball around 0 .. 7 reaches 3 at the ends and 2 inside: together from -3 to 10.
    assert precision_recall(line, np.array([[-3.1], [-2.9], [9.9], [10.1]]), 3)[0] == 0.5
    near, far = np.random.default_rng(0).standard_normal((2, 200, 4))
    both = np.concatenate([near, far + 100])
    assert precision_recall(both, near) == (1.0, 0.5)  # half of what there is, and nothing else
    assert precision_recall(near, both) == (0.5, 1.0)
    assert precision_recall(near, near + 100) == (0.0, 0.0)


def test_a_vector_lies_in_the_ball_around_its_double():
    doubles = np.random.default_rng(0).standard_normal((60, 128)).repeat(4, axis=0)
    assert precision_recall(doubles, doubles[:9])[0] == 1  # balls of radius zero, but for rounding


def test_precision_and_recall_do_not_depend_on_blocks(monkeypatch):
    real, fake = np.random.default_rng(0).standard_normal((2, 50, 6))
    whole = precision_recall(real, fake)
    monkeypatch.setattr("zoo.metrics.features.BLOCK", 7)
    assert precision_recall(real, fake) == whole
    assert 0 < whole[0] < 1


def test_classifier_score_and_class_shares():
    sure = 1000.0 * np.eye(4)
    assert classifier_score(sure) == pytest.approx(4)
    assert classifier_score(np.zeros((5, 4))) == pytest.approx(1)
    assert classifier_score(sure[:1].repeat(3, axis=0)) == pytest.approx(1)
    assert class_shares(sure[[0, 0, 3, 0]]).tolist() == [0.75, 0, 0, 0.25]


# -------------------------------------------------------------------------------------------- extractors


@pytest.fixture(scope="module")
def mnist():
    return Images().open(length=None, batch_size=100, seed=0).on("test")


@pytest.fixture(scope="module")
def mnist_features(mnist):
    return load_extractor("auto", mnist.spec)(mnist.held_out_images)


def test_the_embedded_classifier_is_what_its_readme_says(mnist, mnist_features):
    accuracy = (mnist_features.logits.argmax(1) == mnist.held_out_labels).mean()
    assert accuracy >= 0.995
    assert np.trace(np.cov(mnist_features.features.T)) == pytest.approx(100, rel=1e-3)
    digest = hashlib.sha256(MNIST.read_bytes()).hexdigest()
    told = (MNIST.parent / "README.md").read_text()
    assert digest in told
    assert f"{100 * accuracy:.2f} %" in told
    assert load_extractor("mnist", mnist.spec).hash == digest[:12]
    assert MNIST.stat().st_size < 1e6


def test_padded_digits_are_seen_as_unpadded(mnist, mnist_features):
    padded = np.pad(mnist.held_out_images[:5], ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = load_extractor("auto", ImageSpec(32, 32, 1))(padded)
    np.testing.assert_allclose(seen.features, mnist_features.features[:5], atol=1e-5)


def test_an_extractor_is_a_function_with_a_name():
    calls = []

    def apply(images):
        calls.append(len(images))
        return images.mean((1, 2)).astype(np.float32), images[:, 0, :2, 0].astype(np.float32)

    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)
    seen = Extractor("mine", "v1", apply, batch_size=4)(images)
    assert calls == [4, 4, 4]
    np.testing.assert_allclose(seen.features, images.mean((1, 2)), rtol=1e-6)
    assert seen.logits.shape == (11, 2)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("auto", ImageSpec(28, 28, 3), "28x28 in colour: name a file of Inception-v3 weights"),
        ("auto", ImageSpec(64, 64, 1), "64x64 in grey"),
        (
            "nothing.pth",
            GREY,
            r"extractor is 'nothing.pth'; it must be auto, mnist, a file of weights, or a run directory",
        ),
    ],
)
def test_an_extractor_that_does_not_fit_is_named(name, spec, message):
    with pytest.raises(UserError, match=message):
        load_extractor(name, spec)


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 27, 28, 1), (2, 64, 64, 1)])
def test_the_classifier_refuses_images_of_another_kind(shape):
    with pytest.raises(UserError, match="of images that are 28x28 in grey, and these are"):
        load_extractor("mnist", GREY)(np.zeros(shape, np.uint8))


def test_weights_that_are_none_are_refused(tmp_path):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no Inception-v3"):
        load_extractor(str(tmp_path / "x.safetensors"), GREY)
    (tmp_path / "y.pth").write_text("hello")
    with pytest.raises(UserError, match=r"y\.pth is neither"):
        load_extractor(str(tmp_path / "y.pth"), GREY)


# ---------------------------------------------------------------------------------------- the classifier


@pytest.fixture
def small(tmp_path) -> Images:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", images=images, labels=np.arange(60) % 3)
    return Images(path=str(tmp_path / "small.npz"), held_out=0.8)


@pytest.fixture
def trained(small, tmp_path) -> Trained:
    """A classifier before its first step."""
    family = Classifier(width=4, features=6)
    run = Run(family=family, data=small, batch_size=16)
    spec = small.open(length=None, batch_size=16, seed=0).spec
    state = family.init(spec, Setup(Optimizer(), 1, 16), jax.random.key(0))
    return Trained(run, Model(family, spec, inference_state(state), 7), tmp_path)


def test_a_classifier_written_to_a_file_is_an_extractor(trained, tmp_path):
    path = tmp_path / "mine.safetensors"
    about = write_extractor(trained, path)
    assert about["steps"] == "7"
    images = trained.held_out("test").held_out_images
    seen = load_extractor(str(path), trained.model.spec)(images)
    features, logits = trained.net()(from_pixels(jnp.asarray(images)))
    np.testing.assert_allclose(seen.features, float(about["scale"]) * features, rtol=0.01, atol=0.05)
    np.testing.assert_allclose(seen.logits, logits, atol=0.01)
    assert np.trace(np.cov(seen.features.T)) == pytest.approx(100, rel=1e-3)
    shares = [
        value for name, value in compare(seen, seen, trained.model.spec.classes).items() if "class_share_" in name
    ]
    assert len(shares) == 3


def test_a_run_directory_names_the_extractor_that_its_file_holds(small, tmp_path):
    run = Run(family=Classifier(width=4, features=6), data=small, batch_size=16, steps=1, rundir=str(tmp_path / "run"))
    trained, path = fit(run), tmp_path / "mine.safetensors"
    write_extractor(trained, path)
    images = trained.held_out("test").held_out_images
    of_run, of_file = (load_extractor(str(name), trained.model.spec) for name in (trained.path, path))
    for one, other in zip(of_run(images), of_file(images), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (of_run.name, of_run.classes) == ("run", trained.model.spec.classes)
    assert re.fullmatch("[0-9a-f]{12}", of_run.hash)


def test_an_extractors_file_needs_family_spec_and_scale_alone(tmp_path):
    with safe_open(MNIST, "numpy") as opened:
        about = {name: opened.metadata()[name] for name in ("family", "spec", "scale")}
    save_file(load_file(MNIST), tmp_path / "bare.safetensors", metadata=about)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    bare, embedded = (load_extractor(name, GREY)(images) for name in (str(tmp_path / "bare.safetensors"), "mnist"))
    np.testing.assert_array_equal(bare.features, embedded.features)


def test_the_command_writes_an_extractor_and_says_what_it_is(trained, tmp_path, monkeypatch, capsys):
    path, loaded = tmp_path / "mine.safetensors", []
    monkeypatch.setattr(extractors, "load_run", lambda run: loaded.append(run) or trained)
    monkeypatch.setattr(sys, "argv", ["extractors", "runs/mine", str(path)])
    extractors.main()
    assert loaded == ["runs/mine"]
    about = json.loads(capsys.readouterr().out)
    assert (about["steps"], about["data"]) == ("7", trained.held_out("test").describe())
    assert load_extractor(str(path), trained.model.spec).name == "mine"
    for arguments in ([], ["runs/mine"], ["runs/mine", str(path), "more"]):
        monkeypatch.setattr(sys, "argv", ["extractors", *arguments])
        with pytest.raises(UserError, match="usage: python -m zoo"):
            extractors.main()


def test_only_a_classifier_becomes_an_extractor(trained, tmp_path):
    trained.model = replace(trained.model, family=object())
    with pytest.raises(UserError, match="a run of object, which extracts no features; give a run of a classifier"):
        write_extractor(trained, tmp_path / "other.safetensors")


def test_what_a_classifier_looks_for_is_found_by_steps_of_a_tenth(trained, monkeypatch):
    """By hand, of a score whose gradient is 2 slope (3 - x): 64 steps from noise of deviation 0.1, within -1 to 1."""
    spec = ImageSpec(8, 8, 1, ("a", "b"))
    slope = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32) / 100

    def quadratic(self, x, **_):
        score = (-jnp.square(3 - x) * slope).sum((1, 2, 3))
        return x, jnp.stack([score, -score], 1)

    monkeypatch.setattr(ConvNet, "__call__", quadratic)
    model, key = replace(trained.model, spec=spec), jax.random.key(3)
    made = np.stack([image.pixels for image in trained.model.family.sample(model, Request(n=4), key)])
    x = 0.1 * np.stack([jax.random.normal(jax.random.fold_in(key, i), (8, 8, 1)) for i in range(4)])
    sign = np.array([1, -1, 1, -1]).reshape(4, 1, 1, 1)
    for _ in range(64):
        g = sign * slope * (3 - x)
        x = np.clip(x + 0.1 * g / np.abs(g).max((1, 2, 3), keepdims=True), -1, 1)
    np.testing.assert_allclose(made / 127.5 - 1, x, atol=0.01)


def test_images_without_labels_have_no_loss_and_no_classes_are_refused(trained):
    batch = trained.data.held_out_at(0) | {"label": np.array([-1, 0, 1, 2] * 4, np.int32)}
    rows = trained.model.family.evaluate(trained.model.state, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    for values, weight in rows.values():
        assert weight.tolist() == [0, 1, 1, 1] * 4
        assert (values[::4] == 0).all()
    with pytest.raises(UserError, match="no classes for a classifier to learn"):
        Classifier().init(ImageSpec(8, 8, 1), Setup(Optimizer(), 1, 1), jax.random.key(0))


# --------------------------------------------------------------------------------------- scoring samples


KEY = jax.random.key(0)


def held_out(data):
    """A model that has learned the held-out images by heart."""
    return lambda classes: data.held_out_images[: len(classes)]


def test_held_out_images_score_as_themselves_and_how_is_told(small, caplog):
    data = small.open(length=None, batch_size=16, seed=0)
    n = len(data.held_out_images)
    image_metrics._warn_of_bias.cache_clear()
    scoring = ImageScoring(samples=n)
    for _ in range(2):
        found = score_samples(held_out(data), data, scoring, {"sampler": "ddim", "steps": 50}, KEY, load_extractor)
    assert found["fid"] == pytest.approx(0, abs=1e-4)
    assert found["kid"] < 0  # the diagonal counts between the sets alone
    assert (found["precision"], found["recall"]) == (1, 1)
    assert found["smallest_class_share"] == min(found[f"class_share_{digit}"] for digit in range(10))
    assert sum(found[f"class_share_{digit}"] for digit in range(10)) == pytest.approx(1)
    assert found["samples"] == n
    assert found["reference"] == f"{n} held-out images"
    assert re.fullmatch("mnist classifier [0-9a-f]{12}", found["extractor"])
    assert (found["sampler"], found["steps"]) == ("ddim", 50)
    assert "biased" in found["fid_is"]
    assert len([record for record in caplog.records if "biased" in record.message]) == 1
    assert all(isinstance(value, str | int | float) for value in found.values())
    # `evaluate.py` merges both into one record: neither may overwrite the other.
    assert found.keys().isdisjoint(Trained.setting(SimpleNamespace(run=Run(family=Classifier(), data=small))))


def test_the_floor_is_training_images_against_held_out_ones(small):
    data = small.open(length=None, batch_size=16, seed=0)
    images = data.batch_at(0)["image"]
    found = score_samples(
        lambda _: images[:10], data, ImageScoring(samples=10, floor=True, references=20), {}, KEY, load_extractor
    )
    assert found["reference"] == "20 held-out images"
    for name in ("fid", "kid", "precision", "recall", "classifier_score", "smallest_class_share"):
        assert found[f"floor_{name}"] == found[name]
    assert found["fid"] > 0


def first_pixels(images):
    """Features without a network."""
    return images.reshape(len(images), -1)[:, :5].astype(np.float32), np.zeros((len(images), 2), np.float32)


def test_references_are_extracted_once(small):
    data, calls = small.open(length=None, batch_size=16, seed=0), []

    def apply(images):
        calls.append(len(images))
        return first_pixels(images)

    counting = Extractor("counting", "v1", apply)
    for references in (0, 0, 20):
        score_samples(
            held_out(data), data, ImageScoring(samples=8, references=references), {}, KEY, lambda *_: counting
        )
    assert calls == [16, 16, 8, 8, 16, 16, 8]


def test_fid_of_fewer_than_5000_samples_is_called_biased(small):
    plain = Extractor("plain", "v1", first_pixels)
    data = small.open(length=None, batch_size=16, seed=0)
    some = data.held_out_images
    for n, biased in ((4999, True), (5000, False)):
        made = np.resize(some, (n, *some.shape[1:]))
        found = score_samples(lambda _, made=made: made, data, ImageScoring(samples=n), {}, KEY, lambda *_: plain)
        assert ("fid_is" in found) == biased


@pytest.mark.parametrize("settings", [{"samples": 3}, {"references": 2}, {"samples": -1}, {"floor": True}])
def test_too_few_images_to_compare_are_refused(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))} is"):
        ImageScoring(**settings)


def test_more_references_than_there_are_are_refused(small):
    data = small.open(length=None, batch_size=16, seed=0)
    with pytest.raises(UserError, match="24 held-out images to compare with, and references is 100"):
        score_samples(held_out(data), data, ImageScoring(samples=4, references=100), {}, KEY, load_extractor)

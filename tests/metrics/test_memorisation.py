"""Nearest neighbours by hand, and verdicts of models that copy, that draw anew, and that do both."""

import numpy as np
import pytest

from zoo.metrics.memorisation import memorisation, nearest, show_nearest


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((n, 6)) for name, n in {"train": 600, "held_out": 400, "new": 500}.items()}


def test_nearest_is_by_brute_force(points, monkeypatch):
    monkeypatch.setattr("zoo.metrics.memorisation.AT_ONCE", 7)
    distance, place = nearest(points["new"], points["train"])
    whole = np.linalg.norm(points["new"][:, None] - points["train"][None], axis=-1)
    np.testing.assert_array_equal(place, whole.argmin(1))
    np.testing.assert_allclose(distance, whole.min(1), atol=1e-9)
    distance, place = nearest(points["train"], points["train"], same=True)
    assert (place != np.arange(600)).all()
    assert (distance > 0).all()


def test_verdicts(points):
    train, held_out, new = points["train"], points["held_out"], points["new"]
    fresh = memorisation(new, train, held_out)
    assert 0.4 < fresh["nearer_than_held_out"] < 0.6
    assert fresh["memorisation"].startswith("no sign of memorisation")
    assert abs(fresh["authenticity"] - fresh["real_authenticity"]) < 0.1
    copied = memorisation(train[:500] + 1e-3, train, held_out)
    assert copied["authenticity"] == 0.0
    assert copied["copies"] == copied["nearer_than_held_out"] == 1.0
    assert copied["memorisation"].startswith("copies training images: 100%")
    some = memorisation(np.concatenate([new[:450], train[:50]]), train, held_out)
    assert some["copies"] == pytest.approx(0.1, abs=0.01)
    assert some["memorisation"].startswith("copies training images")
    close = memorisation(train[:500] + 0.3 * new, train, held_out)
    assert close["memorisation"].startswith(("close", "copies"))


def test_samples_stand_beside_their_nearest_by_features_and_by_pixels():
    train = np.stack([np.full((2, 2, 1), value, np.uint8) for value in (0, 100, 200)])
    features = np.array([[0.0], [1.0], [2.0]])
    images, found = np.full((1, 2, 2, 1), 90, np.uint8), np.array([[1.9]])
    shown = show_nearest(images, found, train, features).pixels[..., 0]
    np.testing.assert_array_equal(shown[3, [3, 7, 11]], [90, 200, 100])

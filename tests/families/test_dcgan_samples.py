"""DCGAN's samples: seeds, labels, walks, truncated noise."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dcgan_cases import KEY, OPTIMIZER, SPEC, assert_equal, differ, make
from scipy import stats

from zoo.core.errors import UserError
from zoo.core.family import Model
from zoo.dcgan import DCGAN
from zoo.harness.trained import inference_state
from zoo.sampling.latent_paths import truncated


@pytest.fixture(scope="module")
def model() -> Model:
    family, state = make(conditional=True, optimizer=replace(OPTIMIZER, ema_decay=0.9))
    return Model(family, SPEC, inference_state(state), 0)


def samples(model, key=KEY, **request):
    return [image.pixels for image in model.family.sample(model, model.family.Request(**request), key)]


def test_a_sample_is_the_same_however_many_are_made(model):
    many, few = samples(model, n=5), samples(model, n=2)
    assert_equal(many[:2], few)
    assert many[0].shape == (32, 32, 1)
    assert differ(many[0], many[1])
    assert differ(samples(model, n=1, key=jax.random.key(6)), few[:1])


def test_labels_are_given_by_name_or_number_or_all_in_turn(model):
    in_turn = samples(model, n=3)
    for number, name in enumerate(SPEC.classes):
        assert_equal(samples(model, n=3, label=name), samples(model, n=3, label=str(number)))
        assert_equal(samples(model, n=3, label=name)[number], in_turn[number])
    for label in ("3", "three", "-1"):
        with pytest.raises(UserError, match=rf"label is '{label}'.*zero, one, two"):
            samples(model, label=label)
    free, state = make()
    with pytest.raises(UserError, match="without classes"):
        samples(Model(free, SPEC, inference_state(state), 0), label="one")


def test_a_walk_starts_at_the_sample(model):
    (strip, _), (single, _) = samples(model, n=2, interpolate=4), samples(model, n=2)
    frames = [strip[2:34, 2 + 34 * i : 34 + 34 * i].astype(int) for i in range(4)]
    assert strip.shape == (36, 2 + 4 * 34, 1)
    assert np.abs(frames[0] - single).max() <= 1
    assert all(differ(a, b) for a, b in pairwise(frames))


def test_truncated_noise_is_normal_noise_cut_off():
    z = jax.random.normal(KEY, (1, 4000))
    inner = np.asarray(truncated(z, jnp.float32(1.5)))[0]
    assert np.abs(inner).max() <= 1.5
    assert stats.kstest(inner, stats.truncnorm(-1.5, 1.5).cdf).pvalue > 0.01
    assert stats.kstest(inner, stats.norm.cdf).pvalue < 1e-6
    assert (np.argsort(inner) == np.argsort(z[0])).all()
    assert_equal(truncated(z, jnp.float32(jnp.inf)), z)


@pytest.mark.parametrize("request_", [{"n": 0}, {"truncation": -1.0}, {"interpolate": 1}])
def test_requests_are_checked(request_):
    with pytest.raises(UserError, match=f"^{next(iter(request_))} is"):
        DCGAN.Request(**request_)

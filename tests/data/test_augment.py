import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.core.errors import UserError
from zoo.data.images import augment
from zoo.data.images.augment import Augment, diff_augment
from zoo.data.images.pixels import from_pixels

ROWS = np.arange(64, dtype=np.int32)
EVERYTHING = Augment(0.5, 30.0, 3, 0.7, 0.3, 0.3, 0.3, 40.0)


def images(n=64, size=16, channels=3, seed=0):
    """Smooth random pictures of many colours."""
    coarse = np.random.default_rng(seed).integers(40, 216, (n, 4, 4, channels), np.uint8)
    return np.asarray(jax.image.resize(coarse.astype(np.float32), (n, size, size, channels), "linear")).astype(np.uint8)


def apply(settings, image, key=0, rows=ROWS):
    return np.asarray(jax.jit(settings.apply)(image, jax.random.key(key), rows[: len(image)]))


def test_off_is_identity():
    batch = images()
    np.testing.assert_array_equal(apply(Augment(), batch), batch)
    np.testing.assert_array_equal(apply(Augment(rotation=1e-6), batch), batch)


def test_flip_mirrors_its_share_of_rows():
    batch = images(512)
    changed = apply(Augment(flip=0.3), batch, rows=np.arange(512, dtype=np.int32))
    mirrored = (changed == batch[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(changed[~mirrored], batch[~mirrored])
    assert 0.2 < mirrored.mean() < 0.4
    np.testing.assert_array_equal(apply(Augment(flip=1.0), batch[:64]), batch[:64, :, ::-1])


def test_a_shift_is_a_roll_within_repeated_borders():
    batch = images()
    moved = apply(Augment(shift=2), batch)
    padded = np.pad(batch, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    found = set()
    for row in range(64):
        places = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if (np.roll(padded[row], (dy, dx), (0, 1))[2:-2, 2:-2] == moved[row]).all()
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {y for y, _ in found} == {x for _, x in found} == {-2, -1, 0, 1, 2}


def test_rotation_by_a_right_angle_is_exact_and_stays_within_its_degrees():
    batch = images().astype(np.float32)
    turned = augment.rotate(jnp.asarray(batch), jnp.full(64, np.pi / 2))
    np.testing.assert_allclose(turned, np.rot90(batch, axes=(1, 2)), atol=1e-3)
    # A bar's angle, from its second moments, after rotations of up to 20 degrees.
    bar = np.zeros((64, 33, 33, 1), np.uint8)
    bar[:, 15:18, 6:27] = 255
    y, x = np.mgrid[-16:17, -16:17]
    mass = apply(Augment(rotation=20.0), bar)[..., 0] / 255.0
    angle = np.degrees(np.arctan2(2 * (mass * -x * y).sum((1, 2)), (mass * (x * x - y * y)).sum((1, 2)))) / 2
    assert abs(angle).max() < 20.5
    assert angle.min() < -15
    assert angle.max() > 15
    np.testing.assert_allclose(mass.sum((1, 2)), 63, rtol=0.02)
    halves = np.zeros((64, 16, 16, 1), np.uint8)
    halves[:, :, 8:] = 255
    tilted = apply(Augment(rotation=20.0), halves)
    assert (tilted[:, :, 0] == 0).all()
    assert (tilted[:, :, -1] == 255).all()


def test_crop_of_a_half_at_a_corner_is_that_quarter_enlarged():
    batch = jnp.asarray(images(2, 16).astype(np.float32))
    share, place = jnp.full(2, 0.5), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    cropped = np.asarray(augment.crop(batch, share, place))
    quarters = np.stack([batch[0, :8, 8:], batch[1, 8:, :8]])
    whole = np.asarray(jax.image.resize(quarters, (2, 16, 16, 3), "linear"))
    np.testing.assert_allclose(cropped[0, :-1, 1:], whole[0, :-1, 1:], atol=1e-3)  # inner borders see neighbours
    np.testing.assert_allclose(cropped[1, 1:, :-1], whole[1, 1:, :-1], atol=1e-3)
    np.testing.assert_allclose(augment.crop(batch, jnp.ones(2), place), batch, atol=1e-4)


def test_colours_change_as_told():
    batch = images()
    grey = np.array([0.299, 0.587, 0.114])
    factor = apply(Augment(brightness=0.15), batch).mean((1, 2, 3)) / batch.mean((1, 2, 3))
    assert 0.85 <= factor.min() < 0.9 < 1.1 < factor.max() <= 1.15
    changed = apply(Augment(contrast=0.15), batch)
    factor = changed.std((1, 2)).mean(1) / batch.std((1, 2)).mean(1)
    assert 0.84 <= factor.min() < 0.9 < 1.1 < factor.max() <= 1.16
    np.testing.assert_allclose((changed @ grey).mean((1, 2)), (batch @ grey).mean((1, 2)), atol=0.5)
    for settings in (Augment(saturation=0.3), Augment(hue=20.0)):
        changed = apply(settings, batch)
        assert abs(changed.astype(float) - batch).mean() > 1
        np.testing.assert_allclose(changed @ grey, batch @ grey, atol=1.5)


def test_hue_turns_and_turns_back():
    x = jnp.asarray(images(4).astype(np.float32)) / 255
    angle = jnp.array([0.0, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(augment.turn_hue(x, angle)[0], x[0], atol=1e-5)
    np.testing.assert_allclose(augment.turn_hue(augment.turn_hue(x, angle), -angle), x, atol=1e-5)
    np.testing.assert_allclose(augment.turn_hue(x, 2 * np.pi + 0 * angle), x, atol=1e-5)


@jax.jit
def whole(image, key, rows):
    return EVERYTHING.apply(image, key, rows)


@jax.jit
def diff(image, key, rows):
    return diff_augment(from_pixels(image), key, rows)


@pytest.mark.parametrize("function", [whole, diff])
def test_a_row_is_changed_the_same_wherever_it_lies(function):
    batch, key = jnp.asarray(images()), jax.random.key(1)
    order = np.random.default_rng(0).permutation(64)
    result = np.asarray(function(batch, key, jnp.asarray(ROWS)))
    np.testing.assert_allclose(function(batch[order], key, jnp.asarray(ROWS[order])), result[order], atol=1e-5)
    # Fewer rows are other code, and what it rounds to a whole number may lie halfway.
    few, rounding = function(batch[5:9], key, jnp.asarray(ROWS[5:9])), 1.0 if result.dtype == np.uint8 else 1e-5
    np.testing.assert_allclose(few, result[5:9], atol=rounding)
    assert np.mean(np.abs(np.asarray(few, np.float32) - result[5:9]) > 1e-5) < 0.01
    assert (function(batch, jax.random.key(2), jnp.asarray(ROWS)) != result).any((1, 2, 3)).all()
    same = function(jnp.broadcast_to(batch[:1], batch.shape), key, jnp.asarray(ROWS))
    assert len({row.tobytes() for row in np.asarray(same)}) == 64


def test_other_draws_compile_nothing_new():
    whole(jnp.asarray(images()), jax.random.key(0), jnp.asarray(ROWS))
    compiled = whole._cache_size()
    whole(jnp.asarray(images(seed=1)), jax.random.key(5), jnp.asarray(ROWS + 7))
    assert whole._cache_size() == compiled


def test_diff_augment_does_what_the_paper_says():
    """Holes of half the side, shifts of up to 1/8 with zeros, and brightness, on a picture of one colour."""
    x = jnp.full((256, 16, 16, 3), 0.25)
    result = np.asarray(jax.jit(diff_augment)(x, jax.random.key(0), jnp.arange(256, dtype=jnp.int32)))
    zero = (result == 0).all(-1)
    left = [np.unique(row[~hole]) for row, hole in zip(result, zero, strict=True)]
    values = np.array([value.mean() for value in left])
    assert all(np.ptp(value) < 1e-6 for value in left)
    assert -0.25 <= values.min() < -0.2
    assert 0.7 < values.max() <= 0.75
    share = zero.mean((1, 2))
    assert share.min() >= 16 / 256  # a quarter of a hole at a corner
    assert share.max() <= (64 + 60) / 256 + 1e-6
    assert zero.mean(0).min() > 0.05
    border = zero[:, :, :8].all(1).sum(1)
    assert {0, 1, 2} <= set(border.tolist())


def test_gradients_flow_through_diff_augment():
    x = from_pixels(jnp.asarray(images(8)))
    weight = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)

    @jax.jit
    def loss(x):
        return jnp.sum(diff_augment(x, jax.random.key(0), jnp.asarray(ROWS[:8])) * weight)

    gradient = jax.grad(loss)(x)
    assert np.isfinite(gradient).all()
    assert (abs(np.asarray(gradient)).sum((1, 2, 3)) > 1).all()
    direction = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    difference = loss(x + direction) - loss(x)  # the map is linear in x
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-3, atol=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"data.augment.flip is 1.5"),
        ({"rotation": -1.0}, r"rotation is -1.0"),
        ({"shift": -1}, "shift is -1"),
        ({"crop": 0.0}, "crop is 0.0"),
        ({"contrast": 2.0}, "contrast is 2.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        Augment(**settings)


def test_what_images_cannot_show_is_refused():
    with pytest.raises(UserError, match=r"hue 5\.0 changes colours"):
        Augment(hue=5.0).check(28, 28, 1)
    with pytest.raises(UserError, match="shift 28 moves"):
        Augment(shift=28).check(28, 28, 1)
    EVERYTHING.check(28, 28, 3)

"""The quantisers by hand, and against vector-quantize-pytorch."""

import jax
import jax.numpy as jnp
import numpy as np
from paths import REFERENCES
from quantisation_cases import check_codebook, check_finite_scalars, make_codebook

from zoo.nn.quantisation import FiniteScalar, straight_through


def test_a_codebook_is_that_of_vector_quantize_pytorch():
    check_codebook(REFERENCES)


def test_finite_scalars_are_those_of_vector_quantize_pytorch():
    check_finite_scalars(REFERENCES)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    z, quantised, towards = jax.random.normal(jax.random.key(0), (3, 5, 2))
    value, pull = jax.vjp(straight_through, z, quantised)
    np.testing.assert_array_equal(value, quantised)  # exactly: a decoder sees the same in training and from codes
    of_z, of_quantised = pull(towards)
    np.testing.assert_array_equal(of_z, towards)
    np.testing.assert_array_equal(of_quantised, 0.0)


# --------------------------------------------------------------------------------------------- the codebook


def test_codes_are_of_the_nearest_vectors():
    """Not of those with the largest product, which the farther vector has here."""
    book = make_codebook(np.array([[1.0, 0.0], [10.0, 0.0], [0.0, -2.0]]), np.ones(3))
    z = jnp.array([[[2.0, 0.0], [7.0, 1.0], [-1.0, -1.5], [5.4, 0.0]]])
    e, codes = book(z)
    np.testing.assert_array_equal(codes, [[0, 1, 2, 0]])
    np.testing.assert_array_equal(e[0], [[1.0, 0.0], [10.0, 0.0], [0.0, -2.0], [1.0, 0.0]])
    np.testing.assert_array_equal(book.lookup(codes), e)


def move(book, z, rows=None):
    """One update with vectors [b n d]."""
    rows = jnp.arange(len(z)) if rows is None else rows
    book.update(book.sums(z, book.nearest(z), rows, jax.random.key(7)))


def test_moving_averages_by_hand():
    """Decay 1/2: N = (4 + 2) / 2 and (2 + 1) / 2, m = (4 (1, 0) + (1, 1) + (2, 0)) / 2 and (2 (10, 0) + (9, 3)) / 2."""
    book = make_codebook(np.array([[1.0, 0.0], [10.0, 0.0]]), [4.0, 2.0], decay=0.5)
    move(book, jnp.array([[[1.0, 1.0]], [[9.0, 3.0]], [[2.0, 0.0]]]))
    np.testing.assert_array_equal(book.counts[...], [3.0, 1.5])
    np.testing.assert_array_equal(book.totals[...], [[3.5, 0.5], [14.5, 1.5]])
    np.testing.assert_allclose(book.vectors, [[7 / 6, 1 / 6], [29 / 3, 1.0]], rtol=1e-6)


def test_a_dead_code_becomes_a_vector_of_the_batch_and_the_others_move_as_ever():
    """Counts after decay 1/2 are 2, 2 and 0.05: below 0.1 times their mean, 1.35, is the third alone."""
    vectors, counts = np.array([[1.0, 0.0], [10.0, 0.0], [-50.0, 0.0]]), [2.0, 2.0, 0.1]
    z = jnp.array([[[1.0, 1.0], [9.0, 3.0]], [[2.0, 0.0], [11.0, 1.0]]])
    book, undisturbed = (make_codebook(vectors, counts, 0.5, revive, 2) for revive in (0.1, 1e-9))
    for each in (book, undisturbed):
        move(each, z)
    np.testing.assert_array_equal(book.vectors[:2], undisturbed.vectors[:2])
    np.testing.assert_array_equal(undisturbed.vectors[2], vectors[2])
    np.testing.assert_allclose(book.counts[...], [2.0, 2.0, 0.135], rtol=1e-5)
    given, revived = np.asarray(z).reshape(4, 2), np.asarray(book.vectors[2])
    away = np.linalg.norm(revived - given, axis=1) / np.linalg.norm(given, axis=1)
    assert 0 < away.min() < 0.3


def test_revived_codes_are_drawn_evenly_from_all_rows_and_positions():
    """4000 draws of 20 powers of 4; each number has the deviation of a binomial, and the noise that of a normal."""
    z = 4.0 ** jnp.arange(20.0).reshape(4, 5, 1)
    book = make_codebook(np.zeros((4000, 1)), np.ones(4000))
    drawn, other = (np.asarray(book.candidates(z, jnp.arange(4), jax.random.key(i)))[:, 0] for i in range(2))
    power = np.round(np.log(drawn) / np.log(4.0))
    assert np.abs(np.bincount(power.astype(int), minlength=20) - 200).max() < 5 * np.sqrt(4000 * 0.05 * 0.95)
    assert 0.9 < np.mean(power != np.round(np.log(other) / np.log(4.0))) < 1
    noise = drawn / 4.0**power - 1
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.1], atol=0.01)
    assert len(np.unique(drawn)) > 3990  # no two codes are equally near


def test_sums_over_parts_of_a_batch_are_those_of_the_batch():
    """Integers, whose sums are exact; the candidate of a code is from one part and 0 in the others."""
    z = jnp.asarray(np.random.default_rng(0).integers(1, 9, (6, 5, 3)), jnp.float32)
    book = make_codebook(np.random.default_rng(1).normal(5, 2, (40, 3)), np.ones(40), batch_size=6)
    codes, key, rows = book.nearest(z), jax.random.key(2), jnp.arange(6)
    whole = book.sums(z, codes, rows, key)
    parts = [
        book.sums(z[at], codes[at], rows[at], key) for at in (np.array([0, 3]), np.array([5, 1]), np.array([2, 4]))
    ]
    added = jax.tree.map(lambda *x: sum(x), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, added)
    assert (np.abs(whole["candidates"]).min(1) > 0).all()
    assert all((np.asarray(part["candidates"]) == 0).all(1).any() for part in parts)


def test_the_first_batch_initialises_the_codebook():
    """Whatever the random vectors were, each is then a mean of vectors of the batch, or one of them."""
    z = 100.0 + jax.random.normal(jax.random.key(0), (8, 4, 2))
    first = 1e-6 * np.ones(16)
    book = make_codebook(np.random.default_rng(0).normal(size=(16, 2)), first, revive=0.1, batch_size=8)
    move(book, z)
    assert (np.abs(book.vectors - 100.0) < 60).all()
    assert len(np.unique(np.asarray(book.vectors), axis=0)) > 8


# ------------------------------------------------------------------------------------ finite scalars


def test_levels_of_finite_scalars_by_hand():
    """Three levels are -1, 0, 1; four are -1, -1/2, 0, 1/2; the first feature is the last digit of a code."""
    quantiser = FiniteScalar((3, 4))
    z = jnp.array([[[0.0, 0.0], [-9.0, -9.0], [9.0, 9.0], [9.0, -9.0], [0.3, 0.1]]])
    quantised, codes = quantiser(z)
    np.testing.assert_array_equal(quantised[0], [[0.0, 0.0], [-1.0, -1.0], [1.0, 0.5], [1.0, -1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(codes[0], [1 + 3 * 2, 0, 2 + 3 * 3, 2, 1 + 3 * 2])
    np.testing.assert_array_equal(quantiser.lookup(codes), quantised)


def test_every_code_of_finite_scalars_is_reached_and_looked_up():
    quantiser = FiniteScalar((5, 4, 3))
    axis = jnp.linspace(-4.0, 4.0, 41)
    z = jnp.stack(jnp.meshgrid(axis, axis, axis), axis=-1).reshape(1, -1, 3)
    quantised, codes = quantiser(z)
    np.testing.assert_array_equal(np.unique(codes), np.arange(60))
    np.testing.assert_array_equal(quantiser.lookup(codes), quantised)


def test_the_gradient_of_finite_scalars_is_that_of_the_bound():
    """For three levels d/dz 1.001 tanh(z), as if nothing were rounded."""
    z = jnp.array([[[0.2], [-1.3], [2.0]]])
    gradient = jax.grad(lambda z: FiniteScalar((3,))(z)[0].sum())(z)
    np.testing.assert_allclose(gradient, 1.001 / np.cosh(z) ** 2, rtol=1e-5)

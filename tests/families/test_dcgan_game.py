"""DCGAN's game: its value and losses, and who moves when."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dcgan_cases import KEY, OPTIMIZER, SPEC, differ, make, memory

from zoo.core.errors import UserError
from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.core.random import normal
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import ImageSpec
from zoo.dcgan import DCGAN, discriminator_loss, generator_loss, gradient_penalty, value


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 32, 32, 1)).astype(np.uint8)
    label = np.array([0, 1, 2, 0, 1, 2], np.int32)
    arrays = {"image": image, "label": label, "row": np.arange(6, dtype=np.int32), "valid": np.ones(6, bool)}
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def compiled_step(family):
    return jax.jit(lambda state, batch: family.step(state, batch, jnp.int32(0), KEY))


# ---------------------------------------------------------------------------------------------- the game


def test_the_value_is_that_of_the_game():
    d_real, d_fake = np.array([0.9, 0.5, 0.2]), np.array([0.1, 0.5, 0.7])
    real, fake = (jnp.asarray(np.log(d / (1 - d)), jnp.float32) for d in (d_real, d_fake))
    by_hand = np.log(d_real) + np.log(1 - d_fake)
    np.testing.assert_allclose(value(real, fake), by_hand, rtol=1e-5)
    # Where nobody can tell, each gives log 4 away; see Goodfellow et al. 2014, theorem 1.
    np.testing.assert_allclose(value(jnp.zeros(1), jnp.zeros(1)), [-np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(discriminator_loss("minimax", real, fake), -by_hand, rtol=1e-5)
    np.testing.assert_allclose(generator_loss("minimax", fake), np.log(1 - d_fake), rtol=1e-5)
    np.testing.assert_allclose(generator_loss("nonsaturating", fake), -np.log(d_fake), rtol=1e-5)
    # A discriminator that is sure of itself gives numbers, and so do the gradients.
    sure = jnp.array([-200.0])
    np.testing.assert_allclose(generator_loss("nonsaturating", sure), [200.0])
    assert np.isfinite(jax.grad(lambda x: generator_loss("minimax", x).sum() + value(x, -x).sum())(sure)).all()


def test_minimax_and_nonsaturating_gradients_differ_by_the_odds():
    fake = jnp.linspace(-6.0, 3.0, 7)
    minimax, nonsaturating = (
        jax.grad(lambda x, objective=objective: generator_loss(objective, x).sum())(fake)
        for objective in ("minimax", "nonsaturating")
    )
    assert (minimax < 0).all()
    assert (nonsaturating < 0).all()
    d = jax.nn.sigmoid(fake)
    np.testing.assert_allclose(nonsaturating / minimax, (1 - d) / d, rtol=1e-4)


def test_label_smoothing_is_one_sided_cross_entropy():
    real, fake = jnp.array([0.3, -2.0]), jnp.array([1.0, 4.0])
    d_real, d_fake = jax.nn.sigmoid(real), jax.nn.sigmoid(fake)
    expected = -(0.9 * jnp.log(d_real) + 0.1 * jnp.log(1 - d_real) + jnp.log(1 - d_fake))
    np.testing.assert_allclose(discriminator_loss("nonsaturating", real, fake, 0.1), expected, rtol=1e-5)


def test_hinge_stops_at_the_margin():
    real, fake = jnp.array([-0.5, 0.5, 2.0]), jnp.array([-2.0, -0.5, 0.5])
    np.testing.assert_allclose(discriminator_loss("hinge", real, fake), [1.5, 1.0, 1.5], rtol=1e-6)
    np.testing.assert_allclose(generator_loss("hinge", fake), -fake)


def test_r1_of_a_linear_discriminator_is_the_square_of_its_weights():
    rng = np.random.default_rng(3)
    w, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 4, 2), (3, 4, 4, 2)))

    def penalty(w):
        return gradient_penalty(lambda x: (x * w[None]).sum((1, 2, 3)), x)

    np.testing.assert_allclose(penalty(w), np.full(3, (w**2).sum()), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda w: penalty(w).sum())(w), 6 * w, rtol=1e-5)


def test_r1_is_what_the_discriminator_pays(batch):
    """The loss is gamma / 2 higher for every unit of penalty, and an image's penalty is its own and no other's."""
    family, state = make(disc_norm="none")
    # Kernels large enough that a penalty shows.
    steep = jax.tree.map(lambda leaf: 10 * leaf if leaf.ndim == 4 else leaf, state.discriminator.params)
    state = state._replace(discriminator=state.discriminator.with_params(steep))

    @jax.jit
    def slopes(disc):
        net, x = disc.net(), from_pixels(batch["image"])

        def logit(x, label):
            return net(x[None], label[None], train=False)[0]

        return jax.lax.map(lambda row: jax.grad(logit)(*row), (x, batch["label"]))

    @partial(jax.jit, static_argnums=0)
    def descend(family, state):
        return state.discriminator.descend(partial(family.disc_loss, gen=state.generator), batch, 0, KEY)[1]

    plain, paying = descend(family, state), descend(replace(family, r1=3.0), state)
    np.testing.assert_allclose(paying["r1_penalty"], (slopes(state.discriminator) ** 2).sum() / 6, rtol=1e-4)
    np.testing.assert_allclose(paying["loss"] - plain["loss"], 1.5 * paying["r1_penalty"], rtol=1e-2)
    assert abs(paying["grad_norm"] - plain["grad_norm"]) > 1e-3


def test_r1_with_spectral_normalisation_is_of_the_network_that_trains(batch):
    """The penalty is that of the next call in training, and the vectors move as often as without it."""
    family, state = make(disc_norm="spectral")
    paying = replace(family, r1=3.0)

    @jax.jit
    def slopes(disc):
        x = from_pixels(batch["image"])
        return jax.grad(lambda x: disc.net()(x, batch["label"], train=True).sum())(x)

    @partial(jax.jit, static_argnums=0)
    def descend(family, state):
        return state.discriminator.descend(partial(family.disc_loss, gen=state.generator), batch, 0, KEY)

    (plain, _), (paid, metrics) = descend(family, state), descend(paying, state)
    np.testing.assert_allclose(metrics["r1_penalty"], (slopes(state.discriminator) ** 2).sum() / 6, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), paid.memory, plain.memory)


def test_r1_is_refused_where_a_logit_depends_on_other_images():
    with pytest.raises(UserError, match=r"r1 is 1\.0.*--family\.disc-norm spectral or none"):
        DCGAN(r1=1.0)


# ------------------------------------------------------------------------------------------- who moves when


@pytest.mark.parametrize("disc_norm", ["batch", "spectral"])
def test_each_player_moves_and_remembers_in_its_own_step_alone(batch, disc_norm):
    family, state = make(disc_norm=disc_norm)
    new, metrics = compiled_step(family)(state, batch)
    assert all(differ(a.params[name], b.params[name]) for a, b in zip(state, new, strict=True) for name in a.params)

    # The discriminator moves against fakes of the old generator, in whose memory that leaves nothing ...
    z = normal(jax.random.split(KEY, 4)[0], batch["row"], (4,))

    @jax.jit
    def replay(state, new):
        gen, disc = state.generator.net(), state.discriminator.net()
        fakes = gen(z, batch["label"], train=True)
        disc(from_pixels(batch["image"]), batch["label"], train=True)
        disc(fakes, batch["label"], train=True)
        judged = new.discriminator.net()(fakes, batch["label"], train=True)
        return memory(gen), memory(disc), generator_loss("nonsaturating", judged).mean()

    gen_memory, disc_memory, loss = replay(state, new)
    assert differ(new.discriminator.memory, state.discriminator.memory)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.generator.memory, gen_memory)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.discriminator.memory, disc_memory
    )
    # ... and the generator is judged by the discriminator that has just moved.
    np.testing.assert_allclose(metrics["gen_loss"], loss, rtol=1e-4)


def test_the_discriminator_takes_its_steps_against_fresh_fakes_of_one_generator(batch):
    """Plain gradient descent by hand, on the same real images and other noise each time."""
    rate, k = 0.05, 3
    sgd = Optimizer(name="sgd", learning_rate=rate, momentum=0.0, schedule="constant")
    family, state = make(optimizer=sgd, disc_norm="none", disc_steps=k)
    new, metrics = compiled_step(family)(state, batch)

    x, label = from_pixels(batch["image"]), batch["label"]
    keys = [jax.random.fold_in(KEY, 4), jax.random.fold_in(KEY, 5), KEY]

    @jax.jit
    def slope(params, fakes):
        def loss(params):
            disc = replace(state.discriminator, params=params).net()
            return -value(disc(x, label, train=True), disc(fakes, label, train=True)).mean()

        return jax.value_and_grad(loss)(params)

    params, drawn = state.discriminator.params, []
    for key in keys:
        drawn.append(normal(jax.random.split(key, 4)[0], batch["row"], (4,)))
        loss, gradient = slope(params, state.generator.net()(drawn[-1], label, train=True))
        params = jax.tree.map(lambda w, g: w - rate * g, params, gradient)
    assert len({z.tobytes() for z in map(np.asarray, drawn)}) == k
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.discriminator.params, params)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    assert (new.discriminator.updates, new.generator.updates) == (k, 1)


def test_the_discriminator_has_its_own_learning_rate_and_no_average():
    _, state = make(optimizer=replace(OPTIMIZER, ema_decay=0.5), disc_learning_rate_ratio=3.0)
    assert state.generator.optimizer == replace(OPTIMIZER, ema_decay=0.5)
    assert state.discriminator.optimizer == replace(OPTIMIZER, learning_rate=0.03)
    assert state.generator.ema is not None
    assert state.discriminator.ema is None


def test_augmentation_is_between_both_players_and_the_discriminator(batch):
    plain, state = make()

    @partial(jax.jit, static_argnums=0)
    def losses(family, state):
        return jnp.stack(
            [
                family.disc_loss(state.discriminator.net(), batch, KEY, gen=state.generator)[0],
                family.gen_loss(state.generator.net(), batch, KEY, disc=state.discriminator)[0],
            ]
        )

    assert (losses(plain, state) != losses(replace(plain, diff_augment=True), state)).all()


def test_smoothing_and_forms_are_refused_where_they_mean_nothing():
    for settings in (
        {"objective": "hinge", "label_smoothing": 0.1},
        {"width": 0},
        {"latent": 1},
        {"r1": -1.0},
        {"disc_steps": 0},
    ):
        with pytest.raises(UserError, match=r"^family\."):
            DCGAN(**settings)


@pytest.mark.parametrize("spec", [ImageSpec(28, 28, 1), ImageSpec(32, 64, 3), ImageSpec(48, 48, 3)])
def test_images_of_other_sizes_are_refused_with_the_flags_that_help(spec):
    with pytest.raises(UserError, match=rf"{spec.height}x{spec.width}.*--data.size 32.*--data.fit pad"):
        DCGAN().init(spec, Setup(OPTIMIZER, 10, 6), KEY)


def test_classes_are_needed_where_the_game_is_conditional():
    with pytest.raises(UserError, match="no classes"):
        DCGAN(conditional=True).init(ImageSpec(32, 32, 1), Setup(OPTIMIZER, 10, 6), KEY)


@pytest.mark.parametrize("settings", [{}, {"conditional": True}, {"conditional": True, "disc_norm": "spectral"}])
def test_conditioning_reaches_both_players(batch, settings):
    _, state = make(**settings)

    @jax.jit
    def changes(state):
        gen, disc, z, x = (
            state.generator.net(),
            state.discriminator.net(),
            normal(KEY, batch["row"], (4,)),
            from_pixels(batch["image"]),
        )
        label = batch["label"]
        images = [gen(z, label, train=False) for label in (label, (label + 1) % 3)]
        logits = [disc(x, label, train=False) for label in (label, (label + 1) % 3)]
        return jnp.stack([jnp.abs(a - b).max() for a, b in (images, logits)])

    assert ((changes(state) > 1e-9) == ("conditional" in settings)).all()


def test_networks_compute_in_the_precision_asked_for(batch):
    setup = Setup(OPTIMIZER, 10, 6, precision="bfloat16")
    for disc_norm in ("batch", "spectral"):
        family = DCGAN(width=2, latent=4, disc_norm=disc_norm, conditional=True)
        state = jax.eval_shape(partial(family.init, SPEC, setup), KEY)
        new, _ = jax.eval_shape(family.step, state, batch, jnp.int32(0), KEY)
        assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, state)

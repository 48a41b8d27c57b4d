"""The VQ-VAE's loss by hand, its gradient, and its codebook over devices and microbatches."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_vae_cases import SIZE, Blobs, on_device, shapes, start
from vqvae_cases import FSQ, TINY

from zoo.core.errors import UserError
from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.specs import ImageSpec
from zoo.vqvae import VQVAE, VQVAERequest, psnr


@pytest.fixture(scope="module")
def pieces():
    """What the loss of a batch is made of, and its gradients by the parameters and by the decoder's input."""
    learner, batch, key = start(TINY).state.net, on_device(Blobs().batch_at(0)), jax.random.key(2)

    @jax.jit
    def parts():
        net = learner.net()
        x = TINY.observe(batch["image"], jax.random.split(key)[0], batch["row"])
        z = net.encode(x)
        e, codes = net.quantise(z)
        total, count, _ = TINY.loss(net, batch, key)
        return {
            "x": x, "z": z, "e": e, "codes": codes, "logits": net.decode(e)[..., 0], "total": total, "count": count,
            "vectors": net.quantiser.vectors,
            "of_e": jax.grad(lambda e: -TINY.log_likelihood(x, net.decode(e)).sum())(e),
            "of_params": jax.grad(lambda p: TINY.loss(replace(learner, params=p).net(), batch, key)[0])(learner.params),
        }  # fmt: skip

    return jax.device_get(parts())


def test_codes_are_of_the_nearest_vectors(pieces):
    distance = np.square(pieces["z"][..., None, :] - pieces["vectors"]).sum(-1)
    np.testing.assert_array_equal(pieces["codes"], distance.argmin(-1))
    np.testing.assert_array_equal(pieces["e"], pieces["vectors"][pieces["codes"]])
    assert len(np.unique(pieces["codes"])) > 1


def test_the_loss_is_the_likelihood_and_the_commitment(pieces):
    """With x = 1 or -1 the probability of a pixel is sigmoid(x logit)."""
    nats = np.logaddexp(0.0, -pieces["x"] * pieces["logits"]).sum()
    commitment = np.square(pieces["z"] - pieces["e"]).sum()
    np.testing.assert_allclose(pieces["total"], nats + 0.25 * commitment, rtol=1e-5)
    assert pieces["count"] == 8


def test_the_encoder_gets_the_gradient_of_the_decoders_input_and_of_the_commitment(pieces):
    """Straight through: the head's bias is added to each z, so its gradient is the sum of theirs."""
    expected = (pieces["of_e"] + 0.25 * 2 * (pieces["z"] - pieces["e"])).sum((0, 1, 2))
    assert np.abs(pieces["of_e"].sum((0, 1, 2))).min() > 1e-4
    np.testing.assert_allclose(pieces["of_params"]["encoder"]["head"]["bias"], expected, rtol=1e-3, atol=1e-5)


def moved(parallel, **settings):
    """The learner after three steps in which codes die and are revived."""
    family = replace(TINY, width=4, codes=6, latent=2, revive=0.5)
    optimizer = Optimizer(name="sgd", momentum=0.0, learning_rate=1e-3, clip_norm=1.0, ema_decay=0.9, **settings)
    setup, data = Setup(optimizer, 10, 8), Blobs()
    strategy = parallel.start(8, optimizer.microbatches)
    state = strategy.init(lambda key: family.init(data.spec, setup, key), jax.random.key(0))
    step = strategy.compile_step(
        lambda state, batch, n: family.step(state, batch, n, jax.random.fold_in(jax.random.key(1), n))
    )
    for n in range(3):
        state, _ = step(state, strategy.put(data.batch_at(n)), np.int32(n))
    return jax.device_get(strategy.gather(state)).net


@pytest.fixture(scope="module")
def alone():
    return moved(Parallel(devices=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "settings"),
    [(Parallel("jit", 8), {}), (Parallel("pmap", 8), {}), (Parallel(devices=1), {"microbatches": 4})],
    ids=["jit8", "pmap8", "microbatches"],
)
def test_the_codebook_is_the_same_whatever_the_devices_and_microbatches(alone, parallel, settings):
    spread = moved(parallel, **settings)
    counts = alone.memory["quantiser"]["counts"]
    assert np.isclose(counts, counts.min(), rtol=1e-6).sum() > 1  # revived in the last step
    for theirs, ours in ((spread.memory, alone.memory), (spread.ema, alone.ema), (spread.params, alone.params)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), theirs, ours)


def test_finite_scalars_have_no_codebook_and_no_commitment():
    state = shapes(FSQ, Blobs.spec)
    assert not jax.tree.leaves(state.net.memory)
    model, batch = start(FSQ), on_device(Blobs().batch_at(0))
    total, count, metrics = jax.jit(lambda key: FSQ.loss(model.state.net.net(), batch, key))(jax.random.key(0))
    np.testing.assert_allclose(total, metrics["reconstruction_nats"][0], rtol=1e-6)
    assert metrics.keys() == {"reconstruction_nats", "commitment"}
    assert metrics["commitment"][0] == 0
    assert count == 8


def test_psnr_by_hand():
    """An error of 10 levels everywhere, and of 255 in one of 16 pixels; no error is cut off at 100."""
    image = np.zeros((3, 4, 4, 1), np.uint8)
    other = image.copy()
    other[0], other[1, 2, 3] = 10, 255
    a, b = (jnp.asarray(each, jnp.float32) / 127.5 - 1.0 for each in (image, other))
    expected = [20 * math.log10(25.5), 10 * math.log10(16), 100.0]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)


@pytest.mark.parametrize(("downsampling", "grid"), [(4, (8, 16)), (8, (4, 8)), (16, (2, 4))])
@pytest.mark.parametrize("channels", [1, 3])
def test_codes_and_images_of_every_downsampling(downsampling, grid, channels):
    family, spec = replace(TINY, downsampling=downsampling), ImageSpec(32, 64, channels)
    state = shapes(family, spec)
    image = jax.ShapeDtypeStruct((2, 32, 64, channels), jnp.uint8)
    batch = {"image": image, "row": jax.ShapeDtypeStruct((2,), jnp.int32)}
    codes = jax.eval_shape(family.encode, state, batch)
    assert (codes.shape, codes.dtype) == ((2, *grid), jnp.int32)
    decoded = jax.eval_shape(family.decode, state, codes)
    assert (decoded.shape, decoded.dtype) == (image.shape, image.dtype)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shapes(TINY, ImageSpec(30, 28, 1)), "images are 30 x 28.*downsampling is 4.*--data.size, such as 28"),
        (lambda: shapes(replace(TINY, downsampling=16), ImageSpec(SIZE, SIZE, 1)), "--data.size, such as 16"),
        (lambda: shapes(replace(TINY, likelihood="bernoulli"), ImageSpec(8, 8, 3)), "3 channels"),
        (lambda: VQVAE(quantiser="fsq", levels=(8, 2)), r"family.levels is \(8, 2\); it must be"),
        (lambda: VQVAE(levels=()), "family.levels is"),
        (lambda: VQVAE(codes=1), "family.codes is 1; it must be at least 2"),
        (lambda: VQVAE(revive=0.0), "family.revive is 0.0; it must be above 0"),
        (lambda: VQVAE(decay=1.0), "family.decay is 1.0"),
        (lambda: VQVAE(scale=0.5), "only the gaussian"),
        (lambda: VQVAERequest(images=("a.png",), reconstruct=3), "held-out images"),
        (lambda: VQVAERequest(n=0), "n is 0"),
    ],
)
def test_refusals_are_one_sentence(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)

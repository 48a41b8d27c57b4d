"""The diffusion Transformer: diffusers' output, its beginning, and a DDPM with it."""

from dataclasses import replace

import ddpm_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ddpm_cases import SPEC, batch_of
from flax import nnx
from flow_cases import check_dit
from paths import REFERENCES

from zoo.core.errors import UserError
from zoo.data.images import Images
from zoo.harness.config import Run, from_json, to_json
from zoo.harness.flags import parse_flags
from zoo.interop.diffusers import write_diffusers
from zoo.nets.denoiser import DenoiserOptions
from zoo.nets.dit import DiTBlock

DDPM = replace(ddpm_cases.FAMILY, network="dit", patch=4, width=16, heads=2)
SETTINGS = DenoiserOptions(patch=4, width=16, heads=2, dropout=0.25).dit_settings(8, 8, 1, 4)


def test_output_is_that_of_diffusers():
    check_dit(REFERENCES / "dit")


def test_a_block_begins_as_the_identity_and_drops_features_by_row():
    block = DiTBlock(SETTINGS, nnx.Rngs(0))
    x, embedding, rows = jax.random.normal(jax.random.key(0), (8, 4, 16)), jnp.ones((8, 1, 16)), jnp.arange(8)
    np.testing.assert_array_equal(block(x, embedding, None, None), x)
    block.modulation.bias[...] = jnp.ones(6 * 16)
    whole = block(x, embedding, None, None)
    dropped = block(x, embedding, jax.random.key(1), rows)
    assert float(jnp.abs(whole - dropped).max()) > 0.1
    np.testing.assert_allclose(block(x[5:6], embedding[5:6], jax.random.key(1), rows[5:6]), dropped[5:6], atol=1e-5)


def test_ddpm_trains_and_draws_with_a_dit():
    model = ddpm_cases.make_model(DDPM)
    total, weight, _ = jax.jit(DDPM.loss)(model.state.net.eval_net(), batch_of(4), jax.random.key(1))
    assert np.isfinite(total / weight)
    images = ddpm_cases.draw(model)
    assert images.shape == (2, 8, 8, 1)
    assert images.std() > 0


def test_a_dit_is_a_setting_of_every_diffusion_model(tmp_path):
    flags = ["--family.network", "dit", "--family.patch", "4", "--family.width", "64", "--family.layers", "3"]
    run = parse_flags(Run, Run(family=ddpm_cases.FAMILY, data=Images()), flags, "train.py")
    assert (run.family.network, run.family.patch, run.family.width, run.family.layers) == ("dit", 4, 64, 3)
    assert from_json(to_json(run), Run, "config.json") == run
    with pytest.raises(UserError, match=r"family\.network is dit; it must be unet to be written"):
        write_diffusers(tmp_path / "new", DDPM, SPEC, {})

"""Diffusion models that read captions: what is seen of them, guidance, prompts, and diffusers' block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from captioned_unet_cases import check_captioned_unet
from flax import nnx
from paths import REFERENCES

from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.captions import CaptionedImages
from zoo.ddpm import DDPM
from zoo.flow_matching import FlowMatching
from zoo.harness.trained import inference_state
from zoo.nets.captions import CaptionedAttention, Context, CrossAttention
from zoo.nn.group_norm import GroupNorm
from zoo.sampling.diffusion.guidance import (
    Captions,
    Condition,
    conditions_of_samples,
    count_symbols,
    given_of_batch,
    known_classes,
)

DATA = CaptionedImages(size=16, digit_size=7, caption_length=16, held_out_scenes=16)
UNET = {"channels": (8, 8), "layers": 1, "attention": (8,), "groups": 2, "text_width": 8, "text_layers": 1}
DIT = {"network": "dit", "patch": 4, "width": 16, "heads": 2, "layers": 1, "text_width": 8, "text_layers": 1}
FAMILIES = {"unet": FlowMatching(**UNET), "dit": DDPM(**DIT, timesteps=20, clip=False)}
KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def data():
    return DATA.open(length=None, batch_size=4, seed=0)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, data) -> Model:
    """With weights far from their initial values, near which a network ignores its input."""
    family = FAMILIES[request.param]
    state = inference_state(family.init(data.spec, Setup(Optimizer(), 1, 4), KEY))
    keys = iter(jax.random.split(KEY, 500))
    noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), state)
    return Model(family, data.spec, noisy, 0, lambda: data)


def condition(spec, *prompts, away=""):
    rows, (other, other_length) = spec.caption.rows(prompts), spec.caption.rows([away] * len(prompts))
    return Condition(jnp.zeros(len(prompts), int), Captions(*map(jnp.asarray, (*rows, other, other_length))))


@pytest.fixture(scope="module")
def denoise(model):
    """x_0 of two noisy images under a condition and guidance, compiled once."""
    x, t = jax.random.normal(KEY, (2, 16, 16, 3)), jnp.array([3.0, 15.0])
    f = jax.jit(lambda state, c, g: model.family.denoiser(state, c, g)(x, t)[1])
    return lambda c, g=1.0: np.asarray(f(model.state, c, jnp.float32(g)))


def test_captions_replace_classes(model, data):
    assert known_classes(model.family, data.spec) == ()
    assert count_symbols(model.family, data.spec) == 0
    assert model.state.net.eval_net().captions is not None


def test_a_caption_changes_what_is_drawn_and_its_padding_does_not(model, data, denoise):
    a, b = condition(data.spec, "a red 3", "a blue 7"), condition(data.spec, "a red 3", "a green 7")
    first, second = denoise(a), denoise(b)
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(first[1] - second[1]).max() > 1e-4
    caption = a.captions.caption
    other = Condition(a.symbol, a.captions._replace(caption=caption.at[:, 8:].set(5)))  # past "a red 3" and its ends
    np.testing.assert_array_equal(denoise(other), first)


def test_guidance_is_the_line_through_with_and_without(data, denoise):
    asked, empty = condition(data.spec, "a red 3", "a blue 7"), condition(data.spec, "", "")
    with_, without = denoise(asked), denoise(empty)
    np.testing.assert_array_equal(denoise(asked, 1.0), with_)
    np.testing.assert_array_equal(denoise(asked, 0.0), without)
    np.testing.assert_allclose(denoise(asked, 3.0), without + 3 * (with_ - without), atol=2e-4)
    away = condition(data.spec, "a red 3", "a blue 7", away="a red 3")
    assert np.abs(denoise(away, 3.0) - denoise(asked, 3.0)).max() > 1e-4


def test_the_loss_reads_the_captions_of_the_batch(model, data):
    net, batch = model.state.net.eval_net(), jax.tree.map(jnp.asarray, data.batch_at(0))
    given = given_of_batch(net, batch)
    assert given.keys() == {"context"}
    np.testing.assert_array_equal(given["context"].length, batch["caption_length"])
    loss = jax.jit(lambda batch: model.family.loss(net, batch, KEY)[0])
    told = {name: batch[name] for name in ("image", "label", "row", "caption", "caption_length")}
    assert loss(told) != loss(told | {"caption": jnp.roll(batch["caption"], 1, 0)})


def test_prompts_are_drawn_in_turn_and_compile_nothing_again(model):
    ask = model.family.Request

    def draw(n, **settings):
        made = model.family.sample(model, ask(n=n, steps=2, **settings), KEY)
        return np.stack([image.pixels for image in made]).astype(int)

    both = draw(4, prompt=("a red 3", "a blue 7 above a green one"))
    alone = draw(4, prompt="a red 3")
    np.testing.assert_array_equal(both[::2], alone[::2])
    assert (both[1] != alone[1]).any()
    with jax.log_compiles(False):
        before = sum(f._cache_size() for f in compiled())
        draw(4, prompt="a cyan two", guidance=3.0, negative_prompt="a red 3")
        draw(4)
        assert sum(f._cache_size() for f in compiled()) == before


def compiled():
    from zoo.sampling.diffusion import request

    return [f for f in vars(request).values() if hasattr(f, "_cache_size")]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "a red 3 " * 10}, "captions have at most 15"),
        ({"label": "3"}, "the model reads captions: give a prompt"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_told(model, request_, message):
    with pytest.raises(UserError, match=message):
        model.family.sample(model, model.family.Request(**request_), KEY)


def test_a_model_without_captions_takes_no_prompt(data):
    for family in (FlowMatching(conditional=False), DDPM(conditional=False)):
        for prompts, negative in ((("a",), ""), ((), "a")):
            with pytest.raises(UserError, match="was trained without captions"):
                conditions_of_samples(family, data.spec, prompts, negative, "", 1.0, None)


# ----------------------------------------------------------------------------------------- cross-attention


def test_cross_attention_does_not_see_padding():
    """By gradient: of three tokens the last is padding in the second row."""
    attention = CrossAttention(8, 2, 4, out_scale=1.0, rngs=nnx.Rngs(0))
    x, features = jax.random.normal(KEY, (2, 5, 8)), jax.random.normal(KEY, (2, 3, 4))

    def total(features):
        return jnp.square(attention(x, Context(features, jnp.array([3, 2])))).sum()

    gradient = jax.grad(total)(features)
    assert (jnp.abs(gradient).max(-1) > 0).tolist() == [[True] * 3, [True, True, False]]
    weights = attention.weights(x, Context(features, jnp.array([3, 2])))
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert not weights[1, :, :, 2].any()


def test_a_captioned_block_begins_near_its_shortcut():
    block = CaptionedAttention(GroupNorm(8, 2, epsilon=1e-6), 8, 2, 4, 0.01, nnx.Rngs(0))
    x, context = jax.random.normal(KEY, (1, 4, 4, 8)), Context(jax.random.normal(KEY, (1, 3, 4)), jnp.array([3]))
    change = np.asarray(block(x, context) - x)
    assert 0 < np.abs(change).max() < 0.2


def test_a_unet_with_captions_is_that_of_diffusers():
    check_captioned_unet(REFERENCES)

"""Captions and images in one row: what rows mean, what is drawn where, and both orders of a known distribution."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.core.artifacts import Image, Text
from zoo.core.errors import UserError
from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.captions import CaptionedTokens
from zoo.data.captions.tokens import CaptionedTokenSpec
from zoo.data.images.tokens import ImageTokenSpec
from zoo.data.specs import CaptionSpec, GivenPart, ImageSpec
from zoo.data.tokenizers import Characters
from zoo.harness.trained import inference_state
from zoo.masked_diffusion import MaskedDiffusion
from zoo.metrics.captioned import caption_log_probabilities
from zoo.transformer_lm import TransformerLM

SETTINGS = CaptionedTokens(size=9, digit_size=4, caption_length=16, tell=0.5, held_out_scenes=24)
PICTURE = ImageTokenSpec(ImageSpec(4, 4, 1, caption=CaptionSpec(Characters("abc "), length=5)), "pixels", (1, 1), 256)
SPEC = CaptionedTokenSpec(PICTURE, tells=True)
TINY = {"layers": 1, "heads": 2, "width": 16, "context": SPEC.longest}
FAMILIES = {"autoregressive": TransformerLM(**TINY), "masked": MaskedDiffusion(**TINY)}
KEY = jax.random.key(5)


def opened(**changes):
    return replace(SETTINGS, **changes).open(length=1000, batch_size=32, seed=3)


@pytest.fixture(scope="module")
def data():
    return opened()


# ---------------------------------------------------------------------------------------------------- rows


def test_a_row_is_a_task_a_caption_and_an_image_in_the_tasks_order(data):
    spec, words = data.spec, data.spec.caption
    batch = data.reference.held_out_at(0)
    for task in ("draw", "tell"):
        rows = data.asked_at(0, task)
        assert (rows["first"] == spec.begin(task)).all()
        assert (rows["tokens"][:, 0] == spec.end).all()
        assert rows["tokens"].shape[1] == 1 + spec.longest == 1 + 1 + 16 + 9 * 9 * 3
        for sample, image, caption in zip(rows["tokens"], batch["image"], batch["caption"], strict=True):
            (made,) = spec.decode([sample[1:]], None)
            if task == "draw":
                assert isinstance(made, Image)
                assert np.array_equal(made.pixels, image)
            else:
                assert isinstance(made, Text)
                assert made.text == words.tokenizer.decode(caption[1 : 1 + np.argmax(caption[1:] == words.end)])


def test_every_symbol_is_in_the_range_of_its_task_and_place(data):
    batch = data.batch_at(0)
    for row in batch["tokens"][:, 1:]:
        task = "draw" if row[0] == data.spec.symbol("draw") else "tell"
        low, high = data.spec.allowed(task).T
        assert ((low <= row) & (row < high)).all()


def test_a_share_of_the_rows_tells_and_no_telling_row_loses_its_caption():
    data = opened(caption_dropout=0.3)
    rows = [data.batch_at(step) for step in range(30)]
    tokens, first = (np.concatenate([batch[name] for batch in rows]) for name in ("tokens", "first"))
    told, empty = tokens[:, 1] == data.spec.symbol("tell"), data.spec.picture.symbols + data.spec.caption.end
    caption = np.where(told[:, None], tokens[:, -16:], tokens[:, 2:18])
    dropped = (caption == empty).all(1)
    assert abs(told.mean() - 0.5) < 4 * 0.5 / len(told) ** 0.5
    assert not dropped[told].any()
    assert abs(dropped[~told].mean() - 0.3) < 4 * 0.46 / (~told).sum() ** 0.5
    # The task's symbol is never scored, and a dropped caption is not what the data says.
    assert (first == np.where(dropped, data.spec.begin("draw"), 1)).all()
    only = opened(only_asked=True).batch_at(0)
    task = np.where(only["tokens"][:, 1] == data.spec.symbol("tell"), data.spec.begin("tell"), data.spec.begin("draw"))
    assert (only["first"] == task).all()


def test_batches_are_functions_of_seed_and_row(data):
    again = opened().batch_at(7, slice(8, 16))
    for name, array in data.batch_at(7).items():
        np.testing.assert_array_equal(array[8:16], again[name])


def test_a_context_that_is_too_short_is_named():
    with pytest.raises(UserError, match=r"family\.context is 100, and a row has 260 tokens, 16 of them of the caption"):
        SETTINGS.open(length=100, batch_size=4, seed=0)


# ------------------------------------------------------------------------------------------------ sampling


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Model:
    family = FAMILIES[request.param]
    state = family.init(SPEC, Setup(Optimizer(), 1, 4), jax.random.key(2))
    noisy = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), inference_state(state))
    return Model(family, SPEC, noisy, 0)


def sampled(model, monkeypatch, **request):
    """The rows that a request samples, as tokens."""
    rows = []
    decode = CaptionedTokenSpec.decode
    monkeypatch.setattr(CaptionedTokenSpec, "decode", lambda *a: rows.extend(a[1]) or decode(*a))
    made = model.family.sample(model, model.family.Request(**request), KEY)
    return np.stack(rows), made


@pytest.mark.parametrize("settings", [{"temperature": 9.0}, {"top_k": 1}, {"top_p": 0.5, "guidance": 3.0}], ids=str)
def test_only_symbols_of_the_range_are_drawn(model, monkeypatch, settings):
    rows, made = sampled(model, monkeypatch, n=5, prompt=("ab", "c"), **settings)
    low, high = SPEC.allowed("draw").T
    assert ((low <= rows) & (rows < high)).all()
    assert [image.pixels.shape for image in made] == [(4, 4, 1)] * 5
    asked, _ = SPEC.caption.rows(["ab", "c", "ab", "c", "ab"])
    np.testing.assert_array_equal(rows[:, 1:6] - PICTURE.symbols, asked[:, 1:])


def test_guidance_of_one_is_conditional_and_of_zero_unconditional(model, monkeypatch):
    image = slice(SPEC.begin("draw"), None)
    plain, _ = sampled(model, monkeypatch, n=4, prompt="abc")
    without, _ = sampled(model, monkeypatch, n=4)
    zero, _ = sampled(model, monkeypatch, n=4, prompt="abc", guidance=0.0)
    strong, _ = sampled(model, monkeypatch, n=4, prompt="abc", guidance=4.0)
    same, _ = sampled(model, monkeypatch, n=4, prompt="abc", guidance=4.0, negative_prompt="abc")
    np.testing.assert_array_equal(zero[:, image], without[:, image])
    assert (plain[:, image] != without[:, image]).any()
    assert (strong[:, image] != plain[:, image]).any()
    np.testing.assert_array_equal(same[:, image], plain[:, image])  # c + g (c - c)


def test_a_kept_part_of_an_image_stays(model, monkeypatch, tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    (tmp_path / "image.png").write_bytes(Image(pixels).png())
    _, made = sampled(model, monkeypatch, n=3, prompt="a", image=str(tmp_path / "image.png"), keep_rows=2, guidance=2.0)
    for image in made:
        np.testing.assert_array_equal(image.pixels[:2], pixels[:2])
    assert len({image.pixels.tobytes() for image in made}) == 3


def test_an_image_alone_is_described(model, monkeypatch, tmp_path):
    (tmp_path / "image.png").write_bytes(Image(np.zeros((4, 4, 1), np.uint8)).png())
    rows, made = sampled(model, monkeypatch, n=3, image=str(tmp_path / "image.png"))
    low, high = SPEC.allowed("tell").T
    assert ((low <= rows) & (rows < high)).all()
    assert all(isinstance(text, Text) for text in made)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "abcabc"}, "prompt has 6 tokens, but captions have at most 4"),
        ({"prompt": "a", "image": "x.png"}, "image asks for a description"),
        ({"negative_prompt": " "}, "prompt is empty"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_told(model, request_, message):
    with pytest.raises(UserError, match=message):
        model.family.sample(model, model.family.Request(**request_), KEY)


def test_only_a_model_that_tells_describes(model):
    silent = replace(model, spec=replace(SPEC, tells=False))
    with pytest.raises(UserError, match=r"trained with data\.tell 0, so it describes no images"):
        model.family.sample(silent, model.family.Request(image="x.png"), KEY)
    assert opened().spec.tells
    assert not opened(tell=0.0).spec.tells


def test_candidate_captions_are_scored_one_by_one():
    family = FAMILIES["autoregressive"]
    model = Model(family, SPEC, inference_state(family.init(SPEC, Setup(Optimizer(), 1, 4), KEY)), 0)
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    found = caption_log_probabilities(model, images, ("ab", "c"), KEY)
    net, (words, _) = model.state.net.eval_net(), SPEC.caption.rows(["ab", "c"])
    for m, caption in enumerate(words):
        rows = jnp.asarray(SPEC.rows("tell", np.tile(caption, (3, 1)), SPEC.picture.encode(images)))
        log_p = jax.nn.log_softmax(net(rows[:, :-1]))
        each = jnp.take_along_axis(log_p, rows[:, 1:, None], 2)[..., 0]
        np.testing.assert_allclose(found[:, m], each[:, SPEC.begin("tell") :].sum(1), rtol=1e-5)


def test_guidance_is_for_captioned_images(tmp_path):
    plain = replace(SPEC.picture, image=replace(SPEC.image, caption=None))
    family = TransformerLM(**TINY)
    model = Model(family, plain, inference_state(family.init(plain, Setup(Optimizer(), 1, 4), KEY)), 0)
    for changes, message in {
        (("guidance", 2.0),): "guidance is 2.0, which is for images with captions",
        (("negative_prompt", "a"),): "negative_prompt is 'a'",
        (("prompt", ("a", "b")),): "prompt is 'a', which is for texts",
        (("image", "x.png"),): "must be given with keep_rows or mask",
    }.items():
        with pytest.raises(UserError, match=message):
            family.sample(model, family.Request(**dict(changes)), KEY)


def test_unknown_words_are_named_and_read_as_unknown(caplog, data):
    with caplog.at_level(logging.WARNING, logger="zoo"):
        assert data.spec.given(part("a red zebra"), None).tokens.shape == (1, data.spec.longest)
    assert "zebra" in caplog.text


def part(prompt):
    return GivenPart(prompts=(prompt,))


# --------------------------------------------------------------------------------------- both orders of a joint


@pytest.mark.slow
def test_both_orders_recover_a_joint_distribution():
    """Four captions and four pictures of two pixels: P(caption) P(image | caption) and the reverse are the table."""
    spec = CaptionedTokenSpec(
        ImageTokenSpec(ImageSpec(1, 2, 1, caption=CaptionSpec(Characters("ab"), length=3)), "pixels", (1, 1), 2)
    )
    table = np.random.default_rng(0).dirichlet(np.full(16, 0.7)).reshape(4, 4) * 0.9 + 0.1 / 16
    captions, _ = spec.caption.rows(["aa", "ab", "ba", "bb"])
    images = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    pair = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), -1).reshape(-1, 2)
    rows = {task: spec.rows(task, captions[pair[:, 0]], images[pair[:, 1]]) for task in ("draw", "tell")}
    family, steps, b = TransformerLM(layers=1, heads=2, width=32, context=spec.longest), 800, 256
    setup = Setup(Optimizer(learning_rate=2e-2, warmup_steps=50, weight_decay=0.0), steps, b)
    state, rng = family.init(spec, setup, KEY), np.random.default_rng(1)
    step = jax.jit(family.step)

    def batch_of(tokens):
        n = len(tokens)
        return {
            "tokens": jnp.asarray(tokens), "length": jnp.full(n, tokens.shape[1]), "first": jnp.ones(n, jnp.int32),
            "row": jnp.arange(n), "valid": jnp.ones(n, bool),
        }  # fmt: skip

    for i in range(steps):
        drawn, tells = rng.choice(16, b, p=table.reshape(-1)), rng.random(b) < 0.5
        state, _ = step(state, batch_of(np.where(tells[:, None], rows["tell"][drawn], rows["draw"][drawn])), i, KEY)
    for task in ("draw", "tell"):
        nats, _ = jax.jit(family.evaluate)(state, batch_of(rows[task]), KEY)["loss"]
        excess = float((table.reshape(-1) * (np.asarray(nats) + np.log(table.reshape(-1)))).sum())
        assert 0 <= excess + 1e-6 < 0.05, task
        assert np.exp(-np.asarray(nats, np.float64)).sum() == pytest.approx(1, abs=0.02)

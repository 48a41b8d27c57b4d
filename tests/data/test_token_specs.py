"""A language model of any tokens: pixels here, whose spec decodes samples and names the likelihood's units."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.core.artifacts import Image
from zoo.core.data import Data, DataSet
from zoo.core.errors import UserError
from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.specs import LineSpec, TokenSpec
from zoo.data.tokenizers import Bytes
from zoo.harness.config import Run
from zoo.harness.loop import fit
from zoo.harness.trained import Trained
from zoo.lstm_lm import LSTMLM
from zoo.metrics.tokens import TokenScoring
from zoo.transformer_lm import TransformerLM

SIDE, LEVELS = 3, 4
PATTERN = np.array([0, 1, 2, 3, 3, 3, 2, 1, 0], np.int32)


@dataclass(frozen=True)
class PixelSpec(TokenSpec):
    """Images of 3x3 pixels in four levels of grey, row by row."""

    @property
    def vocab_size(self) -> int:
        return LEVELS + 1

    @property
    def end(self) -> int:
        return LEVELS

    @property
    def longest(self) -> int:
        return SIDE * SIDE

    def decode(self, samples, codec) -> list[Image]:
        return [Image((85 * ids).astype(np.uint8).reshape(SIDE, SIDE, 1)) for ids in samples]


@dataclass(frozen=True, eq=False)
class PixelSet(DataSet):
    batch_size: int
    spec: PixelSpec = PixelSpec()
    held_out_batches = 1

    def batch_at(self, step, rows=slice(None)):
        row = np.arange(self.batch_size, dtype=np.int32)[rows]
        tokens = np.tile(np.append(np.int32(LEVELS), PATTERN), (len(row), 1))
        return {
            "tokens": tokens,
            "length": np.full(row.shape, tokens.shape[1], np.int32),
            "row": row,
            "valid": np.ones(row.shape, bool),
        }

    def held_out_at(self, index, rows=slice(None)):
        batch = self.batch_at(0, rows)
        one = np.ones(len(batch["row"]), np.int32)
        return batch | {"images": one, "dims": SIDE * SIDE * one}


@dataclass(frozen=True)
class Pixels(Data):
    """One image, again and again."""

    def open(self, *, length, batch_size, seed, spec=None, split="dev"):
        return PixelSet(batch_size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    family = TransformerLM(layers=1, heads=2, width=16, context=9)
    optimizer = Optimizer(learning_rate=2e-2, warmup_steps=0, schedule="constant")
    return fit(
        Run(
            family=family, data=Pixels(), optimizer=optimizer, parallel=Parallel(devices=1), steps=60, batch_size=4,
            rundir=str(tmp_path_factory.mktemp("pixels") / "run"),
        )
    )  # fmt: skip


def test_a_language_model_of_pixels_makes_images(trained):
    images = trained.sample(n=2, temperature=0.0)
    assert images == [Image((85 * PATTERN).astype(np.uint8).reshape(SIDE, SIDE, 1))] * 2
    assert trained.sample(n=1, temperature=0.0, max_new_tokens=3) == images[:1]  # an image has its own length


def test_its_likelihood_is_in_nats_an_image_and_bits_a_dimension(trained):
    found = trained.evaluate()
    assert found["nats_per_image"] == pytest.approx(9 * found["loss"], rel=1e-5)
    assert found["nats_per_image"] == pytest.approx(9 * math.log(2) * found["bits_per_dim"], rel=1e-5)
    assert not {"bits_per_character", "bits_per_byte"} & found.keys()


@pytest.mark.parametrize("asked", [{"prompt": "a"}, {"stop": ("a",)}, {"num_beams": 2}, {"score": "a"}], ids=str)
def test_what_is_of_texts_is_refused(trained, asked):
    with pytest.raises(UserError, match=rf"{next(iter(asked))} is .* the model's tokens are of none"):
        trained.sample(**asked)


def test_scores_of_texts_are_named_before_the_work(trained):
    found = TokenScoring(samples=2, stride=3).check(trained.model.family, trained.model.spec, trained.model.extractor)
    assert list(found) == ["stride", "samples"]
    assert TokenScoring(samples=2).check(trained.model.family, LineSpec(Bytes()), trained.model.extractor) == {}
    with pytest.raises(UserError, match="stride is 3, which scores texts, and the tokens are of none"):
        trained.evaluate(stride=3)


def test_a_recurrent_model_takes_rows_that_continue_nothing():
    """As if every row said so."""
    family = LSTMLM(layers=1, width=8, embedding=8, context=9)
    setup = Setup(Optimizer(name="sgd", learning_rate=0.1, schedule="constant"), 4, 4)
    state = family.init(PixelSpec(), setup, jax.random.key(0))
    state = replace_carry(state)
    batch = jax.tree.map(jnp.asarray, PixelSet(4).batch_at(0))
    step = jax.jit(family.step)
    plain, _ = step(state, batch, jnp.int32(0), jax.random.key(1))
    told, _ = step(state, batch | {"continues": jnp.zeros(4, bool)}, jnp.int32(0), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, plain.net.params, told.net.params)


def replace_carry(state):
    """With states that would change what is learned, if they were read."""
    return state._replace(carry=replace(state.carry, value=jax.tree.map(jnp.ones_like, state.carry.value)))

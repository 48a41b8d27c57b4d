"""What the tests of the command line share."""

import json
from collections.abc import Callable
from pathlib import Path

from command_line import Result

Train = Callable[..., Result]
UNIGRAM = '''
"""Tokens drawn independently: one logit each."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from zoo import Run
from zoo.core.family import Family
from zoo.core.learner import Learner
from zoo.data.specs import BlockSpec
from zoo.data.text import Text


class Logits(nnx.Module):
    def __init__(self, vocab_size):
        self.logits = nnx.Param(jnp.zeros(vocab_size))


class State(NamedTuple):
    net: Learner


def row_nats(net, batch):
    nats = -jax.nn.log_softmax(net.logits[...])[batch["tokens"][:, 1:]]
    real = jnp.arange(1, batch["tokens"].shape[1])[None, :] < batch["length"][:, None]
    return (nats * real).sum(1), real.sum(1).astype(jnp.float32)


@dataclass(frozen=True)
class Unigram(Family):
    accepts = BlockSpec
    length = 16

    def init(self, spec, setup, key):
        return State(Learner.create(Logits(spec.tokenizer.vocab_size), setup))

    def step(self, state, batch, step, key):
        def loss(net, batch, key):
            nats, count = row_nats(net, batch)
            return nats.sum(), count.sum(), {}

        net, metrics = state.net.descend(loss, batch, step, key)
        return State(net), metrics

    def evaluate(self, state, batch, key):
        return {"loss": row_nats(state.net.eval_net(), batch)}

    def sample(self, model, request, key):
        return []


run = Run(family=Unigram(), data=Text(), steps=3, batch_size=8)
'''


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def records(rundir: Path) -> list[dict]:
    return [json.loads(line) for line in (rundir / "metrics.jsonl").read_text().splitlines()]

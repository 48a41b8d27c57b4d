"""Evaluation on held-out data: compiled row statistics, their means, and which scores can be computed."""

import dataclasses
import logging
from collections.abc import Callable, Container
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core import parallel
from zoo.core.data import DataSet, Spec
from zoo.core.errors import UserError
from zoo.core.estimates import RowMeans
from zoo.core.extractor import Extractor
from zoo.core.family import Family, Metrics, RowStatistics, Scoring, State
from zoo.core.parallel import Strategy

log = logging.getLogger("zoo")


def load_extractor(name: str, spec: Any) -> Extractor:
    """Loads the feature extractor that a setting names; see `zoo.harness.extractors.load_extractor`."""
    from zoo.harness import extractors  # only image scores need its readers of weights

    return extractors.load_extractor(name, spec)


def attainable(scoring: Scoring, family: Family, spec: Spec, insisted: Container[str] = ()) -> Scoring:
    """Removes the scores that this family or data does not allow, and logs for each why and what would allow it.

    Args:
        scoring: the settings.
        family: the family that is scored.
        spec: of its data.
        insisted: names of settings that must not be removed.

    Returns:
        The settings, with the removed ones at their defaults.

    Raises:
        UserError: a setting is invalid, or one of `insisted` cannot be computed.
    """
    missing = scoring.check(family, spec, load_extractor)
    for name, why in missing.items():
        if name in insisted:
            raise UserError(why)
    for why in dict.fromkeys(missing.values()):
        log.warning("%s", why)
    default = type(scoring)()
    return dataclasses.replace(scoring, **{name: getattr(default, name) for name in missing})


def compile_evaluation(strategy: Strategy, family: Family, key: jax.Array) -> Callable[..., Any]:
    """Compiles the family's `evaluate` as a function of (state, batch, draw).

    Noise is drawn by the row's index in the whole split. Draw 0 uses `key`, draw i > 0 uses `fold_in(key, i)`. For a
    family that compares rows, each device evaluates the whole batch and returns its own rows.
    """

    def evaluate(state: State, batch: Any, draw: jax.Array) -> RowStatistics:
        drawn = jnp.where(draw == 0, key, jax.random.fold_in(key, draw))
        if family.compares_rows:
            return parallel.own_rows(family.evaluate(state, parallel.all_rows(batch), drawn))
        return family.evaluate(state, batch, drawn)

    return strategy.compile_rows(evaluate)


def evaluate_split(
    strategy: Strategy, compiled: Callable[..., Any], state: State, data: DataSet, batches: int = 0, draws: int = 1
) -> Metrics:
    """Means over the data's held-out split, each row counted once, with standard errors; see `RowMeans.metrics`.

    Args:
        strategy: the devices.
        compiled: from `compile_evaluation`.
        state: on the devices.
        data: its held-out rows are evaluated.
        batches: number of batches to evaluate; 0: all.
        draws: number of evaluations of each row, each with its own noise.
    """
    means = RowMeans(draws)
    for index in range(min(batches or data.held_out_batches, data.held_out_batches)):
        batch = data.held_out_at(index)
        mine = strategy.rows(len(batch["valid"]))
        placed = strategy.put({k: v[mine] for k, v in batch.items()})
        means.add([jax.device_get(compiled(state, placed, np.int32(draw))) for draw in range(draws)], batch["valid"])
    return means.metrics()

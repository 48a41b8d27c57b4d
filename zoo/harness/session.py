"""A run in training: how a new run starts and how a saved one resumes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax

from zoo.core.codec import Coder
from zoo.core.data import DataSet
from zoo.core.errors import UserError
from zoo.core.family import Metrics, Model, Scoring, State
from zoo.core.parallel import Strategy
from zoo.harness.checkpoint import Checkpoints
from zoo.harness.codecs import as_coder, codec_of, copy_codec
from zoo.harness.config import Run, check_may_go_on
from zoo.harness.evaluation import attainable, compile_evaluation, load_extractor
from zoo.harness.initial import Keys, first_state, keys_of, random_state
from zoo.harness.rundir import RunDir
from zoo.harness.signals import Stop
from zoo.harness.trained import inference_state, load_run, open_data

AUGMENTATION = 2**32 - 1
"""Folded into a step's key for the noise of augmentation; no family draws from the same key."""


@dataclass(frozen=True)
class Session:
    """Everything the loop works with that stays the same from the first step to the last."""

    run: Run
    rundir: RunDir
    strategy: Strategy
    data: DataSet
    scoring: Scoring
    """The run's scores, without those that its data does not allow."""
    checkpoints: Checkpoints
    stop: Stop
    codec: Coder | None
    """The codec that encodes the data; None if it has none."""
    warned: set[str] = field(default_factory=set)
    """Reasons, already logged, why scores could not be computed."""

    @cached_property
    def keys(self) -> Keys:
        """The root keys."""
        return keys_of(self.run)

    @cached_property
    def train_step(self) -> Callable[..., tuple[State, Metrics]]:
        """The compiled step (state, batch, number) -> (state, metrics); the state passed in is donated."""
        family, data, root = self.run.family, self.data, self.keys.step

        def train_step(state: State, batch: Any, step: jax.Array) -> tuple[State, Metrics]:
            key = jax.random.fold_in(root, step)
            return family.step(state, data.augment(batch, jax.random.fold_in(key, AUGMENTATION)), step, key)

        return self.strategy.compile_step(train_step)

    @cached_property
    def evaluation(self) -> Callable[..., Any]:
        """The compiled evaluation of a held-out batch."""
        return compile_evaluation(self.strategy, self.run.family, self.keys.evaluation)

    def model(self, state: State, done: int) -> Model:
        """The model after `done` steps, as the family samples and scores it."""
        lean = self.strategy.replicate(inference_state(self.strategy.gather(state)))
        return Model(self.run.family, self.data.spec, lean, done, lambda: self.data, load_extractor, self.codec)


@dataclass(frozen=True)
class Position:
    """Where the loop begins."""

    state: State
    """On its devices."""
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Training time of these steps."""


def start(run: Run, rundir: RunDir, fresh: bool, stop: Stop) -> tuple[Session, Position]:
    """Starts a new run; its directory is made after the data is open and the first state exists.

    Args:
        run: the settings.
        rundir: the run directory.
        fresh: delete the run that it holds.
        stop: receives the signals.

    Raises:
        UserError: the directory, the data or a setting cannot be used, or the weights of `init.from` do not fit.
    """
    rundir.check_free(fresh)
    source = load_run(run.init.source) if run.init.source else None
    strategy = run.parallel.start(run.batch_size, run.optimizer.microbatches)
    if source:
        run.data.check_tokenizer(source.model.spec)
    codec = codec_of(run.data)
    data = _open_data(run, source.model.spec if source else None, as_coder(codec))
    scoring = _attainable(run, data)
    state = first_state(run, data.spec, strategy, source)
    rundir.create(run, data.spec, fresh)
    if codec is not None:
        copy_codec(codec, rundir.path)
    rundir.write_preview(data.preview(keys_of(run).step))
    checkpoints = Checkpoints(rundir.path, run.keep, run.family.monitor)
    session = Session(run, rundir, strategy, data, scoring, checkpoints, stop, as_coder(codec))
    return session, Position(state)


def resume(saved: Run, run: Run, rundir: RunDir, stop: Stop) -> tuple[Session, Position]:
    """Resumes the run in a directory from its last checkpoint that can be read; later logs are cut off.

    Args:
        saved: the settings in the directory.
        run: the same settings, except for those that may change; see `check_may_go_on`.
        rundir: the run directory.
        stop: receives the signals.

    Raises:
        UserError: other settings differ, another process trains here, or the data is not the same.
    """
    check_may_go_on(saved, run)
    rundir.claim()
    strategy = run.parallel.start(run.batch_size, run.optimizer.microbatches)
    codec = as_coder(codec_of(run.data, rundir.path))
    data = _open_data(run, rundir.spec(), codec)
    scoring = _attainable(run, data)
    checkpoints = Checkpoints(rundir.path, run.keep, run.family.monitor)
    step, state = checkpoints.restore_last(strategy.abstract(*random_state(run, data.spec)))
    state = strategy.place(state)
    checkpoints.clear_after(step)
    seconds = rundir.cut_back(step)
    if step < run.steps:
        rundir.write_config(run)
    return Session(run, rundir, strategy, data, scoring, checkpoints, stop, codec), Position(state, step, seconds)


def _open_data(run: Run, spec: Any, codec: Coder | None) -> DataSet:
    """The run's data, with the spec of an earlier run if there is one.

    Raises:
        UserError: the data cannot be read, or the family does not accept it.
    """
    settings = {"length": run.family.length, "batch_size": run.batch_size, "seed": run.seed, "spec": spec}
    data = open_data(run.data, codec, **settings)
    if not isinstance(data.spec, run.family.accepts):
        family = type(run.family)
        raise UserError(f"data gives {type(data.spec).__name__}, but {family.__name__} takes {family.accepts.__name__}")
    return data


def _attainable(run: Run, data: DataSet) -> Scoring:
    """The run's scores without those that cannot be computed; a run that never scores checks none."""
    return attainable(run.scoring, run.family, data.spec) if run.score_every else run.scoring

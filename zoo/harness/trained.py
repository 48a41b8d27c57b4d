"""A run that has been trained: what sample.py, evaluate.py and notebooks hold in their hands."""

import dataclasses
import logging
import math
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.core.artifacts import Artifacts
from zoo.core.data import Data, DataSet, Spec, Split
from zoo.core.errors import UserError
from zoo.core.estimates import RowMeans
from zoo.core.extractor import Extractor
from zoo.core.family import Family, Metrics, Model, Rows, RowStatistics, Scoring, Setup, State
from zoo.core.learner import Learner
from zoo.core.parallel import Parallel, Strategy
from zoo.harness.checkpoint import Checkpoints, DamagedCheckpointError, flatten
from zoo.harness.config import Run, differences
from zoo.harness.platform import exact_float32, prepare
from zoo.harness.progress import to_console
from zoo.harness.rundir import RunDir

log = logging.getLogger("zoo")


class Trained:
    """A trained model with the run that made it.

    Attributes:
        run: the settings.
        model: the networks, as the family's `sample` and `score` take them.
        path: the run directory.
    """

    def __init__(self, run: Run, model: Model, path: Path) -> None:
        self.run, self.path = run, path
        self.model = dataclasses.replace(model, data=lambda: self.data, extractor=load_extractor)
        self._data: DataSet | None = None

    def __repr__(self) -> str:
        return f"<{type(self.model.family).__name__} at step {self.model.step} in {self.path}>"

    def net(self, name: str = "") -> Any:
        """The network with its evaluation weights, an NNX module.

        Args:
            name: which one, where the family has several (a GAN's `gen` and `disc`).
        """
        nodes = flatten(self.model.state, is_leaf=lambda node: isinstance(node, Learner))
        learners = {path: node for path, node in nodes.items() if isinstance(node, Learner)}
        if not name and len(learners) == 1:
            return next(iter(learners.values())).eval_net()
        if name not in learners:
            raise UserError(f"net is asked for {name!r}; it must be one of {', '.join(learners)}")
        return learners[name].eval_net()

    @property
    def data(self) -> DataSet:
        """The data set that the run was trained on, opened when first asked for; held out is dev."""
        if self._data is None:
            self._data = self._open(self.run.data)
        return self._data

    def setting(self) -> dict[str, str]:
        """What figures computed here depend on besides the run: the precision and the kind of device."""
        return {"precision": compute_dtype(self.run), "device": jax.devices()[0].device_kind}

    def _open(self, data: Data, **split: Split) -> DataSet:
        return data.open(
            length=self.run.family.length,
            batch_size=self.run.batch_size,
            seed=self.run.seed,
            spec=self.model.spec,
            **split,
        )

    def held_out(self, split: Split = "dev", data: Data | None = None) -> DataSet:
        """Data to score the model on.

        Args:
            split: which rows: `dev`, `test`, or `all`, those that were trained on among them.
            data: settings of another source of the same kind; None: the run's own.

        Raises:
            UserError: the data cannot be read, or the model cannot take it.
        """
        if data is None or data == self.run.data:
            return self.data.on(split) if split != "all" else self._open(self.run.data, split="all")
        data.check_tokenizer(self.model.spec)
        return self._open(data, split=split)

    def sample(self, seed: int = 0, stream: Callable[[str], None] | None = None, **request: Any) -> Artifacts:
        """Makes samples.

        Args:
            seed: of the noise.
            stream: called with each piece of text as it is made, where there is one sample.
            **request: fields of the family's `Request` (`n=3`, `temperature=0.8`, ...).
        """
        asked = construct(self.model.family.Request, request)
        with exact_float32():
            return self.model.family.sample(self.model, asked, key_of(seed), stream)

    def evaluate(
        self, seed: int = 0, draws: int = 1, split: Split = "dev", data: DataSet | None = None, **scoring: Any
    ) -> Metrics:
        """Scores all rows of a split.

        Args:
            seed: of the noise, for objectives that have some.
            draws: how often each row is evaluated, with other noise each time; for bounds that sample.
            split: `dev` to choose by, `test` to report, or `all` rows.
            data: from `held_out`, whose split counts then; None: the run's own.
            **scoring: fields of the family's `Scoring`, where they differ from the run's.

        Returns:
            Means over rows with their standard errors (see `RowMeans.metrics`), the figures of the family's `score`,
            and what the split leaves out (see `DataSet.coverage`).

        Raises:
            UserError: what `scoring` asks for cannot be had; what only the run's own settings ask for is left out.
        """
        if draws < 1:
            raise UserError(f"draws is {draws}; it must be at least 1")
        family, key = self.model.family, key_of(seed)
        asked = construct(family.Scoring, vars(self.run.scoring) | scoring)
        asked = attainable(asked, family, self.model.spec, insisted=scoring)
        devices = math.gcd(self.run.batch_size, jax.device_count())
        strategy = Parallel(devices=devices).start(self.run.batch_size)
        compiled = compile_evaluation(strategy, family, key)
        data = data or self.held_out(split)
        with exact_float32():
            means = evaluate_split(strategy, compiled, strategy.place(self.model.state), data, draws=draws)
            return means | family.score(self.model, means, data, asked, key) | data.coverage()


def key_of(seed: int) -> jax.Array:
    """The key of a seed.

    Raises:
        UserError: the seed has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be from 0 to {2**32 - 1}")
    return jax.random.key(seed)


def load_extractor(name: str, spec: Any) -> Extractor:
    """The feature extractor that a setting names; see `zoo.harness.extractors.load_extractor`."""
    from zoo.harness import extractors  # it imports this module, and its readers of weights serve image scores alone

    return extractors.load_extractor(name, spec)


def construct(kind: Any, fields: dict[str, Any]) -> Any:
    """Constructs a request or scoring; a field that it lacks is named with those that it has."""
    names = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in names:
            raise UserError(f"there is no setting {name!r}; there are {', '.join(names)}")
    return kind(**fields)


def attainable(scoring: Scoring, family: Family, spec: Spec, insisted: Container[str] = ()) -> Scoring:
    """Settings without those that ask for figures which cannot be had; the log names them, and how to get them.

    Args:
        scoring: the settings.
        family: what is scored.
        spec: of its data.
        insisted: settings that must not be left out.

    Raises:
        UserError: a setting is wrong, or one of `insisted` asks for what cannot be had.
    """
    missing = scoring.check(family, spec, load_extractor)
    for name, why in missing.items():
        if name in insisted:
            raise UserError(why)
    for why in dict.fromkeys(missing.values()):
        log.warning("%s", why)
    default = type(scoring)()
    return dataclasses.replace(scoring, **{name: getattr(default, name) for name in missing})


def inference_state(state: State) -> State:
    """A state with nothing but what evaluation networks need."""

    def lean(node: Any) -> Any:
        if isinstance(node, Rows):
            return Rows(None)  # of rows in training
        return node.inference() if isinstance(node, Learner) else node

    return jax.tree.map(lean, state, is_leaf=lambda node: isinstance(node, Learner | Rows))


def compute_dtype(run: Run) -> str:
    """What the networks of a run compute in here."""
    if run.precision != "auto":
        return run.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def make_setup(run: Run) -> Setup:
    """What the family is told of the run; trained parts are loaded."""
    return Setup(
        optimizer=run.optimizer,
        total_steps=run.steps,
        batch_size=run.batch_size,
        precision=compute_dtype(run),
        parts={name: load_run(path).model for name, path in run.parts.items()},
    )


def load_run(path: str | Path, checkpoint: str = "last") -> Trained:
    """Loads a trained run: settings, spec and evaluation weights, no data and no optimizer state.

    Args:
        path: the run directory.
        checkpoint: `last`, `best` (by the family's held-out metric), or a step's number.

    Raises:
        UserError: not a run directory, or no such checkpoint.
    """
    prepare()
    rundir = RunDir(path)
    rundir.require()
    run, spec = rundir.config(), rundir.spec()
    setup = make_setup(run)
    strategy = Parallel(devices=1).start(1)
    state = strategy.abstract(lambda key: run.family.init(spec, setup, key), jax.random.key(0))
    checkpoints = Checkpoints(rundir.path, monitor=run.family.monitor)
    try:
        if checkpoint == "last":
            with to_console():
                step, state = checkpoints.restore_last(inference_state(state))
        else:
            step = _find_step(checkpoints, checkpoint, rundir.path)
            state = checkpoints.restore(step, inference_state(state))
    except DamagedCheckpointError as error:
        raise UserError(f"checkpoint {checkpoint} in {path} is damaged ({error}); give --checkpoint last") from None
    finally:
        checkpoints.close()
    return Trained(run, Model(run.family, spec, state, step), rundir.path)


def _find_step(checkpoints: Checkpoints, checkpoint: str, path: Path) -> int:
    steps = checkpoints.steps()
    if checkpoint == "best":
        best = checkpoints.best()
        return best[0] if best else steps[-1]
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(f"checkpoint is {checkpoint!r}; {path} has last, best, or one of the steps {there}")
    return int(checkpoint)


def start_from(source: Trained, state: State, family: Family) -> State:
    """A fresh state that samples and scores as another run does: with its evaluation weights and memory.

    Raises:
        UserError: these have other names or shapes; the settings that differ are named.
    """
    differing = [f"{name} is {old!r} there and {new!r} here" for name, (old, new) in
                 differences(source.run.family, family).items()]  # fmt: skip
    because = f" ({'; '.join(differing)})" if differing else ""
    nodes = jax.tree.leaves(source.model.state, is_leaf=lambda node: isinstance(node, Learner))
    sources = iter([node for node in nodes if isinstance(node, Learner)])

    def take(node: Any) -> Any:
        if not isinstance(node, Learner):
            return node
        learner = next(sources, None)
        if learner is None:
            raise UserError(f"init.from is {source.path}, which has fewer networks than this run{because}")
        theirs = learner.eval_params | learner.frozen
        given = flatten(theirs) | flatten(learner.eval_memory)
        wanted = flatten(node.params | node.frozen) | flatten(node.memory)
        for name in sorted(given.keys() | wanted.keys()):
            here = wanted[name].shape if name in wanted else "absent"
            there = given[name].shape if name in given else "absent"
            if here != there:
                raise UserError(
                    f"init.from is {source.path}, whose {name} is {there} while this run's is {here}{because}"
                )
        frozen = {name: theirs[name] for name in node.frozen}
        started = node.with_params({name: theirs[name] for name in node.params}, learner.eval_memory)
        return dataclasses.replace(started, frozen=frozen)

    return jax.tree.map(take, state, is_leaf=lambda node: isinstance(node, Learner))


def compile_evaluation(strategy: Strategy, family: Family, key: jax.Array) -> Callable[..., Any]:
    """Compiles the family's `evaluate` as a function of (state, batch, draw).

    Its noise is drawn by the row's index in the whole split; draw 0 has `key` itself, another one a key of its own.
    """

    def evaluate(state: State, batch: Any, draw: jax.Array) -> RowStatistics:
        return family.evaluate(state, batch, jnp.where(draw == 0, key, jax.random.fold_in(key, draw)))

    return strategy.compile_rows(evaluate)


def evaluate_split(
    strategy: Strategy, compiled: Callable[..., Any], state: State, data: DataSet, batches: int = 0, draws: int = 1
) -> Metrics:
    """Means over the data's split, each row once, with their standard errors: see `RowMeans.metrics`.

    Args:
        strategy: devices.
        compiled: from `compile_evaluation`.
        state: on the devices.
        data: whose held-out rows to score.
        batches: how many batches of it; 0: all.
        draws: how often to evaluate each row, with other noise each time.
    """
    means = RowMeans(draws)
    for index in range(min(batches or data.held_out_batches, data.held_out_batches)):
        batch = data.held_out_at(index)
        mine = strategy.rows(len(batch["valid"]))
        placed = strategy.put({k: v[mine] for k, v in batch.items()})
        means.add([jax.device_get(compiled(state, placed, np.int32(draw))) for draw in range(draws)], batch["valid"])
    return means.metrics()

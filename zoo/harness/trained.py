"""A trained run: the object that sample.py, evaluate.py and notebooks work with, and how it is loaded."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from zoo.core.artifacts import Artifacts
from zoo.core.codec import Coder
from zoo.core.data import Data, DataSet, Split
from zoo.core.errors import UserError
from zoo.core.family import Metrics, Model, Request, Rows, Setup, State
from zoo.core.learner import Learner
from zoo.core.parallel import Parallel
from zoo.harness.checkpoint import Checkpoints, DamagedCheckpointError, flatten
from zoo.harness.config import Run
from zoo.harness.evaluation import attainable, compile_evaluation, evaluate_split, load_extractor
from zoo.harness.platform import exact_float32, prepare
from zoo.harness.progress import to_console
from zoo.harness.rundir import RunDir


class Trained:
    """A trained model and the run that trained it.

    Attributes:
        run: the settings.
        model: the family, its spec and its evaluation weights, as `Family.sample` and `Family.score` take them.
        path: the run directory.
    """

    def __init__(self, run: Run, model: Model, path: Path) -> None:
        self.run, self.path = run, path
        self.model = dataclasses.replace(model, data=lambda: self.data, extractor=load_extractor)
        self._data: DataSet | None = None

    def __repr__(self) -> str:
        return f"<{type(self.model.family).__name__} at step {self.model.step} in {self.path}>"

    def net(self, name: str = "") -> Any:
        """A network with its evaluation weights, as an NNX module.

        Args:
            name: which network, for a family that has several (a GAN's `generator` and `discriminator`).

        Raises:
            UserError: there is no network of that name.
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
        """The data set of the run, opened at the first access; its held-out split is dev."""
        if self._data is None:
            self._data = self._open(self.run.data)
        return self._data

    def setting(self) -> dict[str, str]:
        """The dtype of the networks and the kind of device, on which scores depend besides the run."""
        return {"compute_dtype": compute_dtype(self.run), "device": jax.devices()[0].device_kind}

    def _open(self, data: Data, **split: Split) -> DataSet:
        return open_data(
            data,
            self.model.codec,
            length=self.run.family.length,
            batch_size=self.run.batch_size,
            seed=self.run.seed,
            spec=self.model.spec,
            **split,
        )

    def held_out(self, split: Split = "dev", data: Data | None = None) -> DataSet:
        """Opens data to evaluate the model on.

        Args:
            split: the held-out rows: `dev`, `test`, or `all` rows, including those of training.
            data: settings of another source of the same kind; None: the run's data.

        Raises:
            UserError: the data cannot be read, or the model cannot take it.
        """
        if data is None or data == self.run.data:
            return self.data.on(split) if split != "all" else self._open(self.run.data, split="all")
        data.check_tokenizer(self.model.spec)
        return self._open(data, split=split)

    def sample(
        self,
        seed: int = 0,
        stream: Callable[[str], None] | None = None,
        request: Request | None = None,
        **fields: Any,
    ) -> Artifacts:
        """Makes samples.

        Args:
            seed: of the noise.
            stream: called, where one text is asked for, with its prompt and then with each new piece of it.
            request: an instance of the family's `Request`; None: the defaults.
            **fields: fields of the request that differ (`n=3`, `temperature=0.8`, ...).

        Raises:
            UserError: a field does not exist or has an invalid value, or the request cannot be met.
        """
        model, key = self.model, key_of(seed)
        request = with_fields(request or model.family.Request(), fields)
        with exact_float32():
            if stream is not None:
                return model.family.stream(model, request, key, stream)
            return model.family.sample(model, request, key)

    def evaluate(
        self, seed: int = 0, draws: int = 1, split: Split = "dev", data: DataSet | None = None, **scoring: Any
    ) -> Metrics:
        """Evaluates and scores all rows of a split.

        Args:
            seed: of the noise, for objectives that draw some.
            draws: number of evaluations of each row, each with its own noise; for sampled bounds.
            split: `dev` to choose settings by, `test` to report, or `all` rows.
            data: from `held_out`, with a split of its own; None: the run's data.
            **scoring: fields of the family's `Scoring` that differ from the run's.

        Returns:
            Means over rows with standard errors (see `RowMeans.metrics`), the scores of the family, and what the split
            leaves out (see `DataSet.coverage`).

        Raises:
            UserError: a score named in `scoring` cannot be computed. Scores that only the run's settings name are left
                out instead, with a warning.
        """
        if draws < 1:
            raise UserError(f"draws is {draws}; it must be at least 1")
        family, key = self.model.family, key_of(seed)
        wanted = attainable(with_fields(self.run.scoring, scoring), family, self.model.spec, insisted=scoring)
        devices = math.gcd(self.run.batch_size, jax.device_count())
        strategy = Parallel(devices=devices).start(self.run.batch_size)
        compiled = compile_evaluation(strategy, family, key)
        data = data or self.held_out(split)
        with exact_float32():
            means = evaluate_split(strategy, compiled, strategy.place(self.model.state), data, draws=draws)
            return means | family.score(self.model, means, data, wanted, key) | data.coverage()


def key_of(seed: int) -> jax.Array:
    """The key of a seed.

    Raises:
        UserError: the seed has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be from 0 to {2**32 - 1}")
    return jax.random.key(seed)


def open_data(data: Data, codec: Coder | None, **settings: Any) -> DataSet:
    """Opens data, with its codec if it has one; see `Data.open`."""
    with_codec: dict[str, Any] = {} if codec is None else {"codec": codec}
    return data.open(**settings, **with_codec)


def with_fields(settings: Any, fields: dict[str, Any]) -> Any:
    """A request or scoring with some fields replaced.

    Raises:
        UserError: it has no field of that name; the message lists those it has.
    """
    names = [field.name for field in dataclasses.fields(settings)]
    for name in fields:
        if name not in names:
            raise UserError(f"there is no setting {name!r}; there are {', '.join(names)}")
    return dataclasses.replace(settings, **fields)


def inference_state(state: State) -> State:
    """The part of a state that the evaluation networks need."""

    def lean(node: Any) -> Any:
        if isinstance(node, Rows):
            return Rows(None)  # belongs to rows in training
        return node.inference() if isinstance(node, Learner) else node

    return jax.tree.map(lean, state, is_leaf=lambda node: isinstance(node, Learner | Rows))


def compute_dtype(run: Run) -> str:
    """The dtype that the networks of a run compute in on this machine."""
    if run.precision != "auto":
        return run.precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def make_setup(run: Run) -> Setup:
    """The `Setup` of a run, with its parts loaded."""
    return Setup(
        optimizer=run.optimizer,
        total_steps=run.steps,
        batch_size=run.batch_size,
        precision=compute_dtype(run),
        parts={name: load_run(path).model for name, path in run.parts.items()},
    )


def load_run(path: str | Path, checkpoint: str = "last") -> Trained:
    """Loads a trained run: settings, spec and evaluation weights, without data and optimizer state.

    Args:
        path: the run directory.
        checkpoint: `last`, `best` (by the family's held-out metric), or a step number.

    Raises:
        UserError: the path is not a run directory, or has no such checkpoint.
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
    from zoo.harness import codecs  # it imports this module

    codec = codecs.as_coder(codecs.codec_of(run.data, rundir.path))
    return Trained(run, Model(run.family, spec, state, step, codec=codec), rundir.path)


def _find_step(checkpoints: Checkpoints, checkpoint: str, path: Path) -> int:
    steps = checkpoints.steps()
    if checkpoint == "best":
        best = checkpoints.best()
        return best[0] if best else steps[-1]
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(f"checkpoint is {checkpoint!r}; {path} has last, best, or one of the steps {there}")
    return int(checkpoint)

"""The contract between a model family and everything that is shared.

A family is a frozen dataclass whose fields are its hyper-parameters. It turns a data set's spec into a state, a state
and a batch into the next state, a state and held-out rows into statistics, and a trained model into samples. It never
names a device, and what is shared never names a family.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Ge

from zoo.core.artifacts import Artifacts
from zoo.core.codec import Coder
from zoo.core.data import Spec
from zoo.core.errors import require
from zoo.core.extractor import LoadExtractor, no_extractor

if TYPE_CHECKING:
    from zoo.core.data import DataSet
    from zoo.core.optimizer import Optimizer

Batch = dict[str, Any]
"""Arrays that lead with the batch row: `row` int32 [b] (the index in the global batch), `valid` bool [b] (false on the
rows that fill up a last batch), and what the spec promises (`tokens` int32 [b, t + 1] with `length` int32 [b], ...)."""

State = Any
"""Everything that must survive a crash, as one pytree."""

Metrics = dict[str, Any]
"""Scalars by name; in names `_nats`, `_bits`, `per_token`, ... say the unit. What `score` returns may hold strings too:
how a figure was come by (sampler, extractor, number of samples) is kept beside it."""

RowStatistics = dict[str, tuple[jax.Array, jax.Array]]
"""A held-out batch, row by row: each metric is a pair (sum [b], weight [b]); sums and weights are added over all rows
and then divided, since a mean of means is wrong as soon as rows differ in length. `loss` must be one of them."""


@dataclass(frozen=True)
class Rows:
    """Marks part of a state whose arrays lead with the global batch row (an LSTM's carry).

    Such leaves are sharded and split into microbatches like the batch, and never averaged.
    """

    value: Any


@dataclass(frozen=True)
class AllRows(Rows):
    """Marks a metric of a loss that `Learner.descend` returns with the rows of the whole batch, on every device."""


for _kind in (Rows, AllRows):
    jax.tree_util.register_dataclass(_kind, data_fields=["value"], meta_fields=[])


@dataclass(frozen=True)
class MemorySums:
    """Marks a metric that is no metric: arrays summed over rows, from which the network's memory is updated.

    The learner adds them over microbatches and devices; then `update_memory` of `Learner.descend` is called with them.
    """

    value: Any


jax.tree_util.register_dataclass(MemorySums, data_fields=["value"], meta_fields=[])


@dataclass(frozen=True)
class Setup:
    """What a family needs to know of the run to make its state.

    Attributes:
        optimizer: how the networks learn.
        total_steps: length of the run, for schedules.
        batch_size: rows in the global batch.
        precision: name of the dtype that networks compute in, float32 or bfloat16; parameters stay float32.
        parts: trained models that the family is built on, by name.
    """

    optimizer: "Optimizer"
    total_steps: int
    batch_size: int
    precision: str = "float32"
    parts: dict[str, "Model"] | None = None

    @property
    def dtype(self) -> Any:
        """`precision` as a dtype: networks take it when they are made, and cast their matrices to it."""
        return jnp.dtype(self.precision)


@dataclass(frozen=True)
class Model:
    """A trained family, ready to sample and score: its state holds networks only, no optimizer state."""

    family: "Family"
    spec: Any
    state: State
    step: int
    data: "Callable[[], DataSet] | None" = None
    """Opens the data that it was trained on, for samplers that start from real examples."""
    extractor: LoadExtractor = no_extractor
    """Loads the feature extractor that a setting of `score` names."""
    codec: Coder | None = None
    """What encoded the data, which decodes samples, if the data has a codec."""


@dataclass(frozen=True)
class Request:
    """What every sampler can be asked for; a family's own `Request` adds to it."""

    n: Annotated[int, Ge(1)] = 1
    """How many samples to make."""

    def __post_init__(self) -> None:
        require(self, "")


@dataclass(frozen=True)
class Scoring:
    """Settings of a family's `score`; a family's own `Scoring` adds to it. By default nothing costly is computed."""

    def check(self, family: "Family", spec: Spec, extractor: LoadExtractor) -> dict[str, str]:
        """Checks the settings before the work, and not after hours of it.

        Args:
            family: what is scored.
            spec: of its data.
            extractor: loads the feature extractor that a setting names.

        Returns:
            The settings that ask for figures which cannot be had with such data: by name, why not, and how to get them.

        Raises:
            UserError: a setting is wrong for this family or data.
        """
        return {}


class Family(abc.ABC):
    """A model family; see the module's docstring. Subclasses are frozen dataclasses."""

    accepts: ClassVar[type[Spec]]
    """Which data it takes: any data set whose spec is of this type."""

    unit: ClassVar[str] = "rows"
    """What throughput is counted in: tokens where the family has a `length`, or images."""

    monitor: ClassVar[tuple[str, str]] = ("loss", "min")
    """The held-out metric that says which checkpoint is best, and whether "min" or "max" is."""

    couples_rows: ClassVar[str] = ""
    """Why the loss is no sum over rows, if it is none (batch normalisation): a step then depends on the number of
    microbatches, which training warns of with these words."""

    Request: ClassVar[type[Request]] = Request
    Scoring: ClassVar[type[Scoring]] = Scoring

    @property
    def length(self) -> int | None:
        """How many positions of a sequence the family sees at once; None where data has no length."""
        return None

    def for_fine_tuning(self, config: Any) -> "Family":
        """The settings of a trained run, as a new run that starts from its weights takes them.

        Args:
            config: the settings that the new run's config has for the same family; what does not belong to the weights
                and decides how much memory a step takes may come from there.
        """
        return self

    @abc.abstractmethod
    def init(self, spec: Any, setup: Setup, key: jax.Array) -> State:
        """Makes the state before the first step. Traced under `jax.jit`."""

    @abc.abstractmethod
    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        """One training step. Traced; pure; all noise drawn per row from `key` by `zoo.core.random`."""

    @abc.abstractmethod
    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        """Scores a held-out batch row by row with the evaluation networks. Traced.

        Noise is drawn from `key` by the row, so that another key is another draw of a bound that samples.
        """

    def score(self, model: Model, rows: dict[str, Any], data: "DataSet", scoring: Any, key: jax.Array) -> Metrics:
        """Figures for the whole held-out split, computed on the host.

        Means over rows come with their standard errors: `zoo.core.estimates.row_mean`.

        Args:
            model: the trained networks.
            rows: means over the split of what `evaluate` returned, by name, with standard errors; see `RowMeans`.
            data: the data set, for metrics that need more than `rows`.
            scoring: settings from the command line.
            key: randomness, for metrics that sample.
        """
        return {}

    @abc.abstractmethod
    def sample(self, model: Model, request: Any, key: jax.Array) -> Artifacts:
        """Makes samples: host code that calls compiled functions which later calls reuse.

        Args:
            model: the trained networks.
            request: an instance of the family's `Request`.
            key: randomness; sample i draws from `fold_in(key, i)`, whatever else is sampled beside it.
        """

    def stream(self, model: Model, request: Any, key: jax.Array, show: Callable[[str], None]) -> Artifacts:
        """Makes the same samples as `sample`; a family that writes text token by token shows it as it is written.

        Args:
            model, request, key: as in `sample`.
            show: where one text is asked for, called first with its prompt and then with each new piece; all
                pieces together are the text. Families that override nothing never call it.
        """
        return self.sample(model, request, key)

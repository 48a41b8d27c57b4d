"""The interface between a model family and the shared code.

A family is a frozen dataclass whose fields are its hyper-parameters. Its methods map a data set's spec to the initial
state, a state and a batch to the next state, a state and held-out rows to statistics, and a trained model to samples. A
family never names a device, and shared code never names a family.
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
"""Arrays whose first axis is the batch row: `row` int32 [b] (the index in the global batch), `valid` bool [b] (false
for padding rows of the last batch), and those of the data set (`tokens` int32 [b, t + 1], `length` int32 [b], ...)."""

State = Any
"""Everything that a checkpoint must hold to resume training, as one pytree."""

Metrics = dict[str, Any]
"""Scalars by name; `_nats`, `_bits`, `per_token`, ... in a name give the unit. What `score` returns may also contain
strings, the provenance of a figure (sampler, extractor, number of samples), and images, which show one."""

RowStatistics = dict[str, tuple[jax.Array, jax.Array]]
"""Metrics of a held-out batch, row by row, each a pair (sum [b], weight [b]). Sums and weights are added over all rows
and then divided, since a mean of means is wrong if rows differ in length. `loss` is required."""


@dataclass(frozen=True)
class Rows:
    """Marks part of a state whose arrays have the global batch row as first axis (an LSTM's carry).

    Such leaves are sharded and split into microbatches like the batch, and never averaged.
    """

    value: Any


@dataclass(frozen=True)
class AllRows(Rows):
    """Marks a metric of a loss that `Learner.descend` returns for all rows of the global batch, on every device."""


for _kind in (Rows, AllRows):
    jax.tree_util.register_dataclass(_kind, data_fields=["value"], meta_fields=[])


@dataclass(frozen=True)
class MemorySums:
    """Marks an entry of a loss's metrics that is used to update the network's memory: arrays summed over rows.

    The learner adds them over microbatches and devices and passes them to `update_memory` of `Learner.descend`.
    """

    value: Any


jax.tree_util.register_dataclass(MemorySums, data_fields=["value"], meta_fields=[])


@dataclass(frozen=True)
class Setup:
    """Settings of the run that a family needs to create its state.

    Attributes:
        optimizer: settings of the optimizer.
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
        """`precision` as a dtype; networks are constructed with it and cast their matrices to it."""
        return jnp.dtype(self.precision)


@dataclass(frozen=True)
class Model:
    """A trained family for sampling and scoring; its state holds networks only, no optimizer state."""

    family: "Family"
    spec: Any
    state: State
    step: int
    data: "Callable[[], DataSet] | None" = None
    """Opens the training data set, for samplers that start from real examples."""
    extractor: LoadExtractor = no_extractor
    """Loads the feature extractor that a setting of `score` names."""
    codec: Coder | None = None
    """The codec of the data, which decodes samples; None if the data has none."""


@dataclass(frozen=True)
class Request:
    """Settings of every sampler; a family's own `Request` adds to them."""

    n: Annotated[int, Ge(1)] = 1
    """Number of samples."""

    def __post_init__(self) -> None:
        require(self, "")


@dataclass(frozen=True)
class Scoring:
    """Settings of a family's `score`; a family's own `Scoring` adds to them. The defaults compute nothing costly."""

    def check(self, family: "Family", spec: Spec, extractor: LoadExtractor) -> dict[str, str]:
        """Checks the settings before training starts.

        Args:
            family: the family that is scored.
            spec: spec of its data.
            extractor: loads the feature extractor that a setting names.

        Returns:
            By name, the settings whose figures cannot be computed with such data, each with the reason and a remedy.

        Raises:
            UserError: a setting is wrong for this family or data.
        """
        return {}

    def of_image(self) -> dict[str, Any]:
        """Returns the settings that differ where a single image is scored: its likelihood, and no samples."""
        return {}


class Family(abc.ABC):
    """A model family; see the module's docstring. Subclasses are frozen dataclasses."""

    accepts: ClassVar[type[Spec]]
    """Type of the spec of the data sets that the family accepts."""

    unit: ClassVar[str] = "rows"
    """Unit of throughput: tokens if the family has a `length`, or images."""

    monitor: ClassVar[tuple[str, str]] = ("loss", "min")
    """The held-out metric that selects the best checkpoint, and "min" or "max"."""

    couples_rows: ClassVar[str] = ""
    """If the loss is not a sum over rows, the reason (such as batch normalisation); else empty. A step then depends on
    the number of microbatches, and training logs a warning with this text."""

    compares_rows: ClassVar[bool] = False
    """Whether `evaluate` compares the rows of its batch with each other, so that its metrics depend on the batch size.
    It then receives the whole held-out batch also where a device holds only its own rows (pmap); rows that are not
    `valid` must not change the metrics of others."""

    Request: ClassVar[type[Request]] = Request
    Scoring: ClassVar[type[Scoring]] = Scoring

    @property
    def length(self) -> int | None:
        """Positions of a sequence that the family is trained on; None if its data has no length."""
        return None

    def for_fine_tuning(self, config: Any) -> "Family":
        """These settings of a trained run, adapted for a new run that starts from its weights.

        Args:
            config: the family's settings in the new run's config; settings that the weights do not depend on and that
                determine the memory of a step may be copied from it.
        """
        return self

    @abc.abstractmethod
    def init(self, spec: Any, setup: Setup, key: jax.Array) -> State:
        """The state before the first step. Traced under `jax.jit`."""

    @abc.abstractmethod
    def step(self, state: State, batch: Batch, step: jax.Array, key: jax.Array) -> tuple[State, Metrics]:
        """One training step. Traced; pure; all noise is drawn per row from `key` by `zoo.core.random`."""

    @abc.abstractmethod
    def evaluate(self, state: State, batch: Batch, key: jax.Array) -> RowStatistics:
        """Metrics of each row of a held-out batch by the evaluation networks. Traced.

        Noise is drawn per row from `key`, so that another key gives another draw of a bound that is sampled.
        """

    def score(self, model: Model, rows: dict[str, Any], data: "DataSet", scoring: Any, key: jax.Array) -> Metrics:
        """Figures for the whole held-out split, computed on the host.

        Means over rows are returned with their standard errors: `zoo.core.estimates.row_mean`.

        Args:
            model: the trained networks.
            rows: means over the split of the metrics of `evaluate`, by name, with standard errors; see `RowMeans`.
            data: the data set, for metrics that need more than `rows`.
            scoring: an instance of the family's `Scoring`.
            key: random key, for metrics that sample.
        """
        return {}

    @abc.abstractmethod
    def sample(self, model: Model, request: Any, key: jax.Array) -> Artifacts:
        """Draws samples. Host code, whose compiled functions are reused by later calls.

        Args:
            model: the trained networks.
            request: an instance of the family's `Request`.
            key: random key; sample i draws from `fold_in(key, i)`, so it does not depend on the other samples.
        """

    def stream(self, model: Model, request: Any, key: jax.Array, show: Callable[[str], None]) -> Artifacts:
        """Draws the same samples as `sample`; a family that generates text token by token can show it meanwhile.

        Args:
            model, request, key: as in `sample`.
            show: if one text is requested, called first with its prompt and then with each new piece; the
                concatenated pieces are the text. The default implementation never calls it.
        """
        return self.sample(model, request, key)

"""The parts of an update around the optimizer: microbatches and moving averages of the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Ge, Lt
from einops import rearrange

from zoo.core.errors import require
from zoo.core.family import Batch


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Settings of microbatches and averages. `Optimizer` inherits them, so their flags are `--optimizer.*`."""

    microbatches: Annotated[int, Ge(1)] = 1
    """Parts into which a batch is split, computed one after another to save memory; their gradients are summed."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay of the exponential moving average of the weights, which samples and scores use; 0: no average."""

    def __post_init__(self) -> None:
        require(self, "optimizer.")

    def parts(self, batch: Batch) -> Batch:
        """The microbatches, stacked; each has every m-th row, so that its rows are spread over all devices."""
        return jax.tree.map(lambda x: rearrange(x, "(b m) ... -> m b ...", m=self.microbatches), batch)

    def accumulate(self, function: Callable[[Any, Batch], tuple[Any, Any, Any]], memory: Any, batch: Batch) -> Any:
        """Calls `function(memory, batch) -> (sums, rows, memory)` for each microbatch.

        Returns:
            The sums added over microbatches, the rows in the order of the batch, and the memory after the last
            microbatch; each microbatch starts from the memory of the previous one.
        """
        if self.microbatches == 1:
            return function(memory, batch)
        parts = self.parts(batch)

        def one(carry: Any, part: Batch) -> Any:
            memory, total = carry
            sums, rows, memory = function(memory, part)
            return (memory, jax.tree.map(jnp.add, total, sums)), rows

        shapes = jax.eval_shape(function, memory, jax.tree.map(lambda x: x[0], parts))[0]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (memory, sums), rows = jax.lax.scan(one, (memory, zeros), parts)
        return sums, jax.tree.map(lambda x: rearrange(x, "m b ... -> (b m) ..."), rows), memory

    def average(self, averages: Any, values: Any, updates: jax.Array) -> Any:
        """Moving averages after one more update.

        Args:
            averages: the averages before the update.
            values: the averaged quantities after the update; integers are copied and not averaged.
            updates: number n of updates, this one included. The decay is at most (1 + n) / (10 + n), so that the
                weight of the first values falls quickly.
        """
        n = updates.astype(jnp.float32)
        decay = jnp.minimum(self.ema_decay, (1 + n) / (10 + n))

        def blend(old: jax.Array, now: jax.Array) -> jax.Array:
            return decay * old + (1 - decay) * now if jnp.issubdtype(now.dtype, jnp.floating) else now

        return jax.tree.map(blend, averages, values)

"""When to train an encoder alone: He et al. 2019, "Lagging inference networks and posterior collapse in VAEs".

Early in training the encoder lags behind the true posterior, and the decoder learns to do without it. So in the first,
aggressive phase of training the encoder is updated alone for as long as that lowers the loss (algorithm 1): while the
mean loss of ten steps is below that of the ten before, at most a hundred steps in a row; then both are updated once.
The phase ends when the mutual information I(x; z) of a window of steps is no higher than that of the window before. It
is measured on the rows that are trained on, as the steps pass, so that held-out data has no say in training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TEN = 10
"""Steps whose mean loss is compared with that of as many before."""
AT_MOST = 100
"""Steps of the encoder alone, in a row."""


class Lagging(NamedTuple):
    """Where training is; all are scalars."""

    aggressive: jax.Array
    """Whether the phase lasts."""
    alone: jax.Array
    """Whether the next step is of the encoder alone."""
    taken: jax.Array
    """Steps of the encoder alone since the last of both."""
    loss: jax.Array
    """Sum of their losses since the last ten were full."""
    last_loss: jax.Array
    """Mean loss of the ten steps before."""
    steps: jax.Array
    """Steps of the window so far."""
    information: jax.Array
    """Sum of the mutual information in them, in nats."""
    last_information: jax.Array
    """Its mean in the window before."""

    @classmethod
    def begin(cls) -> "Lagging":
        """Before the first step."""
        yes, count, zero = jnp.array(True), jnp.zeros((), jnp.int32), jnp.zeros(())
        return cls(yes, yes, count, zero, zero, count, zero, zero)

    def after(self, loss: Float[Array, ""], information: Float[Array, ""], window: int) -> "Lagging":
        """After a step with this loss and this mutual information of its rows; a window has so many steps."""
        taken = jnp.where(self.alone, self.taken + 1, 0)
        loss = jnp.where(self.alone, self.loss + loss, 0.0)
        full = self.alone & (taken % TEN == 0)
        falls = (taken <= TEN) | (loss / TEN < self.last_loss)  # the first ten have none before
        go_on = ~self.alone | (~full | falls) & (taken < AT_MOST)

        steps, information = self.steps + 1, self.information + information
        over = steps == window
        # The information of no window before is 0: a collapsed posterior ends the phase, since it cannot climb.
        climbs = information / window > self.last_information
        aggressive = self.aggressive & (~over | climbs)
        return Lagging(
            aggressive=aggressive,
            alone=aggressive & go_on,
            taken=taken,
            loss=jnp.where(full, 0.0, loss),
            last_loss=jnp.where(full, loss / TEN, self.last_loss),
            steps=jnp.where(over, 0, steps),
            information=jnp.where(over, 0.0, information),
            last_information=jnp.where(over, information / window, self.last_information),
        )

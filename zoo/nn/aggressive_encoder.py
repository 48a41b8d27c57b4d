"""Schedule of aggressive encoder training: He et al. 2019, "Lagging inference networks and posterior collapse in VAEs".

Early in training the encoder lags behind the true posterior, and the decoder learns to ignore the code. In the first,
aggressive phase the encoder is therefore updated alone as long as that lowers the loss (algorithm 1): while the mean
loss of ten steps is below that of the ten before, at most a hundred steps in a row; then both are updated once. The
phase ends when the mutual information I(x; z) of a window of steps is no higher than that of the window before. It is
measured on the training batches, so that held-out data does not influence training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TEN = 10
"""Steps over which the loss is averaged before it is compared."""
AT_MOST = 100
"""Maximum consecutive steps of the encoder alone."""


class Lagging(NamedTuple):
    """The state of the schedule; all fields are scalars."""

    aggressive: jax.Array
    """Whether the aggressive phase continues."""
    alone: jax.Array
    """Whether the next step trains the encoder alone."""
    taken: jax.Array
    """Steps of the encoder alone since the last joint step."""
    loss: jax.Array
    """Sum of losses of the encoder's steps since the last complete group of ten."""
    last_loss: jax.Array
    """Mean loss of the previous group of ten steps."""
    steps: jax.Array
    """Steps of the current window."""
    information: jax.Array
    """Sum of the mutual information over these steps, in nats."""
    last_information: jax.Array
    """Mean mutual information of the previous window, in nats."""

    @classmethod
    def begin(cls) -> "Lagging":
        """Returns the state before the first step."""
        yes, count, zero = jnp.array(True), jnp.zeros((), jnp.int32), jnp.zeros(())
        return cls(yes, yes, count, zero, zero, count, zero, zero)

    def after(self, loss: Float[Array, ""], information: Float[Array, ""], window: int) -> "Lagging":
        """Returns the state after a step with this loss and mutual information; `window` is in steps."""
        taken = jnp.where(self.alone, self.taken + 1, 0)
        loss = jnp.where(self.alone, self.loss + loss, 0.0)
        full = self.alone & (taken % TEN == 0)
        falls = (taken <= TEN) | (loss / TEN < self.last_loss)  # the first group has no predecessor
        go_on = ~self.alone | (~full | falls) & (taken < AT_MOST)

        steps, information = self.steps + 1, self.information + information
        over = steps == window
        # Before the first window the value is 0, so a collapsed posterior (information 0) ends the phase.
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

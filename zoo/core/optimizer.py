"""How a network's parameters follow its gradients: settings of one optax chain, and nothing else."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from zoo.core.errors import refuse, require


@dataclass(frozen=True)
class Optimizer:
    """Settings of the optimizer. Static in a compiled step: two that are equal compile once."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), adam (Kingma & Ba 2015), or sgd with momentum."""
    learning_rate: float = 1e-3
    """Highest learning rate, reached when warm-up ends."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls from its highest value to its last: cosine and linear over all steps after warm-up;
    wsd (warmup-stable-decay: Hu et al. 2024, "MiniCPM"; Hägele et al. 2024) linearly over the last of them."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    decay_fraction: float = 0.2
    """Share of all steps over which wsd falls; before, a larger --steps changes nothing."""
    final_fraction: float = 0.1
    """Learning rate at the last step, as a fraction of the highest (cosine, linear and wsd)."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    epsilon: float = 1e-8
    """Added to the root of Adam's second moment."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 0.0
    """Decoupled decay of adamw; on matrices and larger only, not on biases, gains and other vectors."""
    clip_norm: float = 0.0
    """Gradients whose global norm is above this are scaled down to it; 0: never."""
    microbatches: int = 1
    """Parts that a batch is taken in, one after another, to save memory; the sum of their gradients is one step."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights that samples and scores are made with; 0: none."""

    def __post_init__(self) -> None:
        require(
            self,
            "optimizer.",
            ("learning_rate", "at least 0", self.learning_rate >= 0),
            ("warmup_steps", "at least 0", self.warmup_steps >= 0),
            ("decay_fraction", "above 0 and at most 1", 0 < self.decay_fraction <= 1),
            ("final_fraction", "from 0 to 1", 0 <= self.final_fraction <= 1),
            ("beta1", "from 0 to below 1", 0 <= self.beta1 < 1),
            ("beta2", "from 0 to below 1", 0 <= self.beta2 < 1),
            ("momentum", "from 0 to below 1", 0 <= self.momentum < 1),
            ("weight_decay", "at least 0", self.weight_decay >= 0),
            ("clip_norm", "at least 0 (0: no clipping)", self.clip_norm >= 0),
            ("microbatches", "at least 1", self.microbatches >= 1),
            ("ema_decay", "from 0 to below 1", 0 <= self.ema_decay < 1),
        )
        refuse(
            f"optimizer.weight_decay is {self.weight_decay}, which {self.name} does not apply; give --optimizer.name "
            "adamw, or --optimizer.weight-decay 0",
            when=self.weight_decay > 0 and self.name != "adamw",
        )

    def learning_rate_at(self, total_steps: int) -> optax.Schedule:
        """The learning rate as a function of the number of training steps done."""
        decay_steps = max(total_steps - self.warmup_steps, 1)
        last = self.learning_rate * self.final_fraction
        if self.schedule == "cosine":
            after = optax.cosine_decay_schedule(self.learning_rate, decay_steps, alpha=self.final_fraction)
        elif self.schedule == "linear":
            after = optax.linear_schedule(self.learning_rate, last, decay_steps)
        elif self.schedule == "wsd":
            fall = min(max(round(self.decay_fraction * total_steps), 1), decay_steps)
            after = optax.linear_schedule(self.learning_rate, last, fall, transition_begin=decay_steps - fall)
        else:
            after = optax.constant_schedule(self.learning_rate)
        if self.warmup_steps == 0:
            return after
        # The first update already moves: update i = 0 ... w has (i + 1) / (w + 1) of the highest rate, which is that of
        # the first update after the w of the warm-up.
        w = self.warmup_steps
        rise = optax.linear_schedule(self.learning_rate / (w + 1), self.learning_rate, w)
        return optax.join_schedules([rise, after], [w])

    def transform(self) -> optax.GradientTransformation:
        """What a gradient becomes before it is multiplied by the learning rate and subtracted from the parameters.

        The learning rate is not in it, since its schedule reads the training step and not a count of updates, which
        several networks or submodules do not share; nor is clipping: the norm is the whole network's.
        """
        if self.name == "sgd":
            return optax.chain(optax.trace(self.momentum) if self.momentum else optax.identity())
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        if self.name == "adam":
            return optax.chain(adam)
        return optax.chain(adam, optax.add_decayed_weights(self.weight_decay, mask=decays))


def decays(params: Any) -> Any:
    """Which leaves weight decay acts on: those with two axes or more."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)

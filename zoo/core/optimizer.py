"""The optimizer: settings of an optax chain, which may apply different transforms to groups of parameters by path."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax
from annotated_types import Ge, Gt, Le, Lt
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from zoo.core.bounds import Why
from zoo.core.descent import Descent
from zoo.core.errors import UserError, refuse

DECAYING = ("adamw", "muon", "lion")
"""Optimizers that apply `weight_decay`."""
NARROW = 4
"""Muon uses AdamW for matrices and kernels with at most this number of inputs or outputs: the first and last
convolutions of pixels, heads of a few classes. Orthogonalising them would only rescale a few vectors."""


@dataclass(frozen=True)
class Optimizer(Descent):
    """Settings of the optimizer. They are static in a compiled step; equal settings share a compilation.

    A subclass may override `transform` to apply its own transforms to groups of parameters by path: see `by_path`.
    """

    name: Literal["adamw", "adam", "sgd", "muon", "lion"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), adam (Kingma & Ba 2015), sgd with momentum, muon (Jordan 2024) for hidden
    matrices and adamw for the rest, or lion (Chen et al. 2023)."""
    learning_rate: Annotated[float, Ge(0)] = 1e-3
    """Highest learning rate, reached at the end of warm-up. Muon uses AdamW's; Lion needs a third to a tenth of it."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Decay of the learning rate from its highest to its last value: cosine and linear over all steps after warm-up;
    wsd (warmup-stable-decay: Hu et al. 2024, "MiniCPM"; Hägele et al. 2024) linearly over the last of them."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps over which the learning rate rises from 0."""
    decay_fraction: Annotated[float, Gt(0), Le(1)] = 0.2
    """Share of all steps, at the end, over which wsd decays; earlier steps do not depend on --steps."""
    final_fraction: Annotated[float, Ge(0), Le(1)] = 0.1
    """Learning rate at the last step, as a fraction of the highest (cosine, linear and wsd)."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Decay of Adam's first moment; weight of the momentum in Lion's update."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay of Adam's second moment, and of Lion's momentum (0.99 in its paper)."""
    epsilon: float = 1e-8
    """Added to the square root of Adam's second moment."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Momentum of sgd."""
    muon_momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Decay of Muon's Nesterov momentum."""
    adamw_paths: str = r"(^|/)(embedding|table|head)(/|$)"
    """Regular expression of parameter paths, such as blocks/0/mlp/up/kernel, for which muon uses adamw: embeddings and
    output heads. It also uses adamw for vectors and for matrices of at most 4 inputs or outputs."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay of adamw, muon and lion; for arrays of two or more axes, not for biases and gains."""
    clip_norm: Annotated[float, Ge(0), Why("0: no clipping")] = 0.0
    """Gradients whose global norm exceeds this are scaled to this norm; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.adamw_paths)
        except re.error as error:
            raise UserError(
                f"optimizer.adamw_paths is {self.adamw_paths!r}; it must be a regular expression ({error})"
            ) from None
        refuse(
            f"optimizer.weight_decay is {self.weight_decay}, which {self.name} does not apply; give --optimizer.name "
            "adamw, or --optimizer.weight-decay 0",
            when=self.weight_decay > 0 and self.name not in DECAYING,
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
        # The first update has a positive rate: update i = 0 ... w has (i + 1) / (w + 1) of the highest rate, which the
        # first update after the w updates of the warm-up has.
        w = self.warmup_steps
        rise = optax.linear_schedule(self.learning_rate / (w + 1), self.learning_rate, w)
        return optax.join_schedules([rise, after], [w])

    def transform(self, submodule: str) -> optax.GradientTransformation:
        """The transform from the gradient of one submodule to its update, before the learning rate.

        The learner multiplies by the learning rate and subtracts, since the schedule depends on the training step and
        not on the count of updates, which differs between submodules. The learner also clips, since the norm is that of
        the whole network.

        Args:
            submodule: its name in the network, the first part of the paths of its parameters.
        """
        decay = optax.add_decayed_weights(self.weight_decay, mask=decays)
        if self.name == "sgd":
            return optax.chain(optax.trace(self.momentum) if self.momentum else optax.identity())
        if self.name == "lion":
            return optax.chain(optax.scale_by_lion(self.beta1, self.beta2), decay)
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)
        if self.name == "adam":
            return optax.chain(adam)
        if self.name == "adamw":
            return optax.chain(adam, decay)
        return optax.chain(by_path(self._group, {"muon": muon(self.muon_momentum), "adamw": adam}, submodule), decay)

    def _group(self, path: str, leaf: jax.Array) -> str:
        """The transform of a parameter under `muon`: "muon" or "adamw"."""
        hidden = leaf.ndim in (2, 4) and min(leaf.shape[-2:]) > NARROW and not re.search(self.adamw_paths, path)
        return "muon" if hidden else "adamw"


def by_path(
    group: Callable[[str, jax.Array], str], transforms: Mapping[str, optax.GradientTransformation], submodule: str
) -> optax.GradientTransformation:
    """A transform that applies different transforms to groups of parameters of a submodule.

    Args:
        group: maps the path of a parameter, such as `blocks/0/mlp/up/kernel`, and the parameter to a name in
            `transforms`.
        transforms: by name.
        submodule: the first part of every path.
    """

    def labels(params: Any) -> Any:
        def label(keys: Any, leaf: jax.Array) -> str:
            return group("/".join([submodule, *(jax.tree_util.keystr((key,), simple=True) for key in keys)]), leaf)

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition(transforms, labels)


def muon(momentum: float) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for matrices and kernels: momentum, orthogonalised by five Newton-Schulz iterations.

    A matrix maps its first axis to its second. The kernel of a convolution, [h, w, in, out], is orthogonalised as the
    matrix [h w in, out], as in Jordan's CIFAR-10 speedrun; so is that of a transposed convolution. Matrices that are
    concatenated in one array (queries, keys and values; the gates of an LSTM) are orthogonalised together. Updates are
    multiplied by 0.2 sqrt(max(rows, columns)), which gives them the root mean square of AdamW's updates, so that both
    share a learning rate and a weight decay (Liu et al. 2025, "Muon is Scalable for LLM Training").
    """

    def dimensions(params: Any) -> Any:
        return jax.tree.map(lambda leaf: MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1), params)

    def scaled(updates: Any, params: Any) -> Any:
        def one(update: jax.Array) -> jax.Array:
            return 0.2 * math.sqrt(max(math.prod(update.shape[:-1]), update.shape[-1])) * update

        return jax.tree.map(one, updates)

    return optax.chain(
        scale_by_muon(beta=momentum, weight_dimension_numbers=dimensions),
        optax.stateless(scaled),
    )


def decays(params: Any) -> Any:
    """Mask of the leaves with weight decay: those with two or more axes."""
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)

"""Classes in diffusion models: labels in training, labels of samples, and classifier-free guidance.

Ho and Salimans 2022, "Classifier-free diffusion guidance". The network is trained with its label withheld from some
rows, and sampled with eps_u + g (eps_c - eps_u), where eps_u is its output without a class and eps_c with one. An
output is linear in (x_0, eps) at a given x_t, so guiding x_0, v or a velocity is the same.

A network with classes has one symbol more than there are classes; the last means no class.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.core.errors import UserError
from zoo.data.specs import ArraySpec

NO_CLASS = "none"
"""The label that asks for images without a class."""


@runtime_checkable
class ClassConditional(Protocol):
    """A family that can be trained with classes."""

    @property
    def conditional(self) -> bool | None:
        """Whether the network receives the class of an image; None: if the data has classes."""

    @property
    def label_dropout(self) -> float:
        """Probability of withholding a label in training."""


def known_classes(family: ClassConditional, spec: ArraySpec) -> tuple[str, ...]:
    """Names of the classes that the network knows; empty for an unconditional one."""
    return () if family.conditional is False else spec.classes


def count_symbols(family: ClassConditional, spec: ArraySpec) -> int:
    """Number of embedded classes, including "no class"; 0 for an unconditional network.

    Raises:
        UserError: the family is conditional and the images have no classes.
    """
    if family.conditional and not spec.classes:
        raise UserError("family.conditional is True, but the images have no classes: give --family.no-conditional")
    classes = known_classes(family, spec)
    return len(classes) + 1 if classes else 0


def guidable(family: ClassConditional, spec: ArraySpec) -> bool:
    """Whether the network was trained both with and without classes."""
    return bool(known_classes(family, spec)) and family.label_dropout > 0


def to_symbols(label: Int[Array, " b"], withheld: Bool[Array, " b"] | bool, symbols: int) -> Int[Array, " b"] | None:
    """Labels as the network takes them: no class where the label is withheld or -1; None for a network without classes.

    Args:
        label: class numbers; -1 where the image has no label.
        withheld: rows whose label the network must not see.
        symbols: number of classes, with "no class", or 0.
    """
    return jnp.where(withheld | (label < 0), symbols - 1, label) if symbols else None


def guided(
    net: Callable[..., jax.Array], symbol: Int[Array, " b"], guidance: Float[Array, ""], symbols: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The network's output under guidance, as a function (x_t [b h w c], t [b]) -> [b h w c].

    Args:
        net: (x_t, t, symbol) -> output, or (x_t, t) -> output without classes.
        symbol: the class of each row.
        guidance: scale g; 1 calls the network once, any other scale twice.
        symbols: number of classes, with "no class", or 0.
    """
    none = jnp.full_like(symbol, symbols - 1)

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        if not symbols:
            return net(x_t, t)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            weight = jnp.where(i == 0, guidance, 1 - guidance)
            return total + weight * net(x_t, t, jnp.where(i == 0, symbol, none))

        # A loop, so that the network is compiled once, and called once where g = 1.
        return jax.lax.fori_loop(0, jnp.where(guidance == 1, 1, 2), add, jnp.zeros_like(x_t))

    return predict


def check_guidance(family: ClassConditional, spec: ArraySpec, guidance: float) -> None:
    """Refuses guidance (any scale but 1) for a model that cannot be guided.

    Raises:
        UserError: the network was trained without classes, or never without one.
    """
    if guidance == 1:
        return
    if not known_classes(family, spec):
        raise UserError(f"guidance is {guidance:g}, but the model was trained without classes; only 1 is possible")
    if not guidable(family, spec):
        raise UserError(
            f"guidance is {guidance:g}, but the model was trained with label-dropout 0 and never without a class; only "
            "1 is possible"
        )


def symbols_of_samples(
    family: ClassConditional,
    spec: ArraySpec,
    label: str,
    guidance: float,
    default: Int[np.ndarray, " n"] | None,
) -> Callable[[np.ndarray], jax.Array]:
    """Maps the indices of samples [b] to their classes [b] as the network takes them.

    Args:
        family: the model family.
        spec: the images that it was trained on.
        label: the class of all samples, by name or number, or `NO_CLASS`; empty: `default`.
        guidance: scale of guidance, which needs a class.
        default: classes of the samples in turn; None: all classes in turn.

    Raises:
        UserError: the network does not know the class, or guidance is not possible.
    """
    count = len(known_classes(family, spec))
    check_guidance(family, spec, guidance)
    if not count:
        if label and label != NO_CLASS:
            raise UserError(f"label is {label!r}, but the model was trained without classes")
        return lambda rows: jnp.zeros(rows.shape, jnp.int32)
    if label == NO_CLASS:
        _check_no_class(family, spec, guidance)
        order = np.array([count])
    elif label:
        order = np.array([spec.class_number(label)])
    else:
        order = np.arange(count) if default is None else default
    return lambda rows: jnp.asarray(order[rows % len(order)], jnp.int32)


def _check_no_class(family: ClassConditional, spec: ArraySpec, guidance: float) -> None:
    if not guidable(family, spec):
        raise UserError(
            "the model was trained with label-dropout 0 and never without a class: give a class with --label"
        )
    if guidance != 1:
        raise UserError(f"guidance is {guidance:g}, and there is no class to guide to: give one with --label")

"""Classes and captions in diffusion models: in training, of samples, and classifier-free guidance.

Ho and Salimans 2022, "Classifier-free diffusion guidance". The network is trained with its label withheld from some
rows, and sampled with eps_u + g (eps_c - eps_u), where eps_u is its output without a class and eps_c with one. An
output is linear in (x_0, eps) at a given x_t, so guiding x_0, v or a velocity is the same.

A network with classes has one symbol more than there are classes; the last means no class. If images have captions,
the network reads these and not their classes, and "without" is the empty caption, or one that guidance leads away from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from zoo.core.errors import UserError
from zoo.core.family import Batch
from zoo.data.captions.prompts import read_prompt
from zoo.data.specs import ArraySpec, CaptionSpec
from zoo.nets.dit import DiT
from zoo.nets.unet import UNet

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


class Captions(NamedTuple):
    """Captions of samples, as `CaptionSpec.rows` returns them."""

    caption: Int[Array, "b t"]
    length: Int[Array, " b"]
    away: Int[Array, "b t"]
    """The captions that guidance leads away from."""
    away_length: Int[Array, " b"]


class Condition(NamedTuple):
    """What images show, row by row, as the network takes it."""

    symbol: Int[Array, " b"]
    """The class; ignored by a network without classes."""
    captions: Captions | None = None
    """The captions, for a network that reads them."""


Given = dict[str, Any]
"""What a network is given beside x_t and t, as named arguments: `symbol`, `context`, or nothing."""


def captions_of(family: ClassConditional, spec: ArraySpec) -> CaptionSpec | None:
    """Returns the spec of the captions that the network reads; None: it reads none."""
    return None if family.conditional is False else spec.caption


def caption_sizes(family: ClassConditional, spec: ArraySpec) -> tuple[int, int] | None:
    """Returns the tokens that captions can have and the positions of the longest; None: the network reads none."""
    caption = captions_of(family, spec)
    return None if caption is None else (caption.vocab_size, caption.length + 1)


def known_classes(family: ClassConditional, spec: ArraySpec) -> tuple[str, ...]:
    """Names of the classes that the network knows; empty for an unconditional one, or one that reads captions."""
    return () if family.conditional is False or captions_of(family, spec) else spec.classes


def count_symbols(family: ClassConditional, spec: ArraySpec) -> int:
    """Number of embedded classes, including "no class"; 0 for an unconditional network.

    Raises:
        UserError: the family is conditional and the images have no classes.
    """
    if family.conditional and not spec.classes and spec.caption is None:
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


def given_of_batch(net: UNet | DiT, batch: Batch, withheld: Bool[Array, " b"] | bool = False) -> Given:
    """What the network is given of a batch; a withheld class is "no class", and captions are withheld by the data."""
    if net.captions is not None:
        return {"context": net.read(batch["caption"], batch["caption_length"])}
    symbol = to_symbols(batch["label"], withheld, net.settings.symbols)
    return {} if symbol is None else {"symbol": symbol}


def given_of_samples(net: UNet | DiT, condition: Condition) -> tuple[Given, Given]:
    """What the network is given of samples, and the same without what guidance strengthens."""
    if net.captions is not None:
        assert condition.captions is not None, "a network that reads captions needs some"
        caption, length, away, away_length = condition.captions
        return {"context": net.read(caption, length)}, {"context": net.read(away, away_length)}
    if not net.settings.symbols:
        return {}, {}
    none = jnp.full_like(condition.symbol, net.settings.symbols - 1)
    return {"symbol": condition.symbol}, {"symbol": none}


def guided(
    net: Callable[..., jax.Array], given: Given, without: Given, guidance: Float[Array, ""]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The network's output under guidance, as a function (x_t [b h w c], t [b]) -> [b h w c].

    Args:
        net: (x_t, t, **given) -> output.
        given: what the network is given of each row.
        without: the same without what guidance strengthens.
        guidance: scale g; 1 and 0 call the network once, any other scale twice.
    """

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        if not given:
            return net(x_t, t)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            weight = jnp.where(i == 0, guidance, 1 - guidance)
            chosen = jax.tree.map(lambda with_, without_: jnp.where(i == 0, with_, without_), given, without)
            return total + weight * net(x_t, t, **chosen)

        # A loop, so that the network is compiled once, and called once where g is 1 or 0.
        begin, end = jnp.where(guidance == 0, 1, 0), jnp.where(guidance == 1, 1, 2)
        return jax.lax.fori_loop(begin, end, add, jnp.zeros_like(x_t))

    return predict


def check_guidance(family: ClassConditional, spec: ArraySpec, guidance: float) -> None:
    """Refuses guidance (any scale but 1) for a model that cannot be guided.

    Raises:
        UserError: the network was trained without classes, or never without one.
    """
    if guidance == 1 or captions_of(family, spec) is not None:
        return
    if not known_classes(family, spec):
        raise UserError(f"guidance is {guidance:g}, but the model was trained without classes; only 1 is possible")
    if not guidable(family, spec):
        raise UserError(
            f"guidance is {guidance:g}, but the model was trained with label-dropout 0 and never without a class; only "
            "1 is possible"
        )


def conditions_of_samples(
    family: ClassConditional,
    spec: ArraySpec,
    prompts: tuple[str, ...],
    negative: str,
    label: str,
    guidance: float,
    default: Int[np.ndarray, " n"] | None,
) -> Callable[[np.ndarray], Condition]:
    """Maps the indices of samples [b] to what they show.

    Args:
        family: the model family.
        spec: the images that it was trained on.
        prompts: captions; sample i has number i in turn. Empty: the empty caption.
        negative: the caption that guidance leads away from; empty: the empty one.
        label: the class of all samples, by name or number, or `NO_CLASS`; empty: `default`.
        guidance: scale of guidance, which needs a class.
        default: classes of the samples in turn; None: all classes in turn.

    Raises:
        UserError: the network does not know the class or reads no captions, or guidance is not possible.
    """
    caption = captions_of(family, spec)
    if caption is None:
        for name, value in (("prompt", prompts), ("negative_prompt", negative)):
            if value:
                raise UserError(f"{name} is {value!r}, but the model was trained without captions: leave it out")
    if caption is not None:
        if label and label != NO_CLASS:
            raise UserError(f"label is {label!r}, but the model reads captions: give a prompt")
        return _captions_of_samples(caption, prompts, negative)
    symbol_of = _symbols_of_samples(family, spec, label, guidance, default)
    return lambda rows: Condition(symbol_of(rows))


def _captions_of_samples(
    spec: CaptionSpec, prompts: tuple[str, ...], negative: str
) -> Callable[[np.ndarray], Condition]:
    empty = spec.rows([""])
    read = [read_prompt(spec, prompt) for prompt in prompts] or [empty]
    tokens, length = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    away, away_length = read_prompt(spec, negative) if negative else empty

    def of(rows: np.ndarray) -> Condition:
        place, none = rows % len(tokens), np.zeros(len(rows), np.int32)
        captions = Captions(*map(jnp.asarray, (tokens[place], length[place], away[none], away_length[none])))
        return Condition(jnp.asarray(none), captions)

    return of


def _symbols_of_samples(
    family: ClassConditional, spec: ArraySpec, label: str, guidance: float, default: Int[np.ndarray, " n"] | None
) -> Callable[[np.ndarray], jax.Array]:
    """Maps the indices of samples [b] to their classes [b] as the network takes them."""
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

"""Codecs: trained models that turn data into tokens or latents and back, for models of those.

A data set names a codec's run by its setting `codec`; the harness loads it, hands it to `Data.open`, and copies its
evaluation weights into `RUN/codec/`, so that a run needs no other run.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax

from zoo.core.data import Spec


@runtime_checkable
class Codec(Protocol):
    """A family whose evaluation networks are a codec."""

    def encode(self, state: Any, batch: dict[str, Any]) -> Any:
        """Codes of each row of a batch, [b ...]. Traced."""

    def decode(self, state: Any, codes: Any) -> Any:
        """Rows of data [b ...] from codes, as a batch of the codec's own data holds them. Traced."""


@dataclass(frozen=True, eq=False)
class Coder:
    """A trained codec.

    Attributes:
        family: its settings; implements `Codec`.
        spec: of the data that it encodes.
        state: its evaluation weights.
    """

    family: Any
    spec: Spec
    state: Any

    def encode(self, batch: dict[str, Any]) -> jax.Array:
        """Codes of each row of a batch; compiled once for each shape."""
        return _encode(self.family, self.state, batch)

    def decode(self, codes: Any) -> jax.Array:
        """Rows of data from codes; compiled once for each shape."""
        return _decode(self.family, self.state, codes)


@partial(jax.jit, static_argnames="family")
def _encode(family: Codec, state: Any, batch: dict[str, Any]) -> Any:
    return family.encode(state, batch)


@partial(jax.jit, static_argnames="family")
def _decode(family: Codec, state: Any, codes: Any) -> Any:
    return family.decode(state, codes)

"""Codecs: trained models that encode data as tokens or latents and decode them, for models of those codes.

A data set's setting `codec` names the codec's run. The harness loads it, passes it to `Data.open`, and copies its
evaluation weights into `RUN/codec/`, so that a run does not depend on another run's directory.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax

from zoo.core.data import Spec


@runtime_checkable
class Codec(Protocol):
    """A family whose evaluation networks are a codec."""

    @property
    def symbols(self) -> int:
        """Number of discrete codes, which are int32 from 0 to symbols - 1; 0 for real-valued codes."""

    def encode(self, state: Any, batch: dict[str, Any]) -> Any:
        """Codes of a batch, [b ...]. Traced."""

    def decode(self, state: Any, codes: Any) -> Any:
        """Decodes codes to rows [b ...], in the form of a batch of the codec's own data. Traced."""


@dataclass(frozen=True, eq=False)
class Coder:
    """A trained codec.

    Attributes:
        family: settings of the codec; implements `Codec`.
        spec: spec of the data that it encodes.
        state: evaluation weights.
    """

    family: Any
    spec: Spec
    state: Any

    def encode(self, batch: dict[str, Any]) -> jax.Array:
        """Codes of a batch [b ...]; compiled once for each shape."""
        return _encode(self.family, self.state, batch)

    def decode(self, codes: Any) -> jax.Array:
        """Decodes codes to rows of data [b ...]; compiled once for each shape."""
        return _decode(self.family, self.state, codes)


@partial(jax.jit, static_argnames="family")
def _encode(family: Codec, state: Any, batch: dict[str, Any]) -> Any:
    return family.encode(state, batch)


@partial(jax.jit, static_argnames="family")
def _decode(family: Codec, state: Any, codes: Any) -> Any:
    return family.decode(state, codes)

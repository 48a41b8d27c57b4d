"""Codecs: trained models that encode data as tokens or latents and decode them, for models of those codes.

A data set's setting `codec` names the codec's run. The harness loads it, passes it to `Data.open`, and copies its
evaluation weights into `RUN/codec/`, so that a run does not depend on another run's directory.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np


@runtime_checkable
class Codec(Protocol):
    """A family whose evaluation networks are a codec."""

    @property
    def symbols(self) -> int:
        """Number of discrete codes, which are int32 from 0 to symbols - 1; 0 for real-valued codes."""

    def encode(self, state: Any, batch: dict[str, Any]) -> Any:
        """Codes of a batch, [b ...]. Traced."""

    def latents(self, state: Any, batch: dict[str, Any]) -> Any:
        """Real-valued codes of a batch, [b ...] float32, which `decode` accepts too. Traced."""

    def decode(self, state: Any, codes: Any) -> Any:
        """Decodes codes to rows [b ...], in the form of a batch of the codec's own data. Traced."""


@dataclass(frozen=True, eq=False)
class Coder:
    """A trained codec.

    Attributes:
        family: settings of the codec; implements `Codec`.
        spec: spec of the images that it encodes.
        state: evaluation weights.
    """

    family: Any
    spec: Any
    state: Any

    @cached_property
    def checksum(self) -> str:
        """A hash of the settings and the weights."""
        digest = hashlib.sha256(repr((self.family, self.spec)).encode())
        for leaf in jax.tree.leaves(self.state):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of the code of one image."""
        return self._shape(self.family.encode)

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents of one image."""
        return self._shape(self.family.latents)

    def _shape(self, encode: Any) -> tuple[int, ...]:
        image = jax.ShapeDtypeStruct((1, self.spec.height, self.spec.width, self.spec.channels), jnp.uint8)
        batch = {"image": image, "row": jax.ShapeDtypeStruct((1,), jnp.int32)}
        return jax.eval_shape(encode, self.state, batch).shape[1:]

    def encode(self, batch: dict[str, Any]) -> jax.Array:
        """Codes of a batch [b ...]; compiled once for each shape."""
        return _encode(self.family, self.state, batch)

    def latents(self, batch: dict[str, Any]) -> jax.Array:
        """Real-valued codes of a batch [b ...]; compiled once for each shape."""
        return _latents(self.family, self.state, batch)

    def decode(self, codes: Any) -> jax.Array:
        """Decodes codes to rows of data [b ...]; compiled once for each shape."""
        return _decode(self.family, self.state, codes)


@partial(jax.jit, static_argnames="family")
def _encode(family: Codec, state: Any, batch: dict[str, Any]) -> Any:
    return family.encode(state, batch)


@partial(jax.jit, static_argnames="family")
def _latents(family: Codec, state: Any, batch: dict[str, Any]) -> Any:
    return family.latents(state, batch)


@partial(jax.jit, static_argnames="family")
def _decode(family: Codec, state: Any, codes: Any) -> Any:
    return family.decode(state, codes)

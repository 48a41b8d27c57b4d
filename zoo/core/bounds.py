"""Bounds of settings, declared in the annotations of their fields: `layers: Annotated[int, Ge(1)] = 4`.

`zoo.core.errors.require` checks them, and `--help` shows them.
"""

import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt


@dataclass(frozen=True)
class Why:
    """The reason for a bound or the meaning of its limit: `Annotated[int, Ge(2), Why("for a word and the end")]`."""

    reason: str


@dataclass(frozen=True)
class Bounds:
    """The bounds that the annotation of a field declares."""

    metadata: tuple[BaseMetadata, ...]
    reason: str = ""

    def hold(self, value: Any) -> bool:
        """Whether a value is within all bounds; None always is."""
        return value is None or all(_holds(bound, value) for bound in self.metadata)

    def __str__(self) -> str:
        """The bounds in words: "at least 1", "from 0 to below 1". An infinite upper bound is omitted."""
        low = next((bound for bound in self.metadata if isinstance(bound, Ge | Gt)), None)
        high = next((bound for bound in self.metadata if isinstance(bound, Le | Lt)), None)
        return _words(low, None if _infinite(high) else high) + (f" ({self.reason})" if self.reason else "")


def _holds(bound: BaseMetadata, value: Any) -> bool:
    match bound:
        case Ge(limit):
            return value >= limit
        case Gt(limit):
            return value > limit
        case Le(limit):
            return value <= limit
        case Lt(limit):
            return value < limit
    raise TypeError(f"{bound} is not one of Ge, Gt, Le and Lt")


def _infinite(bound: Any) -> bool:
    return isinstance(bound, Lt) and bound.lt == float("inf")


def _words(low: Any, high: Any) -> str:
    """A lower and an upper bound in words; either may be None."""
    if isinstance(low, Ge):
        match high:
            case None:
                return f"at least {low.ge}"
            case Le(limit):
                return f"from {low.ge} to {limit}"
            case Lt(limit):
                return f"from {low.ge} to below {limit}"
    above = [f"above {low.gt}"] if low is not None else []
    below = [] if high is None else [f"at most {high.le}" if isinstance(high, Le) else f"below {high.lt}"]
    return " and ".join(above + below)


@functools.cache
def bounds_of(kind: type) -> Mapping[str, Bounds]:
    """The bounds of a dataclass's fields by name; fields without bounds are omitted."""
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if typing.get_origin(hint) is Annotated:
            extras = typing.get_args(hint)[1:]
            metadata = tuple(extra for extra in extras if isinstance(extra, BaseMetadata))
            if metadata:
                found[name] = Bounds(metadata, next((extra.reason for extra in extras if isinstance(extra, Why)), ""))
    return found

"""Reads checkpoints of other libraries, and maps their tensors to a network's parameters and back."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from zoo.core.errors import UserError

ParamPath = tuple[str | int, ...]
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A parameter of the zoo and the checkpoint's tensors that it consists of, concatenated along its last axis."""

    path: ParamPath
    """The parameter's path in the network."""
    tensors: Mapping[str, tuple[int, ...]]
    """Names and shapes of the tensors in the checkpoint, in order."""
    transposed: bool = False
    """Whether the checkpoint has matrices as [out, in] and convolutions as [out, in, height, width]."""

    def join(self, tensors: Tensors) -> np.ndarray:
        """Returns the parameter, from a checkpoint's tensors."""
        parts = [tensors[name] for name in self.tensors]
        return np.concatenate([_outputs_last(part) if self.transposed else part for part in parts], axis=-1)

    def split(self, value: np.ndarray) -> Tensors:
        """Returns the checkpoint's tensors, from the parameter."""
        widths = [shape[0 if self.transposed else -1] for shape in self.tensors.values()]
        parts = np.split(value, np.cumsum(widths)[:-1], axis=-1)
        # safetensors writes an array's buffer in memory order.
        return {
            name: np.ascontiguousarray(_outputs_first(part) if self.transposed else part)
            for name, part in zip(self.tensors, parts, strict=True)
        }


def _outputs_last(weight: np.ndarray) -> np.ndarray:
    """[out, in] to [in, out], or [out, in, height, width] to [height, width, in, out]."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


def _outputs_first(weight: np.ndarray) -> np.ndarray:
    """The inverse of `_outputs_last`."""
    return weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T


class Settings:
    """The settings of a `config.json`, with defaults for missing ones."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def get(self, name: str, default: Any) -> Any:
        """Returns a setting, which must have the type of `default`; null counts as missing."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
            raise UserError(f"config.json has {name} = {value!r}; it must be of type {type(default).__name__}")
        return value

    def must(self, name: str, *right: Any) -> None:
        """Raises unless a setting is one of `right`, whose first value is its default."""
        if (value := self.get(name, right[0])) not in right:
            raise UserError(
                f"config.json has {name} = {value!r}, which has no equal here; "
                f"it must be {' or '.join(repr(choice) for choice in right)}"
            )


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}, so it is not a checkpoint that can be read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; it must hold a JSON object")
    return value


def load_tensors(path: Path) -> Tensors:
    """Reads the tensors of a safetensors file."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; weights that are pickled (.bin) are not read")
    try:
        return load_file(path)
    except Exception as error:  # safetensors' exception class is not public
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None


def check_free(folder: Path) -> None:
    """Raises unless a folder is missing or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not an empty folder; give another")


def fill(entries: Iterable[Entry], tensors: Tensors) -> dict[str, Any]:
    """Returns the parameter tree, float32, from a checkpoint's tensors.

    Raises:
        UserError: tensors are missing, unused, of another shape, or not floating-point.
    """
    entries = list(entries)
    shapes = {name: shape for entry in entries for name, shape in entry.tensors.items()}
    for problem, names in (
        ("lacks the tensors", shapes.keys() - tensors.keys()),
        ("has tensors that this architecture does not use:", tensors.keys() - shapes.keys()),
    ):
        if names:
            listed = ", ".join(sorted(names)[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            raise UserError(f"the checkpoint {problem} {listed}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(f"{name} has the shape {list(tensors[name].shape)}; config.json says {list(shape)}")
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise UserError(f"{name} is of type {tensors[name].dtype}; only floating-point weights can be read")
    params: dict[str, Any] = {}
    for entry in entries:
        *parents, last = entry.path
        node: Any = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(entry.join(tensors), jnp.float32)
    return params


def gather(entries: Iterable[Entry], params: dict[str, Any]) -> Tensors:
    """Returns a checkpoint's tensors from the parameter tree; biases that the network does not have are zero."""
    tensors: Tensors = {}
    for entry in entries:
        value = _at(params, entry.path)
        if value is None:
            value = np.zeros(sum(shape[0] for shape in entry.tensors.values()), np.float32)
        tensors |= entry.split(np.asarray(value))
    return tensors


def _at(tree: Any, path: tuple[str | int, ...]) -> Any:
    """The leaf at a path, or None if absent."""
    for name in path:
        if name not in tree:
            return None
        tree = tree[name]
    return tree

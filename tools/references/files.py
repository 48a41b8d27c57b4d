"""Writers of references: arrays as safetensors, lists as JSON with the versions of the libraries."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_arrays(path: Path, arrays: dict[str, np.ndarray], versions: dict[str, str] | None = None) -> None:
    """Writes arrays as safetensors, made contiguous first, since safetensors writes their memory unchanged.

    Versions of libraries are written as the file's metadata.
    """
    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path, versions)


def write_json(path: Path, lists: dict[str, list]) -> None:
    """Writes an object of lists, one entry a line, with the versions of the libraries."""
    versions = {name: version(name) for name in ("torch", "transformers", "diffusers", "numpy")}
    fields = [f'"versions": {json.dumps(versions)}']
    for name, entries in lists.items():
        lines = ",\n".join(json.dumps(entry) for entry in entries)
        fields.append(f'"{name}": [\n{lines}\n]')
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")

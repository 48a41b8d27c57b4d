"""Reads a state dict saved by `torch.save` before PyTorch 1.6, without PyTorch and without executing its code.

Such a file, for example FID's Inception weights, is five pickles in a row (a magic number, a version, properties of the
machine, the tensors and the list of their storages), followed by the length and the elements of every storage. As in
`torch_file.py`, a pickle may refer only to what rebuilds tensors and dicts.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zoo.core.errors import UserError
from zoo.interop.torch_file import TensorUnpickler

MAGIC = 0x1950A86A20F9469CFC6C


def is_legacy(path: str | Path) -> bool:
    """Whether a file begins with the magic number."""
    with Path(path).open("rb") as file:
        return file.read(16).startswith(pickle.dumps(MAGIC, protocol=2)[:13])


def read_legacy(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict.

    Raises:
        UserError: the file is damaged, or contains anything but named tensors.
    """
    with Path(path).open("rb") as file:
        try:
            for _ in range(3):
                _Unpickler(file, path).load()
            unpickler = _Unpickler(file, path)
            tensors = unpickler.load()
            for key in _Unpickler(file, path).load():
                storage = unpickler.storages[key]
                count = int.from_bytes(file.read(8), "little")
                if count != len(storage):
                    raise ValueError("a storage has another length than its tensors say")
                storage[:] = np.frombuffer(file.read(storage.nbytes), storage.dtype)
        except (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged, or holds more than named tensors ({error})") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        raise UserError(f"{path} holds something else than named tensors; save the state_dict() alone")
    return dict(tensors)


class _Unpickler(TensorUnpickler):
    """Creates storages of zeros, which are filled when their elements are read."""

    def __init__(self, file: BinaryIO, path: str | Path) -> None:
        super().__init__(file, path)
        self.storages = dict[str, np.ndarray]()
        self.size = Path(path).stat().st_size

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, count, view = pid
        if view is not None or not 0 <= count * dtype.itemsize <= self.size:
            raise ValueError("a storage is larger than the file, or a part of another")
        return self.storages.setdefault(key, np.zeros(count, dtype))

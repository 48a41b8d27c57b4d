"""Reads the tensors in files of PyTorch's `torch.save`, without PyTorch and without executing code from the file.

Such a file is a zip archive of a pickle with the nested structure, and a raw little-endian buffer for every storage.
The pickle may refer only to the classes and functions that rebuild tensors and dicts. Any other name is refused before
it is looked up, so an untrusted file cannot run code.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from zoo.core.errors import UserError

DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads named tensors from a file of `safetensors` or `torch.save`; keys of nested dicts are joined by dots.

    Values other than dicts and tensors are ignored.

    Raises:
        UserError: there is no such file, it is neither, it is damaged, or it contains objects of other classes.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give weights as .safetensors or as torch.save writes them")
    if zipfile.is_zipfile(path):
        return dict(_tensors("", _read_archive(path)))
    try:
        return load_file(path)
    except (SafetensorError, ValueError):
        raise UserError(
            f"{path} is neither a .safetensors file nor an archive of torch.save (PyTorch 1.6 or later)"
        ) from None


def _tensors(name: str, value: Any) -> Any:
    """Yields the names and tensors in nested dicts."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, np.ndarray):
        yield name, np.array(value)  # a copy: the storage is read-only and may be shared


def _read_archive(path: Path) -> Any:
    """Returns the object that was saved, with tensors as arrays."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive, but not one of torch.save: it has no single data.pkl")
        try:
            with archive.open(pickles[0]) as file:
                return _Unpickler(file, archive, pickles[0].removesuffix("data.pkl"), path).load()
        except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged, or holds more than tensors in dicts ({error})") from None


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors and dicts and refuses every other name; subclasses load the storages."""

    def __init__(self, file: Any, path: str | Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, requires_grad, hooks: tensor
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        raise UserError(f"{self.path} holds a {module}.{name}, which is not loaded; save the state_dict() alone")


class _Unpickler(TensorUnpickler):
    """Loads storages from the archive."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str, path: Path) -> None:
        super().__init__(file, path)
        self.archive, self.folder = archive, folder

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, count = pid
        data = self.archive.read(f"{self.folder}data/{key}")
        return np.frombuffer(data, dtype.newbyteorder("<") if dtype.kind != "V" else dtype, count)


def _view(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """Returns a tensor as a view of its storage; strides are in elements."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [step * storage.itemsize for step in stride])

"""Inception-v3 with random weights computes what torch-fidelity's does."""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from zoo.metrics.inception import make_inception


def random_tensor(seed: int, name: str, shape: list[int]) -> np.ndarray:
    """As in `tools/make_references.py`."""
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return 1 + 0.2 * np.tanh(noise) if name.endswith(("bn.weight", "running_var")) else 0.2 * noise


def random_weights(folder: Path) -> dict[str, np.ndarray]:
    shapes = json.loads((folder / "shapes.json").read_text())
    seed = int(load_file(folder / "expected.safetensors")["seed"])
    return {name: random_tensor(seed, name, shape) for name, shape in shapes.items()}


def check_inception(folder: Path) -> None:
    """Features and logits of images are those of torch-fidelity."""
    expected = load_file(folder / "expected.safetensors")
    features, logits = make_inception(random_weights(folder), "weights")(expected["images"])
    np.testing.assert_allclose(features, expected["features"], atol=2e-5)
    np.testing.assert_allclose(logits, expected["logits"], atol=5e-5)

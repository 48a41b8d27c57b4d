"""Loads feature extractors from files of weights and from runs, and writes the network of a run to a file.

Two kinds of files are supported: networks of this project, of which a classifier of MNIST's digits is embedded, and
FID's Inception-v3, whose weights the user must provide. `python -m zoo.harness.extractors RUN FILE` writes the network
of a run to such a file; its family must implement `zoo.core.extractor.Extracts`.
"""

import functools
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from zoo.core.errors import UserError, run_script
from zoo.core.extractor import Extractor, Extracts, NoExtractorError
from zoo.core.family import Family, Setup, State
from zoo.core.learner import Learner
from zoo.core.optimizer import Optimizer
from zoo.data.images.image_set import kind_of
from zoo.data.specs import ImageSpec
from zoo.harness.checkpoint import flatten, unflatten
from zoo.harness.config import from_json, to_json
from zoo.harness.formats import FORMAT, upgrade
from zoo.harness.rundir import RunDir
from zoo.harness.trained import Trained, inference_state, load_run
from zoo.interop.torch_file import read_tensors
from zoo.interop.torch_legacy import is_legacy, read_legacy
from zoo.metrics import inception

MNIST = Path(__file__).parents[1] / "metrics" / "weights" / "mnist_classifier.safetensors"
TRACE = 100.0
"""The trace of the covariance of a network's features over its test images. The scale of the features, which is stored
with the weights, is set to give this trace, so that scores by different networks are comparable in size."""
MARGIN = 4
"""Maximum excess of an image's height and width, in pixels, over those of a network's training images: MNIST has 28
pixels, and is often padded to 32."""


def load_extractor(name: str, spec: ImageSpec) -> Extractor:
    """The extractor that a setting names, for images of a spec; see `zoo.core.extractor.LoadExtractor`.

    Args:
        name: "mnist"; a file of weights; a run directory; or "auto", the embedded one if it fits.
        spec: spec of the images.

    Raises:
        NoExtractorError: `name` is "auto" and the embedded extractor does not fit.
        UserError: there is no such file, its weights are not of a known network, the run's family does not implement
            `Extracts`, or the network accepts other images.
    """
    if name == "auto" and not (spec.channels == 1 and spec.height == spec.width and spec.height in (28, 32)):
        raise NoExtractorError(
            "extractor is 'auto', which stands for the embedded classifier of grey images of 28 or 32 pixels, and "
            f"these are {kind_of(spec)}: name a file of Inception-v3 weights, or of a classifier that you have "
            "trained, by --scoring.extractor (--extractor in evaluate.py)"
        )
    extractor = _load(str(MNIST) if name in ("auto", "mnist") else name)
    if isinstance(extractor.takes, ImageSpec):
        check_kind(extractor.takes, spec)
    return extractor


@functools.cache
def _load(path: str) -> Extractor:
    file = Path(path)
    if RunDir(file).has_checkpoints():
        trained = load_run(file)
        return replace(Features.of_run(trained).extractor(file.name, ""), model=trained.model)
    if not file.is_file():
        raise UserError(f"extractor is {path!r}; it must be auto, mnist, a file of weights, or a run directory")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    about = _metadata(file)
    if about is not None:
        family = from_json(upgrade(json.loads(about["family"]), str(path)), Family, f"{path}: family")
        spec = from_json(upgrade(json.loads(about["spec"]), str(path)), ImageSpec, f"{path}: spec")
        features = Features(_extracting(family, path), spec, load_file(path), float(about["scale"]))
        return features.extractor(file.stem.replace("_", " "), digest)
    tensors = read_legacy(path) if is_legacy(path) else read_tensors(path)
    return Extractor("Inception-v3", digest, inception.make_inception(tensors, path), batch_size=32)


def _metadata(file: Path) -> dict[str, str] | None:
    """The metadata that `write_extractor` stored in a file; None for files of other programs."""
    try:
        with safe_open(file, "numpy") as opened:
            about = opened.metadata() or {}
    except SafetensorError:
        return None
    return about if {"family", "spec", "scale"} <= about.keys() else None


def _extracting(family: Any, path: Any) -> Any:
    """Returns the family if it implements `Extracts`; raises `UserError` otherwise."""
    if not isinstance(family, Extracts):
        raise UserError(
            f"{path} is a run of {type(family).__name__}, which extracts no features; give a run of a classifier "
            "or of another family that does"
        )
    return family


@dataclass(frozen=True, eq=False)
class Features:
    """A network of this project as an extractor.

    Attributes:
        family: settings of the network; implements `Extracts`.
        spec: spec of the images that it was trained on.
        weights: evaluation weights by dotted name, in half precision, as in the files.
        scale: factor that multiplies the features.
    """

    family: Any
    spec: ImageSpec
    weights: dict[str, np.ndarray]
    scale: float

    @classmethod
    def of_run(cls, trained: Trained) -> "Features":
        """The network of a run; the scale gives the features of its test images the trace `TRACE`.

        Raises:
            UserError: its family does not implement `Extracts`.
        """
        family, spec = _extracting(trained.model.family, trained.path), trained.model.spec
        learner = _learner(trained.model.state)
        leaves = flatten(learner.eval_params | learner.frozen) | flatten(learner.eval_memory)
        unscaled = cls(family, spec, {name: np.asarray(x, np.float16) for name, x in leaves.items()}, 1.0)
        features, _ = unscaled.extractor("unscaled", "")(_test_images(trained)[0])
        scale = (TRACE / features.astype(np.float64).var(0, ddof=1).sum()) ** 0.5
        return cls(family, spec, unscaled.weights, float(scale))

    def extractor(self, name: str, digest: str) -> Extractor:
        """The network as an extractor; an empty digest is replaced by that of the weights."""
        state, scale = self._state(), self.scale
        if not digest:
            whole = b"".join(name.encode() + x.tobytes() for name, x in sorted(self.weights.items()))
            digest = hashlib.sha256(whole).hexdigest()[:12]

        @jax.jit
        def extract(state: State, images: UInt8[Array, "b h w c"]) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
            features, logits = self.family.extract(state, images)
            return scale * features, logits

        def apply(images: UInt8[np.ndarray, "b h w c"]) -> tuple[Array, Array]:
            return extract(state, centre(images, self.spec))

        return Extractor(name, digest, apply, self.spec.classes, takes=self.spec)

    def _state(self) -> State:
        """The family's state with these weights, in float32."""
        setup = Setup(Optimizer(), total_steps=1, batch_size=1)
        shapes = inference_state(jax.eval_shape(lambda: self.family.init(self.spec, setup, jax.random.key(0))))
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        weights = {name: jnp.asarray(x, jnp.float32) for name, x in self.weights.items()}
        learner = _learner(empty)
        wanted = flatten(learner.params | learner.frozen) | flatten(learner.memory)
        if wrong := [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]:
            raise UserError(f"an extractor's weights lack {wrong[0]} of shape {wanted[wrong[0]].shape}")
        params, frozen, memory = (unflatten(tree, weights) for tree in (learner.params, learner.frozen, learner.memory))
        filled = replace(learner.with_params(params, memory), frozen=frozen)
        return jax.tree.map(
            lambda node: filled if isinstance(node, Learner) else node,
            empty,
            is_leaf=lambda node: isinstance(node, Learner),
        )


def _learner(state: State) -> Learner:
    """The only `Learner` of a state."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Learner))
    (learner,) = (node for node in nodes if isinstance(node, Learner))
    return learner


def _test_images(trained: Trained) -> tuple[UInt8[np.ndarray, "n h w c"], np.ndarray]:
    """Images and labels of the run's test split."""
    data = trained.held_out("test")
    batches = [data.held_out_at(index) for index in range(data.held_out_batches)]
    valid = np.concatenate([batch["valid"] for batch in batches])
    image, label = (np.concatenate([batch[name] for batch in batches])[valid] for name in ("image", "label"))
    return image, label


def centre(images: UInt8[np.ndarray, "b h w c"], spec: ImageSpec) -> UInt8[np.ndarray, "b h2 w2 c"]:
    """The centre crop, of the size of `spec`, of images at most `MARGIN` pixels larger.

    Raises:
        UserError: they have another size or number of channels.
    """
    _, height, width, channels = images.shape
    check_kind(spec, ImageSpec(height, width, channels))
    top, left = height - spec.height, width - spec.width
    return images[:, top // 2 : top // 2 + spec.height, left // 2 : left // 2 + spec.width]


def check_kind(takes: ImageSpec, spec: ImageSpec) -> None:
    """Checks that images have the size that a network accepts, or are at most `MARGIN` pixels larger.

    Raises:
        UserError: they have another size or number of channels.
    """
    larger = (spec.height - takes.height, spec.width - takes.width)
    if spec.channels != takes.channels or not all(0 <= pixels <= MARGIN for pixels in larger):
        raise UserError(
            f"the extractor has features of images that are {kind_of(takes)}, and these are {kind_of(spec)}: give "
            "--extractor a file of Inception-v3 weights"
        )


def write_extractor(trained: Trained, path: Path) -> dict[str, str]:
    """Writes a run's evaluation weights, in half precision, to a safetensors file that `load_extractor` reads.

    Returns:
        The file's metadata: family, spec, scale, data, steps and, for images with classes, held-out accuracy.

    Raises:
        UserError: the run's family does not implement `Extracts`.
    """
    features = Features.of_run(trained)
    about = {
        "family": json.dumps({"format": FORMAT} | to_json(features.family)),
        "spec": json.dumps({"format": FORMAT} | to_json(features.spec)),
        "scale": repr(features.scale),
        "data": trained.held_out("test").describe(),
        "steps": str(trained.model.step),
    }
    image, label = _test_images(trained)
    logits = features.extractor("", "")(image).logits
    if logits.shape[1]:
        about["held_out_accuracy"] = f"{(logits.argmax(1) == label)[label >= 0].mean():.4f}"
    save_file(features.weights, path, metadata=about)
    return about


def main() -> None:
    """Writes the network of a run to a file and prints the metadata."""
    if len(sys.argv) != 3:
        raise UserError("usage: python -m zoo.harness.extractors RUN FILE.safetensors")
    about = write_extractor(load_run(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    run_script(main)

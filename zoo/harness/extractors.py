"""Feature extractors: what turns images into the vectors that generative models are compared by.

An extractor is a name, a hash and a function; a notebook makes its own by

    Extractor("mine", "v1", lambda images: (features, logits))        uint8 [b h w c] -> [b d], [b classes]

Two kinds come from files: classifiers of this project, of which one for MNIST is embedded, and FID's Inception-v3,
whose weights the user has to give. `python -m zoo.harness.extractors RUN FILE` writes a trained classifier as one.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from zoo.classifier import Classifier, ConvNet
from zoo.core.errors import UserError, run_script
from zoo.core.family import Family
from zoo.data.images.pixels import from_pixels
from zoo.data.specs import ImageSpec
from zoo.harness.config import from_json, to_json
from zoo.harness.formats import FORMAT, upgrade
from zoo.harness.platform import exact_float32
from zoo.harness.trained import Trained, load_run
from zoo.interop.torch_file import read_tensors
from zoo.interop.torch_legacy import is_legacy, read_legacy
from zoo.metrics import inception

MNIST = Path(__file__).parents[1] / "metrics" / "weights" / "mnist_classifier.safetensors"
TRACE = 100.0
"""The trace of the covariance that a classifier's features have over its held-out images, by a scale that is kept with
its weights: so figures from different classifiers are of one size."""
MARGIN = 4
"""How many pixels larger than its own an image may be that a classifier takes: MNIST is 28 pixels, padded often 32."""


class Extracted(NamedTuple):
    """What an extractor makes of n images."""

    features: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n classes"]


@dataclass(frozen=True, eq=False)
class Extractor:
    """Turns images into feature vectors and class logits.

    Attributes:
        name: what it is.
        hash: tells weights of one name apart; the first 12 digits of the SHA-256 of their file.
        apply: maps images uint8 [b h w c] to features [b d] and logits [b classes].
        classes: their names, where shares of each class are worth telling.
        batch_size: images given to `apply` at once, at most.
        takes: which images, give or take `MARGIN`; None: all.
    """

    name: str
    hash: str
    apply: Callable[[Any], tuple[Any, Any]]
    classes: tuple[str, ...] = ()
    batch_size: int = 256
    takes: ImageSpec | None = None

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Extracted:
        """Features and logits of images, a batch at a time; the last is filled up, so that it compiles no more."""
        size = min(self.batch_size, 1 << max(len(images) - 1, 0).bit_length())
        parts = []
        for begin in range(0, len(images), size):
            some = images[begin : begin + size]
            filled = np.concatenate([some, some[-1:].repeat(size - len(some), axis=0)])
            with exact_float32():
                parts.append([np.asarray(array)[: len(some)] for array in self.apply(filled)])
        features, logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Extracted(features, logits)


class NoExtractorError(UserError):
    """No extractor was named, and none that comes with the package fits the images."""


def load_extractor(name: str, spec: ImageSpec) -> Extractor:
    """The extractor that a setting names, for images of a kind.

    Args:
        name: "mnist"; a file of weights; or "auto", the embedded one that fits.
        spec: of the images.

    Raises:
        NoExtractorError: nothing embedded fits.
        UserError: there is no such file, it holds no weights that are known here, or those of a classifier of other
            images.
    """
    if name == "auto" and not (spec.channels == 1 and spec.height == spec.width and spec.height in (28, 32)):
        raise NoExtractorError(
            "extractor is 'auto', which stands for the embedded classifier of grey images of 28 or 32 pixels, and "
            f"these are {_kind(spec)}: name a file of Inception-v3 weights, or of a classifier that you have trained, "
            "by --scoring.extractor (--extractor in evaluate.py)"
        )
    extractor = _load(str(MNIST) if name in ("auto", "mnist") else name)
    if extractor.takes:
        check_kind(extractor.takes, spec)
    return extractor


@functools.cache
def _load(path: str) -> Extractor:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"extractor is {path!r}; it must be auto, mnist, or a file of weights")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    about = _metadata(file)
    if about is not None:
        family = from_json(upgrade(json.loads(about["family"]), str(path)), Family, f"{path}: family")
        spec = from_json(upgrade(json.loads(about["spec"]), str(path)), ImageSpec, f"{path}: spec")
        apply = make_classifier(family, spec, load_file(path), float(about["scale"]))
        return Extractor(file.stem.replace("_", " "), digest, apply, spec.classes, takes=spec)
    tensors = read_legacy(path) if is_legacy(path) else read_tensors(path)
    return Extractor("Inception-v3", digest, inception.make_inception(tensors, path), batch_size=32)


def _metadata(file: Path) -> dict[str, str] | None:
    """What `write_classifier` said of a file; None where another program wrote it."""
    try:
        with safe_open(file, "numpy") as opened:
            about = opened.metadata() or {}
    except SafetensorError:
        return None
    return about if {"family", "spec", "scale"} <= about.keys() else None


def make_classifier(
    family: Classifier, spec: ImageSpec, params: dict[str, np.ndarray], scale: float
) -> Callable[[UInt8[np.ndarray, "b h w c"]], tuple[Array, Array]]:
    """A classifier's `apply`: its penultimate layer times `scale`, and its logits.

    Args:
        family: its settings.
        spec: of the images that it was trained on.
        params: by dotted names.
        scale: of the features.
    """
    net = nnx.eval_shape(lambda: ConvNet(family, spec, nnx.Rngs(0)))
    graphdef = nnx.split(net)[0]
    tree = unflatten_dict({name: jnp.asarray(x, jnp.float32) for name, x in params.items()}, sep=".")

    @jax.jit
    def classify(tree: Any, images: UInt8[Array, "b h w c"]) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        features, logits = nnx.merge(graphdef, tree)(from_pixels(images))
        return scale * features, logits

    def apply(images: UInt8[np.ndarray, "b h w c"]) -> tuple[Array, Array]:
        return classify(tree, centre(images, spec))

    return apply


def centre(images: UInt8[np.ndarray, "b h w c"], spec: ImageSpec) -> UInt8[np.ndarray, "b h2 w2 c"]:
    """The middle of images that are at most `MARGIN` pixels larger than `spec`.

    Raises:
        UserError: they are of another size or number of channels.
    """
    _, height, width, channels = images.shape
    check_kind(spec, ImageSpec(height, width, channels))
    top, left = height - spec.height, width - spec.width
    return images[:, top // 2 : top // 2 + spec.height, left // 2 : left // 2 + spec.width]


def check_kind(takes: ImageSpec, spec: ImageSpec) -> None:
    """Checks that images are of the kind that a classifier takes, or at most `MARGIN` pixels larger.

    Raises:
        UserError: they are of another size or number of channels.
    """
    larger = (spec.height - takes.height, spec.width - takes.width)
    if spec.channels != takes.channels or not all(0 <= pixels <= MARGIN for pixels in larger):
        raise UserError(
            f"the extractor is a classifier of images that are {_kind(takes)}, and these are {_kind(spec)}: give "
            "--extractor a file of Inception-v3 weights"
        )


def _kind(spec: ImageSpec) -> str:
    return f"{spec.height}x{spec.width} in {'grey' if spec.channels == 1 else 'colour'}"


def write_classifier(trained: Trained, path: Path) -> dict[str, str]:
    """Writes a trained classifier's evaluation weights, in half precision, with what it takes to use them.

    Returns:
        What is told of them in the file.

    Raises:
        UserError: the run is not of a classifier.
    """
    family, spec = trained.model.family, trained.model.spec
    if not isinstance(family, Classifier):
        raise UserError(f"{trained.path} is a run of {type(family).__name__}; it must be one of Classifier")
    params = flatten_dict(trained.model.state.net.eval_params, sep=".")
    params = {name: np.asarray(x, np.float16) for name, x in params.items()}
    extractor = Extractor("unscaled", "", make_classifier(family, spec, params, 1.0))
    data = trained.held_out("test")
    batches = [data.held_out_at(index) for index in range(data.held_out_batches)]
    valid = np.concatenate([batch["valid"] for batch in batches])
    image, label = (np.concatenate([batch[name] for batch in batches])[valid] for name in ("image", "label"))
    features, logits = extractor(image)
    scale = (TRACE / features.astype(np.float64).var(0, ddof=1).sum()) ** 0.5
    about = {
        "family": json.dumps({"format": FORMAT} | to_json(family)),
        "spec": json.dumps({"format": FORMAT} | to_json(spec)),
        "scale": repr(float(scale)),
        "data": data.describe(),
        "steps": str(trained.model.step),
        "held_out_accuracy": f"{(logits.argmax(1) == label)[label >= 0].mean():.4f}",
    }
    save_file(params, path, metadata=about)
    return about


def main() -> None:
    """Writes the classifier of a run to a file."""
    if len(sys.argv) != 3:
        raise UserError("usage: python -m zoo.harness.extractors RUN FILE.safetensors")
    about = write_classifier(load_run(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(about, indent=2))


if __name__ == "__main__":
    run_script(main)

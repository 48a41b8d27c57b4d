"""The work of `benchmarks.gpu`: networks and random batches for each family, and the operations of a step."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from zoo.core.family import Family, Setup
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.specs import BlockSpec, ImageSpec, LineSpec, PairSpec, SegmentSpec
from zoo.data.tokenizers import Tokenizer

ADAM = Optimizer(learning_rate=1e-3, schedule="constant", beta2=0.99, weight_decay=0.1, clip_norm=1.0)
SGD = Optimizer(name="sgd", learning_rate=0.05, momentum=0.0, schedule="constant", clip_norm=1.0)
FAMILIES = (
    "transformer_lm", "lstm_lm", "seq2seq_lstm", "seq2seq_transformer", "text_vae", "masked_lm", "image_vae", "dcgan",
    "ddpm",
)  # fmt: skip
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Peak dense bfloat16 FLOP/s of data sheets (of SXM if there are several variants), by a part of the device's name."""


@dataclass(frozen=True)
class Symbols(Tokenizer):
    """A tokenizer of `count` symbols without meaning; the last is the end of text."""

    count: int
    kind = "symbols"

    @property
    def pieces(self) -> tuple[bytes, ...]:
        return (b"",) * self.count

    @property
    def end_of_text(self) -> int:
        return self.count - 1

    def encode(self, text: str) -> np.ndarray:
        """The first symbol, once for each character."""
        return np.zeros(len(text), np.int32)


@dataclass(frozen=True)
class Work:
    """A family, the spec of its data, and the batch size."""

    family: Family
    spec: Any
    batch_size: int

    @property
    def units(self) -> int:
        """Tokens or images in a step."""
        return self.batch_size * (self.family.length or 1)

    def batch(self, seed: int) -> dict[str, np.ndarray]:
        """Random rows of full length."""
        random, b, spec = np.random.default_rng(seed), self.batch_size, self.spec
        t = self.family.length or 0
        batch = {"row": np.arange(b, dtype=np.int32), "valid": np.ones(b, bool), "continues": np.ones(b, bool)}

        def tokens(length: int, below: int) -> np.ndarray:
            return random.integers(0, below, (b, length), dtype=np.int32)

        def full(length: int) -> np.ndarray:
            return np.full(b, length, np.int32)

        if isinstance(spec, ImageSpec):
            shape = (b, spec.height, spec.width, spec.channels)
            image = random.integers(0, 256, shape, dtype=np.uint8)
            return batch | {"image": image, "label": random.integers(0, max(len(spec.classes), 1), b, dtype=np.int32)}
        if isinstance(spec, PairSpec):
            source, target = tokens(t, spec.source.vocab_size - 1), tokens(t + 1, spec.target.vocab_size - 1)
            return batch | {
                "source": source, "source_length": full(t), "target": target, "target_length": full(t + 1),
            }  # fmt: skip
        if isinstance(spec, SegmentSpec):
            halves = np.tile(np.arange(t) >= t // 2, (b, 1)).astype(np.int32)
            follows = random.integers(0, 2, b, dtype=np.int32)
            return batch | {
                "tokens": tokens(t, spec.tokenizer.vocab_size - 1), "length": full(t), "segment": halves,
                "follows": follows,
            }  # fmt: skip
        return batch | {"tokens": tokens(t + 1, spec.tokenizer.vocab_size - 1), "length": full(t + 1)}


class Program:
    """A `Work` compiled as by train.py."""

    def __init__(self, work: Work, optimizer: Optimizer, precision: str, parallel: Parallel | None = None):
        self.work = work
        self.strategy = (parallel or Parallel(devices=1)).start(work.batch_size)
        setup = Setup(optimizer, total_steps=1000, batch_size=work.batch_size, precision=precision)
        self.make = lambda key: work.family.init(work.spec, setup, key)
        self.state = self.strategy.init(self.make, jax.random.key(0))
        root = jax.random.key(1)
        self.step = self.strategy.compile_step(
            lambda state, batch, n: work.family.step(state, batch, n, jax.random.fold_in(root, n))
        )

    def advance(self, first: int, steps: int) -> list[dict[str, Any]]:
        """Runs `steps` steps from number `first`; returns their metrics."""
        told = []
        for n in range(first, first + steps):
            self.state, metrics = self.step(self.state, self.strategy.put(self.work.batch(n)), np.int32(n))
            told.append(jax.device_get(metrics))
        return told

    def params(self) -> list[np.ndarray]:
        """All trained parameters, on the host."""
        state = jax.device_get(self.strategy.gather(self.state))
        return [np.asarray(leaf) for part in state if hasattr(part, "params") for leaf in jax.tree.leaves(part.params)]


def make_work(name: str, tiny: bool) -> Work:
    """The work of a family: sizes of its paper's smaller models, or tiny ones for checks.

    Families are imported here, since those of images need more packages than the others.
    """
    if name in ("image_vae", "dcgan", "ddpm"):
        return _images(name, tiny)
    from zoo.lstm_lm import LSTMLM
    from zoo.masked_lm import MaskedLM
    from zoo.seq2seq import Seq2Seq
    from zoo.text_vae import TextVAE
    from zoo.transformer_lm import TransformerLM

    words, few = Symbols(10000), Symbols(50)
    size: dict[str, Any] = {"layers": 1, "width": 16, "context": 8} if tiny else {}
    heads = {"heads": 2} if tiny else {"heads": 8}
    some = few if tiny else words
    segments = SegmentSpec(some, some.count, some.count + 1, some.count + 2)
    make: dict[str, Any] = {
        "transformer_lm": lambda: (
            TransformerLM(**{"layers": 6, "width": 512, "context": 512} | size | heads), BlockSpec(some), 32,
        ),
        "lstm_lm": lambda: (
            LSTMLM(**{"layers": 2, "width": 640, "embedding": 640, "context": 64} | size), BlockSpec(some), 64,
        ),
        "seq2seq_lstm": lambda: (
            Seq2Seq(**{"layers": 2, "width": 512, "embedding": 256, "context": 64} | size), PairSpec(some, some), 64,
        ),
        "seq2seq_transformer": lambda: (
            Seq2Seq(network="transformer", **{"layers": 6, "width": 512, "context": 64} | size | heads),
            PairSpec(some, some), 64,
        ),
        "text_vae": lambda: (
            TextVAE(**{"width": 512, "layers": 1, "context": 48} | size | ({"latent": 4} if tiny else {})),
            LineSpec(some), 64,
        ),
        "masked_lm": lambda: (
            MaskedLM(**{"layers": 6, "width": 512, "context": 512} | size | heads), segments, 32,
        ),
    }  # fmt: skip
    family, spec, batch_size = make[name]()
    return Work(family, spec, 8 if tiny else batch_size)


def _images(name: str, tiny: bool) -> Work:
    from zoo.dcgan import DCGAN
    from zoo.ddpm import DDPM
    from zoo.image_vae import ImageVAE

    if name == "image_vae":
        return Work(ImageVAE(width=16, latent=4) if tiny else ImageVAE(), ImageSpec(28, 28, 1), 8 if tiny else 512)
    if name == "dcgan":
        family = DCGAN(latent=4, width=8) if tiny else DCGAN()
        return Work(family, ImageSpec(32, 32, 3) if tiny else ImageSpec(64, 64, 3), 8 if tiny else 128)
    unet = DDPM(channels=(128, 256, 256), layers=2, attention=(16,), head_width=64, conditional=False)
    if tiny:
        unet = replace(unet, channels=(8, 16), layers=1, attention=(4,), head_width=8)
    return Work(unet, ImageSpec(8, 8, 3) if tiny else ImageSpec(32, 32, 3), 8 if tiny else 64)


def gpt2(tiny: bool) -> Work:
    """GPT-2 124M at context 1,024, with the settings of the PyTorch peer: no biases, tied embeddings, exact GELU."""
    from zoo.transformer_lm import TransformerLM

    if tiny:
        return Work(TransformerLM(layers=1, heads=2, width=16, context=16), BlockSpec(Symbols(1100)), 2)
    return Work(TransformerLM(layers=12, heads=12, width=768, context=1024), BlockSpec(Symbols(50257)), 32)


def gpt_flops(layers: int, width: int, context: int, vocabulary: int, tokens: int) -> float:
    """Floating-point operations of a training step of a GPT; the backward pass counts twice the forward pass.

    The forward pass of a token has 2 operations for each weight of a matrix (12 width^2 in a layer, width x vocabulary
    in the head), and 4 width for each of the (context + 1) / 2 keys that it attends to on average in each layer.
    Recomputation and masked positions are not counted, so the figure is below nanoGPT's, which counts masked positions.
    """
    matrices = layers * 12 * width**2 + width * vocabulary
    attention = layers * 4 * width * (context + 1) / 2
    return 3.0 * tokens * (2 * matrices + attention)


def peak_flops(device_kind: str) -> float | None:
    """The data sheet's dense bfloat16 FLOP/s of a device; None if it is not in `PEAKS`."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)

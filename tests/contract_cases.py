"""What the contract's tests run over: every config, shrunk, and the harness taken apart."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from paths import ROOT

from zoo.core.data import Data
from zoo.core.family import Family, Model, Setup
from zoo.core.learner import Learner
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.captions import CaptionedTokens
from zoo.data.images import ImageTokens
from zoo.harness.checkpoint import flatten
from zoo.harness.codecs import as_coder, codec_of
from zoo.harness.config import Run
from zoo.harness.flags import load_config
from zoo.harness.loop import fit
from zoo.harness.trained import Trained, inference_state, open_data

PATHS = sorted((ROOT / "configs").glob("*.py"))
COSTLY = ("ddpm", "flow_matching", "mean_flow")
"""Configs whose step takes ten seconds to compile: of them `make test` has what one compiled step is enough for."""

LIGHT = {
    "captioned_digits_autoregressive", "captioned_digits_flow", "captioned_digits_latent", "captioned_digits_masked",
    "captioned_digits_vqvae", "emoji_flow",
    "latent_flow", "mnist_patches_lstm", "mnist_patches_masked_diffusion", "mnist_patches_transformer",
    "mnist_pixels_transformer", "vqvae_masked_diffusion", "vqvae_transformer",
}  # fmt: skip
"""Configs that differ from another of their family in data or sizes only: these load, step, learn, score and sample."""


def configs(slow: Callable[[Path], bool] = lambda path: False, paths: Sequence[Path] = PATHS) -> list[Any]:
    """Configs as parameters, each in a worker of its own; some marked as slow."""
    marks = {path: [pytest.mark.xdist_group(path.stem), *[pytest.mark.slow] * slow(path)] for path in paths}
    return [pytest.param(path, id=path.stem, marks=marks[path]) for path in paths]


def first_configs() -> set[Path]:
    """The config of each family with the shortest name."""
    families: dict[type, Path] = {}
    for path in sorted(PATHS, key=lambda path: len(path.stem)):
        families.setdefault(type(load_config(str(path)).family), path)
    return set(families.values())


FIRST = first_configs()
FULL = [path for path in PATHS if path.stem not in LIGHT]
in_make_test_once_a_family = pytest.mark.parametrize("run", configs(slow=lambda path: path not in FIRST), indirect=True)
"""In `make test` for one config of each family, in `make test-all` for all."""
in_full = pytest.mark.parametrize("run", configs(paths=FULL), indirect=True)


once_a_family = pytest.mark.parametrize(
    "run", configs(slow=lambda path: path.stem in COSTLY or path not in FIRST, paths=FULL), indirect=True
)
"""In `make test` for one config of each family, except the costly; in `make test-all` for all but the light ones."""


def for_some(*names: str) -> Any:
    """In `make test` for the named configs, in `make test-all` for all but the light ones."""
    return pytest.mark.parametrize("run", configs(slow=lambda path: path.stem not in names, paths=FULL), indirect=True)


strategies = pytest.mark.parametrize("strategy", ["jit", pytest.param("pmap", marks=pytest.mark.slow)])

# The field's standard names for sizes, with a size that compiles in a moment.
SMALL: dict[str, Any] = {
    "layers": 1, "heads": 2, "kv_heads": 1, "width": 16, "mlp_width": 32, "embedding": 8, "context": 8,
    "channels": (8, 16), "latent": 4, "hidden": 16,
}  # fmt: skip
# Clipped, since a loss in nats an image is hundreds of times one in nats a token; `grad_norm` is told before clipping.
SGD = Optimizer(name="sgd", learning_rate=0.05, momentum=0.0, schedule="constant", clip_norm=1.0)

FREE_BITS = {"positions": 0.003, "images": 0.1}
"""Nats, about what the units of the shrunk autoencoders of texts and images have before the first step."""


def shrink(family: Family) -> Family:
    """The same settings with small sizes; a size that is smaller already, or 0, which means "derived", stays."""
    sizes = {f.name: getattr(family, f.name) for f in dataclasses.fields(family) if f.name in SMALL}
    return replace(family, **{name: min(size, SMALL[name]) for name, size in sizes.items()})


@functools.cache
def excerpt(data: Data, folder: Path) -> Data:
    """A small piece of the data, written once for all tests of a config."""
    return data.excerpt(folder)


@functools.cache
def codec(data: Any, folder: Path) -> str:
    """The run directory of the codec that the data names: its config, shrunk and trained for one step."""
    run = load_config(str(ROOT / "configs" / f"{Path(data.codec).name}.py"))
    same = ("path", "size", "digit_size", "held_out_scenes")
    images = replace(run.data, **{name: getattr(data, name) for name in same if hasattr(data, name)})
    return str(
        fit(
            replace(
                run, family=shrink(run.family), data=images, parallel=Parallel(devices=1), batch_size=8, steps=1,
                eval_every=0, score_every=0, sample_every=0, rundir=str(folder / "codec"),
            )
        ).path
    )  # fmt: skip


def small_run(path: Path, basetemp: Path) -> Run:
    """A config's run, shrunk, with a piece of its data."""
    run = load_config(str(path))
    # One folder for all tests of a config, which share what is trained there.
    folder = basetemp / path.stem
    folder.mkdir(exist_ok=True)
    few = {"samples": 8} if getattr(run.scoring, "samples", 0) else {}
    family: Any = shrink(run.family)
    if isinstance(run.data, ImageTokens | CaptionedTokens):
        family = replace(family, context=64)  # 8x8 pixels, or a caption and 4x4 codes
    data: Any = excerpt(run.data, folder)
    if data.codec:
        data = replace(data, codec=codec(data, folder))
    return replace(
        run, family=family, data=data, batch_size=8, steps=6, eval_batches=2,
        eval_every=3, save_every=3, log_every=1, score_every=0, sample_every=0, precision="float32",
        rundir=str(folder / "run"), scoring=replace(run.scoring, **few),
    )  # fmt: skip


class Bench:
    """A run taken apart: what the harness does, by hand."""

    def __init__(self, run: Run):
        self.family: Family = run.family
        self.codec = as_coder(codec_of(run.data))
        self.data = open_data(run.data, self.codec, length=run.family.length, batch_size=run.batch_size, seed=run.seed)
        self.strategy, first, self.step = prepared(
            run.family, self.data.spec, run.optimizer, run.parallel, run.batch_size, run.precision
        )
        self.state = self.strategy.place(first)

    def advance(self, steps: int, same_batch: bool = False) -> list[dict[str, Any]]:
        told, batch = [], self.strategy.put(self.data.batch_at(0))
        for n in range(steps):
            if n > 0 and not same_batch:
                batch = self.strategy.put(self.data.batch_at(n))
            self.state, metrics = self.step(self.state, batch, np.int32(n))
            told.append(jax.device_get(metrics))
        return told

    def params(self) -> dict[str, np.ndarray]:
        state = jax.device_get(self.strategy.gather(self.state))
        return flatten([learner.params for learner in learners_of(state)])

    def model(self) -> Model:
        lean = self.strategy.replicate(inference_state(self.strategy.gather(self.state)))
        return Model(self.family, self.data.spec, lean, 0, lambda: self.data, codec=self.codec)


@functools.lru_cache(maxsize=12)
def prepared(
    family: Family, spec: Any, optimizer: Optimizer, parallel: Parallel, batch_size: int, precision: str
) -> tuple:
    """Strategy, first state on the host, and compiled step, which a config's tests share."""
    strategy, setup = parallel.start(batch_size, optimizer.microbatches), Setup(optimizer, 6, batch_size, precision)
    state = strategy.init(lambda key: family.init(spec, setup, key), jax.random.key(0))
    step = strategy.compile_step(
        lambda state, batch, n: family.step(state, batch, n, jax.random.fold_in(jax.random.key(1), n))
    )
    return strategy, jax.device_get(strategy.gather(state)), step


def assert_close(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 2e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=tolerance, err_msg=name)


def noisy(run: Run) -> Run:
    """With dropout where the family has it, since noise is what goes wrong across devices and in going on."""
    rate = getattr(run.family, "dropout", None)
    return run if rate is None or rate > 0 else replace(run, family=replace(run.family, dropout=0.2))


def with_noise(run: Run) -> Run:
    """Noisy, and with plain gradient descent, whose steps differ as little as the gradients do."""
    return replace(noisy(run), optimizer=SGD)


def quick(run: Run) -> Run:
    """With a learning rate that shows after a few steps, on one device."""
    optimizer = replace(run.optimizer, learning_rate=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.0)
    return replace(run, parallel=Parallel(devices=1), optimizer=optimizer)


def for_fit(run: Run, strategy: str = "jit") -> Run:
    """With noise, on two devices and with the config's own optimizer: what `fit` is given, to compile once."""
    parallel, rundir = Parallel(strategy, devices=2), f"{run.rundir}-{strategy}"
    return replace(noisy(run), parallel=parallel, rundir=rundir)


FITTED: dict[str, Trained] = {}


def fitted(run: Run) -> Trained:
    """A run of `for_fit`, trained once for all tests that look at it; they leave its directory as it is."""
    if run.rundir not in FITTED:
        FITTED[run.rundir] = fit(run)
    return FITTED[run.rundir]


def gradients(run: Run) -> dict[str, np.ndarray]:
    """The gradient of the first step, leaf by leaf in float64, from what Adam remembers of it."""
    optimizer = Optimizer(name="adam", learning_rate=1e-9, schedule="constant")
    bench = Bench(replace(run, optimizer=optimizer, parallel=Parallel(devices=1)))
    bench.advance(1)
    found = [
        {name: optax.tree.get(part, "mu") for name, part in learner.opt_state.items()}
        for learner in learners_of(jax.device_get(bench.state))
    ]
    return {name: leaf.astype(np.float64) / (1 - optimizer.beta1) for name, leaf in flatten(found).items()}


def learners_of(state: Any) -> list[Learner]:
    return [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Learner)) if isinstance(x, Learner)]

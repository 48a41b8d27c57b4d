"""What every family must keep, run over every config, shrunk. A new config is found without an edit here."""

import dataclasses
import functools
import shutil
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
from zoo.data.images import ImageTokens
from zoo.data.text.documents import Documents
from zoo.harness.checkpoint import flatten
from zoo.harness.codecs import as_coder, codec_of
from zoo.harness.config import Run, from_json, to_json
from zoo.harness.flags import load_config
from zoo.harness.initial import first_state
from zoo.harness.loop import fit
from zoo.harness.trained import Trained, inference_state, load_run, open_data

PATHS = sorted((ROOT / "configs").glob("*.py"))
COSTLY = ("ddpm", "flow_matching", "mean_flow")
"""Configs whose step takes ten seconds to compile: of them `make test` has what one compiled step is enough for."""


SOME = ("image_vae", "lstm_lm", "text_vae", "transformer_lm")
"""Configs that compile fast, of each kind of network (convolutions, recurrence, attention), and one with free bits."""

LIGHT = {
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
"""In `make test` for one config of each family that is not costly, in `make test-all` for all but the light ones."""
for_some = pytest.mark.parametrize("run", configs(slow=lambda path: path.stem not in SOME, paths=FULL), indirect=True)
"""In `make test` for the configs in `SOME`, in `make test-all` for all but the light ones."""
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
    images = replace(run.data, path=data.path, size=data.size)
    return str(
        fit(
            replace(
                run, family=shrink(run.family), data=images, parallel=Parallel(devices=1), batch_size=8, steps=1,
                eval_every=0, score_every=0, sample_every=0, rundir=str(folder / "codec"),
            )
        ).path
    )  # fmt: skip


@pytest.fixture(params=configs())
def run(request, tmp_path_factory) -> Run:
    run = load_config(str(request.param))
    # One folder for all tests of a config, which share what is trained there.
    folder = tmp_path_factory.getbasetemp() / request.param.stem
    folder.mkdir(exist_ok=True)
    few = {"samples": 8} if getattr(run.scoring, "samples", 0) else {}
    family: Any = shrink(run.family)
    if isinstance(run.data, ImageTokens):
        family = replace(family, context=64)  # 8x8 pixels
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
        told = []
        for n in range(steps):
            batch = self.strategy.put(self.data.batch_at(0 if same_batch else n))
            self.state, metrics = self.step(self.state, batch, np.int32(n))
            told.append(jax.device_get(metrics))
        return told

    def params(self) -> dict[str, np.ndarray]:
        state = jax.device_get(self.strategy.gather(self.state))
        return flatten([learner.params for learner in _learners(state)])

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


def with_noise(run: Run) -> Run:
    """With dropout where the family has it, since noise is what goes wrong across devices."""
    noisy = {"dropout": 0.2} if hasattr(run.family, "dropout") else {}
    return replace(run, family=replace(run.family, **noisy), optimizer=SGD)


def quick(run: Run) -> Run:
    """With a learning rate that shows after a few steps, on one device."""
    optimizer = replace(run.optimizer, learning_rate=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.0)
    return replace(run, parallel=Parallel(devices=1), optimizer=optimizer)


def for_fit(run: Run, strategy: str = "jit") -> Run:
    """With noise, on two devices and with the config's own optimizer: what `fit` is given, to compile once."""
    parallel, rundir = Parallel(strategy, devices=2), f"{run.rundir}-{strategy}"
    return replace(with_noise(run), optimizer=run.optimizer, parallel=parallel, rundir=rundir)


FITTED: dict[str, Trained] = {}


def fitted(run: Run) -> Trained:
    """A run of `for_fit`, trained once for all tests that look at it; they leave its directory as it is."""
    if run.rundir not in FITTED:
        FITTED[run.rundir] = fit(run)
    return FITTED[run.rundir]


def test_settings_survive_json(run):
    assert from_json(to_json(run), Run, "run") == run


def test_a_config_says_its_command_and_loads(run, request):
    path = request.node.callspec.params["run"]
    assert f"python train.py configs/{path.name}" in path.read_text()


def test_steps_are_finite_keep_the_tree_and_compile_once(run):
    bench = Bench(quick(run))
    before = jax.tree.map(lambda x: (x.shape, x.dtype), bench.state)
    told = bench.advance(1)
    with _no_compilation():
        told += bench.advance(3)
    after = jax.tree.map(lambda x: (x.shape, x.dtype), bench.state)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.leaves(before) == jax.tree.leaves(after)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bench.state))
    assert all(np.isfinite(value) for metrics in told for value in metrics.values())
    assert "loss" in told[0]


@once_a_family
def test_a_step_is_a_function_of_its_arguments(run):
    run = with_noise(replace(run, parallel=Parallel(devices=1)))
    one, two, other = Bench(run), Bench(run), Bench(run)
    one.advance(3)
    two.advance(3)
    jax.tree.map(np.testing.assert_array_equal, one.params(), two.params())
    batch = other.strategy.put(other.data.batch_at(7))
    other.state, _ = other.step(other.state, batch, np.int32(0))
    other.advance(2)
    assert any((one.params()[name] != value).any() for name, value in other.params().items())


@once_a_family
def test_one_batch_can_be_learned_by_heart(run):
    bench = Bench(quick(run))
    if run.family.monitor[0] != "loss":
        pytest.skip("players against each other have no loss that falls")
    told = bench.advance(200, same_batch=True)
    # The mean of some steps: objectives with noise of their own never stand still.
    assert np.mean([metrics["loss"] for metrics in told[-10:]]) < 0.4 * told[0]["loss"]


def gradients(run: Run) -> dict[str, np.ndarray]:
    """The gradient of the first step, leaf by leaf in float64, from what Adam remembers of it."""
    optimizer = Optimizer(name="adam", learning_rate=1e-9, schedule="constant")
    bench = Bench(replace(run, optimizer=optimizer, parallel=Parallel(devices=1)))
    bench.advance(1)
    found = [
        {name: optax.tree.get(part, "mu") for name, part in learner.opt_state.items()}
        for learner in _learners(jax.device_get(bench.state))
    ]
    return {name: leaf.astype(np.float64) / (1 - optimizer.beta1) for name, leaf in flatten(found).items()}


@for_some
def test_gradients_in_bfloat16_are_those_of_float32(run):
    """Leaf by leaf within 15 % of the leaf's norm, or 0.1 % of the whole gradient's where a leaf has less than that.

    What is left are activations near a kink of ReLU or of a maximum that round to its other side: 12 % in DCGAN's
    generator, which normalises batches of 8. With bfloat16 sums over as many positions, vectors were off by 30 to 90 %.
    """
    if isinstance(run.data, Documents):
        run = replace(run, family=replace(run.family, context=512))
    exact, half = gradients(run), gradients(replace(run, precision="bfloat16"))
    assert exact.keys() == half.keys()
    assert any((exact[name] != half[name]).any() for name in exact)
    whole = np.sqrt(sum((leaf**2).sum() for leaf in exact.values()))
    for name, leaf in exact.items():
        assert np.linalg.norm(half[name] - leaf) < 0.15 * np.linalg.norm(leaf) + 0.001 * whole, name


@pytest.mark.slow
@in_full
def test_200_steps_in_bfloat16_end_near_those_in_float32(run):
    """The mean loss of the last 20 steps within 5 % of the first step's loss."""
    if run.family.monitor[0] == "loss":
        run = quick(run)
    run = replace(run, parallel=Parallel(devices=1))  # players against each other: at the config's own, lower rate
    told, told_half = (Bench(replace(run, precision=p)).advance(200, same_batch=True) for p in ("float32", "bfloat16"))
    loss, half = (np.array([metrics["loss"] for metrics in each]) for each in (told, told_half))
    assert abs(half[-20:].mean() - loss[-20:].mean()) < 0.05 * loss[0]


@in_make_test_once_a_family
def test_every_network_learns(run):
    bench = Bench(quick(run))
    before = jax.device_get(_learners(bench.state))
    bench.advance(2)
    after = jax.device_get(_learners(bench.state))
    for old, new in zip(before, after, strict=True):
        moved = flatten(jax.tree.map(lambda a, b: bool((a != b).any()), old.params, new.params))
        assert any(moved.values())
        assert sum(moved.values()) >= 0.8 * len(moved), [name for name, value in moved.items() if not value]


@for_some
@pytest.mark.parametrize("strategy", [pytest.param("jit", marks=pytest.mark.slow), "pmap"])
def test_devices_do_not_change_the_result(run, strategy):
    check_devices(run, Parallel(strategy, 8))


@for_some
def test_sharded_parameters_do_not_change_the_result(run):
    check_devices(run, Parallel("jit", 8, fsdp=4))


def check_devices(run: Run, parallel: Parallel) -> None:
    alone, spread = (Bench(with_noise(replace(run, parallel=p))) for p in (Parallel(devices=1), parallel))
    told, told_spread = alone.advance(4), spread.advance(4)
    assert_close(alone.params(), spread.params())
    for name in told[-1]:
        np.testing.assert_allclose(told[-1][name], told_spread[-1][name], rtol=1e-4, err_msg=name)


@for_some
@strategies
def test_microbatches_do_not_change_the_result(run, strategy):
    run = with_noise(run)
    if hasattr(run.family, "free_bits"):  # with a floor that lies between the microbatches' own means
        run = replace(run, family=replace(run.family, free_bits=FREE_BITS[run.family.unit], kl_warmup_steps=0))
    full = Bench(replace(run, parallel=Parallel(devices=1)))
    run = replace(run, parallel=Parallel(strategy, devices=2))
    parts = Bench(replace(run, optimizer=replace(run.optimizer, microbatches=4)))
    told, told_parts = full.advance(3), parts.advance(3)
    if run.family.couples_rows:
        with pytest.raises(AssertionError):  # declared where it is so, and nowhere else
            assert_close(full.params(), parts.params())
        return
    assert_close(full.params(), parts.params())
    for name in told[-1]:
        np.testing.assert_allclose(told[-1][name], told_parts[-1][name], rtol=1e-4, err_msg=name)


@once_a_family
@strategies
def test_a_resumed_run_is_the_uninterrupted_one(run, strategy):
    run = for_fit(run, strategy)
    uninterrupted = fitted(run)
    halfway = replace(run, rundir=run.rundir + "-resumed")
    shutil.copytree(run.rundir, halfway.rundir)
    for path in Path(halfway.rundir).glob("checkpoints/*6"):
        shutil.rmtree(path)
    resumed = fit(halfway)
    assert resumed.model.step == 6
    a, b = (flatten(trained.model.state) for trained in (uninterrupted, resumed))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)

    def logged(path: str) -> list[str]:
        lines = (Path(path) / "metrics.jsonl").read_text().splitlines()
        return [line.split(f', "{run.family.unit}_per_second"')[0].split(', "seconds"')[0] for line in lines]

    assert logged(run.rundir) == logged(halfway.rundir)


@in_make_test_once_a_family
def test_scores_count_every_held_out_row_once(run):
    bench = Bench(quick(run))
    evaluate = jax.jit(lambda state, batch: bench.family.evaluate(state, batch, jax.random.key(2)))
    batch = bench.strategy.put(bench.data.held_out_at(0))
    rows = evaluate(bench.state, batch)
    assert "loss" in rows
    order = np.array([3, 1, 0, 2, 7, 6, 5, 4])
    shuffled = evaluate(bench.state, jax.tree.map(lambda x: x[order], batch))
    for name, pair in rows.items():
        for values, moved in zip(pair, shuffled[name], strict=True):
            assert values.shape == (8,)
            np.testing.assert_allclose(np.asarray(values)[order], moved, rtol=1e-5, atol=1e-5, err_msg=name)
    last = bench.data.held_out_at(bench.data.held_out_batches - 1)
    assert last["valid"].any()


def test_samples_are_a_function_of_the_key_and_compile_once(run):
    bench = Bench(quick(run))
    request = bench.family.Request(n=2)
    first = bench.family.sample(bench.model(), request, jax.random.key(3))
    assert len(first) == 2
    assert first[0] != first[1]
    with _no_compilation():
        again = bench.family.sample(bench.model(), request, jax.random.key(3))
        other = bench.family.sample(bench.model(), request, jax.random.key(4))
    assert again == first
    assert other != first


class _no_compilation:  # noqa: N801
    """Fails where something compiles inside."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, name, *_args, **_kwargs):
        self.count += name == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._heard)
        assert self.count == 0


@once_a_family
def test_a_trained_run_loads_samples_and_scores(run):
    run = for_fit(run)
    trained = fitted(run)
    loaded = load_run(run.rundir)
    assert loaded.model.step == 6
    jax.tree.map(np.testing.assert_array_equal, loaded.model.state, trained.model.state)
    scores = loaded.evaluate()
    assert scores == trained.evaluate()
    assert np.isfinite([value for value in scores.values() if not isinstance(value, str)]).all()
    assert len(loaded.sample(n=2)) == 2
    state = loaded.model.state
    learners = [name for name, part in zip(state._fields, state, strict=True) if isinstance(part, Learner)]
    assert all(loaded.net(name) is not None for name in learners)


@for_some
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_that_starts_from_another_samples_and_scores_as_it_does(run, ema_decay):
    run = for_fit(run)
    source = fitted(run)
    tuned = replace(run, optimizer=replace(SGD, ema_decay=ema_decay), seed=1, parallel=Parallel(devices=1))
    strategy = tuned.parallel.start(tuned.batch_size)
    state = first_state(tuned, source.model.spec, strategy, load_run(run.rundir))
    started = Trained(run, replace(source.model, state=inference_state(state)), source.path)
    assert started.sample(seed=5, n=2) == source.sample(seed=5, n=2)
    assert started.evaluate() == source.evaluate()


def _learners(state: Any) -> list[Learner]:
    return [x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Learner)) if isinstance(x, Learner)]

"""Optimizers: Muon and Lion against their equations, and which parameters Muon leaves to AdamW."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from paths import ROOT

from zoo.core.errors import UserError
from zoo.core.family import Setup
from zoo.core.learner import Learner
from zoo.core.optimizer import Optimizer, by_path
from zoo.core.parallel import Parallel
from zoo.data.sources import read_plays
from zoo.harness.checkpoint import flatten
from zoo.harness.config import read_json, to_json
from zoo.harness.flags import load_config, parse_flags
from zoo.harness.loop import fit
from zoo.nn.conv import Conv
from zoo.nn.dense import Dense
from zoo.nn.embedding import Embedding


class Net(nnx.Module):
    """One parameter of each kind that Muon tells apart."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = Embedding(9, 8, scale=1.0, rngs=rngs)
        self.conv = Conv(8, 6, 3, rngs=rngs)
        self.mlp = nnx.Dict(
            up=Dense(8, 12, bias=True, scale=0.3, rngs=rngs), down=Dense(12, 8, bias=True, scale=0.3, rngs=rngs)
        )
        self.head = Dense(8, 10, bias=True, scale=0.3, rngs=rngs)
        self.classes = Dense(8, 2, bias=True, scale=0.3, rngs=rngs)

    def __call__(self, symbols):
        x = self.embedding(symbols)
        hidden = x + self.mlp["down"](jax.nn.gelu(self.mlp["up"](x)))
        image = self.conv(x.reshape(-1, 2, 2, 8))
        return self.head(hidden).sum() + (self.classes(hidden) ** 2).sum() + (image**2).sum()


def loss(net, batch, key):
    rows = jax.vmap(lambda row: net(row[None]))(batch["x"])
    return (rows**2).sum(), jnp.float32(len(rows)), {}


def make(**settings) -> Learner:
    return Learner.create(Net(nnx.Rngs(0)), Setup(Optimizer(schedule="constant", **settings), 10, 8))


@pytest.fixture
def batch():
    return {"x": jnp.asarray(np.random.default_rng(0).integers(0, 9, size=(8, 4)), jnp.int32)}


def gradients(learner: Learner, batch) -> dict[str, np.ndarray]:
    def mean(params):
        total, weight, _ = loss(learner._merge(params, learner.memory), batch, None)
        return total / weight

    return {name: np.asarray(g, np.float64) for name, g in flatten(jax.grad(mean)(learner.params)).items()}


def moves(old: Learner, new: Learner) -> dict[str, np.ndarray]:
    before, after = flatten(old.params), flatten(new.params)
    return {name: np.asarray(before[name], np.float64) - np.asarray(after[name], np.float64) for name in before}


HIDDEN = {"mlp.up.kernel", "mlp.down.kernel", "conv.kernel"}


def test_muon_orthogonalises_hidden_matrices_and_adam_moves_the_rest(batch):
    rate = 1e-3
    learner = make(name="muon", learning_rate=rate)
    moved = moves(learner, learner.descend(loss, batch, 0, jax.random.key(0))[0])
    for name, gradient in gradients(learner, batch).items():
        if name not in HIDDEN:  # Adam's first update is the gradient's sign
            np.testing.assert_allclose(moved[name], rate * np.sign(gradient), atol=1e-2 * rate, err_msg=name)
            continue
        # The first momentum is along the gradient U S V^T, whose kernels are matrices [h w in, out].
        matrix, move = (x.reshape(-1, x.shape[-1]) for x in (gradient, moved[name]))
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        update = move / (rate * 0.2 * np.sqrt(max(matrix.shape)))
        inner = u.T @ update @ v.T
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=2e-3, err_msg=name)
        np.testing.assert_allclose(update, u @ inner @ v, atol=2e-3, err_msg=name)
        # Jordan's quintic 3.4445 s - 4.7750 s^3 + 2.0315 s^5, five times, brings the singular values near 1.
        s = s / np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        np.testing.assert_allclose(np.diag(inner), s, atol=5e-3, err_msg=name)
        assert 0.6 < s[0] < 1.3


def test_muon_takes_nesterovs_momentum(batch):
    first, rate = make(name="muon", learning_rate=1e-2, muon_momentum=0.8), 1e-2
    second, _ = first.descend(loss, batch, 0, jax.random.key(0))
    third, _ = second.descend(loss, batch, 1, jax.random.key(0))
    name = "mlp.up.kernel"
    g1, g2 = (gradients(learner, batch)[name] for learner in (first, second))
    # Averages divided by what their weights sum to; Nesterov's looks one step ahead (as in optax and Dozat 2016).
    average = 0.2 * (0.8 * g1 + g2)
    momentum = 0.8 * average / (1 - 0.8**3) + 0.2 * g2 / (1 - 0.8**2)
    u, _, v = np.linalg.svd(momentum, full_matrices=False)
    update = moves(second, third)[name] / (rate * 0.2 * np.sqrt(12))
    inner = u.T @ update @ v.T
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=5e-3)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (Optimizer.adamw_paths, HIDDEN),
        (r"^mlp/up/", HIDDEN - {"mlp.up.kernel"} | {"head.kernel", "embedding.table"}),
        (".", set()),
    ],
)
def test_which_parameters_muon_takes_is_a_pattern_of_their_paths(pattern, expected):
    state = flatten(make(name="muon", adamw_paths=pattern).opt_state)
    taken = {name.replace(".0.inner_states.muon.inner_state.0.mu", "") for name in state if ".muon." in name}
    assert {name for name in taken if name.endswith(("kernel", "table", "bias"))} == expected


def test_weight_decay_under_muon_acts_on_all_matrices(batch):
    plain, decayed = (make(name="muon", learning_rate=0.1, weight_decay=decay) for decay in (0.0, 0.5))
    moved, decaying = (moves(m, m.descend(loss, batch, 0, jax.random.key(0))[0]) for m in (plain, decayed))
    for name, value in flatten(plain.params).items():
        expected = 0.1 * 0.5 * np.asarray(value) * (value.ndim >= 2)
        np.testing.assert_allclose(decaying[name] - moved[name], expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_each_submodule_counts_its_own_updates(batch, name):
    learner, _ = make(name=name).descend(loss, batch, 0, jax.random.key(0), only=("mlp",))
    learner, _ = learner.descend(loss, batch, 1, jax.random.key(0))
    counts = {path: int(count) for path, count in flatten(learner.opt_state).items() if path.endswith("count")}
    assert counts
    assert all(count == (2 if path.startswith("mlp") else 1) for path, count in counts.items())


def test_lion_follows_the_sign_of_its_interpolated_momentum(batch):
    """Chen et al. 2023, algorithm 2: u = sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g."""
    rate, decay, b1, b2 = 1e-3, 0.1, 0.6, 0.9
    learner = make(name="lion", learning_rate=rate, weight_decay=decay, beta1=b1, beta2=b2)
    momentum = dict.fromkeys(flatten(learner.params), 0.0)
    for n in range(3):
        gradient, params = gradients(learner, batch), flatten(learner.params)
        new, _ = learner.descend(loss, batch, n, jax.random.key(0))
        for name, moved in moves(learner, new).items():
            mixed = b1 * momentum[name] + (1 - b1) * gradient[name]
            expected = rate * (np.sign(mixed) + decay * np.asarray(params[name]) * (params[name].ndim >= 2))
            clear = np.abs(mixed) > 1e-4 * np.abs(mixed).max()  # elsewhere rounding decides the sign
            np.testing.assert_allclose(moved[clear], expected[clear], atol=3e-7, err_msg=name)
            momentum[name] = b2 * momentum[name] + (1 - b2) * gradient[name]
        learner = new


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [Parallel("jit", 8), Parallel("jit", 8, fsdp=4), Parallel("pmap", 8)])
def test_devices_and_microbatches_do_not_change_muon(batch, parallel):
    def step(state, batch, number):
        return state.descend(loss, batch, number, jax.random.key(0))

    def trained(parallel: Parallel, **settings):
        strategy = parallel.start(8)
        state = strategy.init(lambda key: make(name="muon", weight_decay=0.1, **settings), jax.random.key(0))
        compiled = strategy.compile_step(step)
        for n in range(3):
            state, _ = compiled(state, strategy.put(jax.device_get(batch)), np.int32(n))
        return flatten(jax.device_get(strategy.gather(state)).params)

    alone = trained(Parallel(devices=1))
    for other in (trained(parallel), trained(Parallel(devices=1), microbatches=4)):
        for name, value in alone.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@dataclass(frozen=True)
class WithoutBiases(Optimizer):
    """As someone outside the package may write: SGD that leaves biases as they are."""

    def transform(self, submodule):
        def group(path, leaf):
            return "still" if path.endswith("/bias") else "sgd"

        return by_path(group, {"sgd": optax.identity(), "still": optax.set_to_zero()}, submodule)


def test_a_subclass_may_group_parameters_by_path(batch):
    learner = Learner.create(Net(nnx.Rngs(0)), Setup(WithoutBiases(schedule="constant", learning_rate=0.1), 10, 8))
    moved = moves(learner, learner.descend(loss, batch, 0, jax.random.key(0))[0])
    for name, gradient in gradients(learner, batch).items():
        expected = 0.0 if name.endswith("bias") else 0.1 * gradient
        np.testing.assert_allclose(moved[name], np.broadcast_to(expected, gradient.shape), rtol=1e-3, atol=1e-4)
    assert np.abs(gradients(learner, batch)["mlp.up.bias"]).max() > 0.01


def test_a_pattern_that_is_no_regular_expression_is_refused():
    with pytest.raises(UserError, match=r"optimizer\.adamw_paths is '\('; it must be a regular expression"):
        Optimizer(adamw_paths="(")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_settings_from_before_muon_are_read(tmp_path, number):
    new = {"muon_momentum", "adamw_paths"}
    fields = to_json(Optimizer(name="adam", microbatches=4, ema_decay=0.99))
    fields = {name: value for name, value in fields.items() if name not in new}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields | ({"format": number} if number > 1 else {})))
    assert read_json(path, Optimizer) == Optimizer(name="adam", microbatches=4, ema_decay=0.99)


def test_old_and_new_flags_of_the_optimizer_are_parsed():
    run = load_config(str(ROOT / "configs" / "transformer_lm.py"))
    flags = ["--optimizer.name", "muon", "--optimizer.microbatches", "2", "--optimizer.ema-decay", "0.9"]
    parsed = parse_flags(type(run), run, flags, "train.py")
    assert parsed.optimizer == replace(run.optimizer, name="muon", microbatches=2, ema_decay=0.9)


@pytest.fixture
def tiny(tmp_path):
    """A Transformer language model of 16 features on 8,000 characters."""
    text = tmp_path / "text.txt"
    text.write_text(next(iter(read_plays().values()))[:8000], encoding="utf-8")
    run = load_config(str(ROOT / "configs" / "transformer_lm.py"))
    return replace(
        run,
        family=replace(run.family, layers=1, heads=2, width=16, context=8, dropout=0.0),
        data=replace(run.data, path=str(text)),
        parallel=Parallel(devices=1),
        steps=40, batch_size=8, log_every=1, eval_every=0, save_every=20, sample_every=0, score_every=0,
        rundir=str(tmp_path / "run"),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rate"), [("muon", 0.01), ("lion", 0.003)])
def test_a_language_model_learns_and_goes_on_bit_for_bit(tiny, name, rate):
    optimizer = replace(tiny.optimizer, name=name, learning_rate=rate, warmup_steps=0, beta2=0.99)
    run = replace(tiny, optimizer=optimizer)
    whole = fit(run)
    lines = (Path(run.rundir) / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "learning_rate" in row]
    assert np.mean(losses[-5:]) < losses[0] - 0.5
    halfway = replace(run, rundir=run.rundir + "-resumed")
    shutil.copytree(run.rundir, halfway.rundir)
    shutil.rmtree(Path(halfway.rundir) / "checkpoints" / "step_00000040")
    resumed = fit(halfway)
    a, b = (flatten(trained.model.state) for trained in (whole, resumed))
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)

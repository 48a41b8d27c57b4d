"""`Learner.descend`: one gradient for all families, whatever the microbatches, parts and averages."""

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoo.core.errors import UserError
from zoo.core.family import MemorySums, Rows, Setup
from zoo.core.learner import Learner
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.harness.config import read_json, to_json


class Line(nnx.Module):
    """y = a (b x), with a memory of how many rows it has seen."""

    def __init__(self):
        self.a = nnx.Dict(kernel=nnx.Param(jnp.full((3, 1), 0.5)), bias=nnx.Param(jnp.zeros(1)))
        self.b = nnx.Dict(kernel=nnx.Param(jnp.arange(12.0).reshape(4, 3) / 10))
        self.seen = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.seen[...] = self.seen[...] + x.shape[0]
        return x @ self.b["kernel"][...] @ self.a["kernel"][...] + self.a["bias"][...][None]


def loss(net, batch, key):
    """Rows weigh differently, so a mean of means would show."""
    error = (net(batch["x"])[:, 0] - batch["y"]) ** 2
    weight = batch["weight"]
    return (error * weight).sum(), weight.sum(), {"rows": Rows(batch["row"] * 10)}


def make(**settings) -> Learner:
    return Learner.create(Line(), Setup(Optimizer(**settings), total_steps=10, batch_size=8))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    weight = jnp.arange(8, dtype=jnp.float32) ** 2
    row = jnp.arange(8, dtype=jnp.int32)
    return {"x": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32), "y": weight / 9, "weight": weight, "row": row}


KEY = jax.random.key(0)


def test_sgd_follows_the_gradient_of_the_weighted_mean(batch):
    learner = make(name="sgd", momentum=0.0, learning_rate=0.1, schedule="constant")
    new, metrics = jax.jit(lambda learner: learner.descend(loss, batch, 0, KEY))(learner)

    def mean(params):
        hidden = batch["x"] @ params["b"]["kernel"] @ params["a"]["kernel"] + params["a"]["bias"][None]
        return (((hidden[:, 0] - batch["y"]) ** 2) * batch["weight"]).sum() / batch["weight"].sum()

    value, gradient = jax.value_and_grad(mean)(learner.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, learner.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), new.params, expected)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert new.updates == 1
    assert new.memory["seen"] == 8


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_are_one_large_batch(batch, microbatches):
    whole, told = make(name="sgd").descend(loss, batch, 0, KEY)
    parts, told_in_parts = make(name="sgd", microbatches=microbatches).descend(loss, batch, 0, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole.params, parts.params)
    np.testing.assert_allclose(told["loss"], told_in_parts["loss"], rtol=1e-6)
    # Rows come back in the order of the batch, and memory has seen every row once.
    np.testing.assert_array_equal(told_in_parts["rows"].value, batch["row"] * 10)
    assert parts.memory["seen"] == 8


def test_only_leaves_the_rest_and_its_optimizer_state_untouched(batch):
    learner = make(name="adamw", weight_decay=0.1)
    learner, _ = learner.descend(loss, batch, 0, KEY)
    new, _ = learner.descend(loss, batch, 0, KEY, only=("a",))
    same = jax.tree.map(
        lambda x, y: bool((x == y).all()), (learner.params, learner.opt_state), (new.params, new.opt_state)
    )
    assert all(jax.tree.leaves((same[0]["b"], same[1]["b"])))
    assert not any(jax.tree.leaves((same[0]["a"], same[1]["a"])))


def test_only_refuses_a_part_that_is_not_there(batch):
    with pytest.raises(ValueError, match="'c'"):
        make().descend(loss, batch, 0, KEY, only=("a", "c"))


def test_frozen_parts_have_no_gradient_no_average_and_no_optimizer_state(batch):
    learner = Learner.create(Line(), Setup(Optimizer(ema_decay=0.9), 10, 8), frozen=("b",))
    new, _ = learner.descend(loss, batch, 0, KEY)
    np.testing.assert_array_equal(new.frozen["b"]["kernel"], learner.frozen["b"]["kernel"])
    assert not (new.params["a"]["kernel"] == learner.params["a"]["kernel"]).any()
    assert set(new.opt_state) == set(new.ema[0]) == {"a"}
    assert new.eval_net()(batch["x"]).shape == (8, 1)


def test_clipping_bounds_the_whole_gradient(batch):
    free, told = make(name="sgd", momentum=0.0).descend(loss, batch, 0, KEY)
    clipped, _ = make(name="sgd", momentum=0.0, clip_norm=0.5).descend(loss, batch, 0, KEY)
    start = make().params
    ratio = 0.5 / told["grad_norm"]
    assert ratio < 0.9
    jax.tree.map(
        lambda p, f, c: np.testing.assert_allclose(c - p, (f - p) * ratio, rtol=1e-3, atol=1e-7),
        start, free.params, clipped.params,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_clipping_leaves_a_gradient_below_its_bound_as_it_is(batch, size):
    def small(net, batch, key):
        total, weight, metrics = loss(net, batch, key)
        return size * total, weight, metrics

    free, told = make(name="sgd", momentum=0.0).descend(small, batch, 0, KEY)
    assert 0 < told["grad_norm"] < 100 * size
    clipped, _ = make(name="sgd", momentum=0.0, clip_norm=100.0).descend(small, batch, 0, KEY)
    assert free.params["a"]["bias"] != 0  # it starts at 0, so that the smallest step shows
    jax.tree.map(np.testing.assert_array_equal, clipped.params, free.params)


def test_averages_start_fast_and_hold_memory_too(batch):
    learner = make(name="sgd", ema_decay=0.999)
    for n in range(1, 4):
        old, (learner, _) = learner, learner.descend(loss, batch, 0, KEY)
        decay = (1 + n) / (10 + n)
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, old.ema, (learner.params, learner.memory))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), learner.ema, expected)
    averaged = learner.eval_net()
    np.testing.assert_array_equal(averaged.a["kernel"][...], learner.ema[0]["a"]["kernel"])
    assert learner.inference().opt_state is None
    np.testing.assert_array_equal(learner.inference().eval_net()(batch["x"]), averaged(batch["x"]))


def test_the_learner_gives_the_network_float32_parameters_whatever_the_precision(batch):
    kinds = []

    def watched(net, batch, key):
        kinds.append(net.a["kernel"].dtype)
        return loss(net, batch, key)

    learner = Learner.create(Line(), Setup(Optimizer(), 10, 8, precision="bfloat16"))
    new, _ = learner.descend(watched, batch, 0, KEY)
    assert kinds == [jnp.float32]
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}


def test_equal_settings_compile_once(batch):
    step = jax.jit(lambda learner: learner.descend(loss, batch, 0, KEY))
    step(make(weight_decay=0.1))
    step(step(make(weight_decay=0.1))[0])
    assert step._cache_size() == 1


@dataclass
class Case:
    schedule: str
    at: dict[int, float]


@pytest.mark.parametrize(
    "case",
    [
        Case("cosine", {0: 1 / 11, 9: 10 / 11, 10: 1.0, 60: 0.55, 110: 0.1, 200: 0.1}),
        Case("linear", {10: 1.0, 60: 0.55, 110: 0.1}),
        Case("constant", {0: 1 / 11, 10: 1.0, 110: 1.0}),
        # A fifth of 110 steps is 22: from 1 at step 88 to 0.1 at step 110.
        Case("wsd", {0: 1 / 11, 10: 1.0, 88: 1.0, 99: 0.55, 110: 0.1, 200: 0.1}),
    ],
)
def test_schedules(case):
    rate = Optimizer(learning_rate=1.0, schedule=case.schedule, warmup_steps=10).learning_rate_at(110)
    for update, value in case.at.items():
        np.testing.assert_allclose(rate(update), value, rtol=1e-5)


def test_weight_decay_spares_vectors(batch):
    def still(net, batch, key):
        return 0.0 * net(batch["x"]).sum(), jnp.ones(()), {}

    learner = make(name="adamw", weight_decay=0.5, learning_rate=0.1, schedule="constant")
    learner = learner.with_params(jax.tree.map(jnp.ones_like, learner.params))
    new, _ = learner.descend(still, batch, 0, KEY)
    np.testing.assert_allclose(new.params["a"]["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(new.params["a"]["bias"], 1.0)


def test_schedules_read_the_training_step_and_adam_its_own_updates(batch):
    settings = {"name": "adam", "learning_rate": 1.0, "schedule": "linear", "final_fraction": 0.0}
    learner, _ = make(**settings).descend(loss, batch, 0, KEY, only=("a",))  # the schedule is of 10 steps
    new, metrics = learner.descend(loss, batch, 6, KEY)
    np.testing.assert_allclose(metrics["learning_rate"], 0.4, rtol=1e-6)
    # Adam's first update of a submodule is the rate times the gradient's sign, whatever the step (Kingma & Ba 2015).
    moved = jax.tree.map(lambda old, now: jnp.abs(now - old), learner.params["b"], new.params["b"])
    np.testing.assert_allclose(moved["kernel"], 0.4, rtol=1e-4)
    counts = {name: int(state[0].count) for name, state in new.opt_state.items()}
    assert counts == {"a": 2, "b": 1}


@pytest.mark.parametrize("settings", [{}, {"microbatches": 2}], ids=["whole", "microbatches"])
def test_a_batch_without_weight_changes_nothing_and_is_reported(batch, settings):
    step = jax.jit(lambda learner, batch: learner.descend(loss, batch, 0, KEY))
    learner, metrics = step(make(weight_decay=0.1, ema_decay=0.9, **settings), batch)
    assert metrics["skipped"] == 0
    new, metrics = step(learner, batch | {"weight": jnp.zeros(8)})
    jax.tree.map(np.testing.assert_array_equal, new, learner)
    assert metrics["skipped"] == 1
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    np.testing.assert_array_equal(metrics["rows"].value, batch["row"] * 10)


def test_a_loss_may_need_means_over_all_microbatches(batch):
    """The variance of the outputs: a microbatch has another mean than the batch."""

    def outputs(net, batch, key):
        y = net(batch["x"])[:, 0]
        return y.sum(), jnp.float32(len(y))

    def relative(net, batch, key, means=None):
        y = net(batch["x"])[:, 0]
        mean = jax.lax.stop_gradient(y.mean()) if means is None else means
        return ((y - mean) ** 2).sum(), jnp.float32(len(y)), {}

    whole, told = make(name="sgd").descend(relative, batch, 0, KEY, sums_fn=outputs)
    y = np.asarray(make().net()(batch["x"]))
    np.testing.assert_allclose(told["loss"], y.var(), rtol=1e-5)
    parts, told_in_parts = make(name="sgd", microbatches=4).descend(relative, batch, 0, KEY, sums_fn=outputs)
    np.testing.assert_allclose(told_in_parts["loss"], y.var(), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), whole.params, parts.params)
    assert parts.memory["seen"] == 8  # the first pass leaves nothing in memory


def test_a_longer_wsd_schedule_is_the_same_until_the_shorter_one_falls():
    rates = [Optimizer(schedule="wsd", warmup_steps=5).learning_rate_at(steps) for steps in (100, 1000)]
    steps = jnp.arange(81)
    np.testing.assert_array_equal(*(jax.vmap(rate)(steps) for rate in rates))
    assert rates[0](90) < rates[1](90)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_weight_decay_that_does_nothing_is_refused_in_new_runs_and_read_in_old(tmp_path, name):
    with pytest.raises(UserError, match=rf"weight_decay is 0\.1.*{name}.*--optimizer\.name adamw"):
        Optimizer(name=name, weight_decay=0.1)
    path = tmp_path / "config.json"
    fields = to_json(Optimizer(name="adamw", weight_decay=0.1)) | {"name": name}
    path.write_text(json.dumps(fields))
    old = read_json(path, Optimizer)
    assert (old.name, old.weight_decay) == (name, 0.1)
    with pytest.raises(UserError, match="weight_decay"):
        replace(old)  # as `fit` does


class Codes(nnx.Module):
    """A codebook by moving averages (van den Oord et al. 2017, appendix A.1) before a linear map."""

    def __init__(self):
        self.codes = nnx.Variable(jnp.arange(12.0).reshape(3, 4))
        self.counts = nnx.Variable(jnp.ones(3))
        self.totals = nnx.Variable(jnp.arange(12.0).reshape(3, 4))
        self.out = nnx.Dict(kernel=nnx.Param(jnp.ones((4, 1))))

    def __call__(self, x):
        nearest = ((x[:, None] - self.codes[...][None]) ** 2).sum(-1).argmin(1)
        chosen = jax.nn.one_hot(nearest, 3)
        quantised = self.codes[...][nearest]
        return (quantised @ self.out["kernel"][...])[:, 0], {"counts": chosen.sum(0), "totals": chosen.T @ x}


def codebook_loss(net, batch, key):
    y, sums = net(batch["x"])
    weight = batch["weight"]
    return ((y - batch["y"]) ** 2 * weight).sum(), weight.sum(), {"codebook": MemorySums(sums)}


def move_codes(net, sums):
    """Decay 1/2, whose products are exact."""
    net.counts[...] = 0.5 * net.counts[...] + 0.5 * sums["codebook"]["counts"]
    net.totals[...] = 0.5 * net.totals[...] + 0.5 * sums["codebook"]["totals"]
    net.codes[...] = net.totals[...] / net.counts[...][:, None]


@pytest.fixture
def points(batch):
    """Integers, whose sums are exact in any order."""
    x = np.random.default_rng(1).integers(0, 12, size=(8, 4)).astype(np.float32)
    return {**jax.device_get(batch), "x": x}


def moved_codes(points, parallel, steps=1, **settings):
    setup = Setup(Optimizer(name="sgd", learning_rate=1e-4, **settings), 10, 8)
    strategy = parallel.start(8, setup.optimizer.microbatches)
    state = strategy.init(lambda key: Learner.create(Codes(), setup), KEY)
    step = strategy.compile_step(
        lambda learner, batch, n: learner.descend(codebook_loss, batch, n, KEY, update_memory=move_codes)
    )
    for n in range(steps):
        state, metrics = step(state, strategy.put(points), np.int32(n))
    return jax.device_get((strategy.gather(state), metrics))


def test_sums_for_memory_are_of_the_whole_batch(points):
    learner, metrics = moved_codes(points, Parallel(devices=1))
    codes = np.arange(12.0).reshape(3, 4)
    nearest = ((points["x"][:, None] - codes) ** 2).sum(-1).argmin(1)
    assert len(set(nearest)) == 3
    counts = np.array([1 + (nearest == k).sum() for k in range(3)]) / 2
    totals = np.array([codes[k] + points["x"][nearest == k].sum(0) for k in range(3)]) / 2
    np.testing.assert_array_equal(learner.memory["counts"], counts)
    np.testing.assert_array_equal(learner.memory["totals"], totals)
    np.testing.assert_allclose(learner.memory["codes"], totals / counts[:, None], rtol=1e-6)
    assert "codebook" not in metrics


@pytest.mark.parametrize(
    ("parallel", "settings"),
    [
        (Parallel("jit", 8), {}),
        (Parallel("pmap", 8), {}),
        (Parallel("pmap", 2), {"microbatches": 4}),
        (Parallel(devices=1), {"microbatches": 2}),
    ],
)
def test_memory_is_updated_once_whatever_the_devices_and_microbatches(points, parallel, settings):
    alone, _ = moved_codes(points, Parallel(devices=1), steps=2, ema_decay=0.9)
    spread, _ = moved_codes(points, parallel, steps=2, ema_decay=0.9, **settings)
    jax.tree.map(np.testing.assert_array_equal, alone.memory, spread.memory)
    jax.tree.map(np.testing.assert_array_equal, alone.ema[1], spread.ema[1])


def test_a_batch_without_weight_leaves_memory_as_it_was(points):
    learner, metrics = moved_codes(points | {"weight": np.zeros(8, np.float32)}, Parallel(devices=1))
    assert metrics["skipped"] == 1
    np.testing.assert_array_equal(learner.memory["counts"], 1.0)


def test_sums_for_memory_and_their_use_go_together(batch):
    learner = Learner.create(Codes(), Setup(Optimizer(), 10, 8))
    with pytest.raises(ValueError, match=r"MemorySums \['codebook'\]"):
        learner.descend(codebook_loss, batch, 0, KEY)
    with pytest.raises(ValueError, match=r"MemorySums \[\]"):
        make().descend(loss, batch, 0, KEY, update_memory=move_codes)

"""One network in training, and the one place where gradients are taken."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from zoo.core import parallel
from zoo.core.family import AllRows, Batch, MemorySums, Metrics, Rows, Setup
from zoo.core.optimizer import Optimizer

LossFn = Callable[..., tuple[jax.Array, jax.Array, dict[str, Any]]]
"""`loss_fn(net, batch, key) -> (total, weight, metrics)`: the loss summed over rows, what to divide it by, and metrics
as pairs (sum, weight). A metric given as `Rows(value)` leads with the batch row and is returned as it is; one given as
`AllRows(value)` is returned with the rows of all devices; `MemorySums(value)` goes to `update_memory` and is not
returned."""

SumsFn = Callable[[Any, Batch, jax.Array], tuple[Any, jax.Array]]
"""`sums_fn(net, batch, key) -> (sums, weight)`: arrays summed over rows, and what to divide them by for their means."""

UpdateMemory = Callable[[Any, dict[str, Any]], None]
"""`update_memory(net, sums)`: changes variables of the network in place, given the values of the loss's `MemorySums` by
name, each summed over the whole batch (a codebook by moving averages: van den Oord et al. 2017, appendix A.1)."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "memory", "frozen", "opt_state", "ema", "updates"],
    meta_fields=["graphdef", "optimizer", "total_steps"],
)
@dataclass(frozen=True)
class Learner:
    """A network, its optimizer and its averages, as a pytree of arrays.

    Attributes:
        params: what the gradient moves; nested dicts, the first level being the network's submodules.
        memory: what the network remembers without a gradient (BatchNorm's statistics, codebooks).
        frozen: submodules with no gradient, no average and no optimizer state.
        opt_state: the optimizer's state, one entry for each submodule in `params`.
        ema: moving averages of `params` and `memory`, or None.
        updates: how many times `descend` was called.
        graphdef: the network without its arrays.
        optimizer: settings.
        total_steps: length of the run, for schedules.
    """

    params: dict[str, Any]
    memory: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: Any
    ema: Any
    updates: Any
    graphdef: Any
    optimizer: Optimizer
    total_steps: int

    @classmethod
    def create(cls, net: nnx.Module, setup: Setup, frozen: Collection[str] = ()) -> "Learner":
        """Takes a network apart; `frozen` names submodules that stay as they are."""
        graphdef, params, memory = _take_apart(net)
        # A weakly typed initial value would make the second step compile again.
        strong = partial(jax.tree.map, lambda x: jnp.asarray(x, x.dtype))
        params, memory = strong(params), strong(memory)
        still = {name: params.pop(name) for name in frozen}
        return cls(
            params=params,
            memory=memory,
            frozen=still,
            opt_state={name: setup.optimizer.transform(name).init(part) for name, part in params.items()},
            # Copies: the state is donated, and one buffer cannot be given away twice.
            ema=jax.tree.map(jnp.copy, (params, memory)) if setup.optimizer.ema_decay else None,
            updates=jnp.zeros((), jnp.int32),
            graphdef=graphdef,
            optimizer=setup.optimizer,
            total_steps=setup.total_steps,
        )

    def net(self) -> Any:
        """The network with its current weights."""
        return self._merge(self.params, self.memory)

    def eval_net(self) -> Any:
        """The network that samples and scores: averaged weights and memory where they are kept."""
        return self._merge(*self.ema) if self.ema is not None else self.net()

    @property
    def eval_params(self) -> Any:
        """The parameters that `eval_net` has."""
        return self.params if self.ema is None else self.ema[0]

    def inference(self) -> "Learner":
        """This learner with nothing but what `eval_net` needs."""
        lean = replace(self, opt_state=None)
        return lean if self.ema is None else replace(lean, params={}, memory={})

    @property
    def eval_memory(self) -> dict[str, Any]:
        """The memory that `eval_net` has."""
        return self.memory if self.ema is None else self.ema[1]

    def with_params(self, params: dict[str, Any], memory: dict[str, Any] | None = None) -> "Learner":
        """This learner starting from other weights, and memory if it is given: averages start there too."""
        memory = self.memory if memory is None else memory
        ema = None if self.ema is None else jax.tree.map(jnp.copy, (params, memory))
        return replace(self, params=params, memory=memory, ema=ema)

    def descend(
        self,
        loss_fn: LossFn,
        batch: Batch,
        step: jax.Array | int,
        key: jax.Array,
        only: Collection[str] | None = None,
        sums_fn: SumsFn | None = None,
        update_memory: UpdateMemory | None = None,
    ) -> tuple["Learner", Metrics]:
        """One update by the gradient of `sum of totals / sum of weights` over microbatches and devices.

        Args:
            loss_fn: see `LossFn`; its network is live, and what it leaves in memory is kept.
            batch: arrays that lead with the batch row.
            step: how many training steps were done before: what the schedule reads, whatever this learner has taken.
            key: the same for all microbatches and devices: noise is drawn per row.
            only: the submodules to update; other parameters and their optimizer state stay untouched.
            sums_fn: of a loss that needs means over the whole batch (free bits). With microbatches, or where a device
                sees only its own rows (pmap), it runs over the batch first, without gradients, and `loss_fn` is given
                the means as `means=`; a batch that is taken whole is not run twice: without `means=`, `loss_fn` takes
                them over its own rows.
            update_memory: see `UpdateMemory`. It is called once, after all microbatches, with the parameters before the
                update and the memory that the last microbatch left; only changes to memory are kept.

        Raises:
            ValueError: `only` names a submodule that does not exist; or `loss_fn` returns `MemorySums` and
                `update_memory` is missing, or the other way round.

        Returns:
            The learner after the update, and the metrics: `loss`, `grad_norm`, `learning_rate`, `skipped` and
            `loss_fn`'s own. A batch whose weights sum to 0 has no loss: nothing changes, and `skipped` is 1, else 0.
        """
        if unknown := set(only or ()) - set(self.params):
            raise ValueError(f"only names {sorted(unknown)}; the submodules that can learn are {sorted(self.params)}")
        trained = {name: part for name, part in self.params.items() if only is None or name in only}
        held = {name: part for name, part in self.params.items() if name not in trained}

        if sums_fn is not None and (self.optimizer.microbatches > 1 or parallel.rows_are_split()):
            loss_fn = partial(loss_fn, means=self._means(sums_fn, batch, key))

        def objective(trained: Any, memory: Any, batch: Batch) -> tuple[jax.Array, Any]:
            net = self._merge(trained | held, memory)
            total, weight, metrics = loss_fn(net, batch, key)
            rows = {name: m for name, m in metrics.items() if isinstance(m, Rows)}
            for_memory = {name: m.value for name, m in metrics.items() if isinstance(m, MemorySums)}
            pairs = {name: m for name, m in metrics.items() if name not in rows and name not in for_memory}
            sums = (weight, {"loss": (total, weight)} | pairs, for_memory)
            return total, (sums, rows, _take_apart(net)[2])

        def gradient(memory: Any, batch: Batch) -> tuple[Any, Any, Any]:
            grads, (sums, rows, memory) = jax.grad(objective, has_aux=True)(trained, memory, batch)
            return (grads, *sums), rows, memory

        sums, rows, memory = self.optimizer.accumulate(gradient, self.memory, batch)
        grads, weight, pairs, for_memory = parallel.total(sums)
        if bool(for_memory) != (update_memory is not None):
            raise ValueError(f"the loss has MemorySums {sorted(for_memory)} and update_memory is {update_memory}")
        empty = weight == 0  # then nothing is divided by it, and all stays as it was
        rate = jnp.asarray(self.optimizer.learning_rate_at(self.total_steps)(jnp.asarray(step)))
        new, norm = jax.lax.cond(
            empty,
            lambda: (self, jnp.zeros(())),
            lambda: self._updated(
                jax.tree.map(lambda g: g / weight, grads), self._remembered(memory, for_memory, update_memory), rate
            ),
        )
        metrics = {name: total / jnp.maximum(weight, 1e-9) for name, (total, weight) in pairs.items()}
        rows = {name: Rows(parallel.all_rows(m.value)) if isinstance(m, AllRows) else m for name, m in rows.items()}
        told = {"grad_norm": norm, "learning_rate": rate, "skipped": empty.astype(jnp.float32)}
        return new, metrics | told | rows

    def _remembered(self, memory: Any, sums: dict[str, Any], update_memory: UpdateMemory | None) -> Any:
        """The memory after `update_memory`."""
        if update_memory is None:
            return memory
        net = self._merge(self.params, memory)
        update_memory(net, sums)
        return _take_apart(net)[2]

    def _updated(self, grads: Any, memory: Any, rate: jax.Array) -> tuple["Learner", jax.Array]:
        """This learner after one step along the mean gradient of some submodules, and the gradient's norm."""
        norm = optax.tree.norm(grads)
        if self.optimizer.clip_norm:
            scale = jnp.minimum(1.0, self.optimizer.clip_norm / (norm + 1e-6))
            grads = jax.tree.map(lambda g: g * scale, grads)
        params, opt_state = dict(self.params), dict(self.opt_state)
        for name in grads:
            moves, opt_state[name] = self.optimizer.transform(name).update(grads[name], opt_state[name], params[name])
            params[name] = jax.tree.map(lambda p, u: p - rate * u, params[name], moves)
        new = replace(self, params=params, memory=memory, opt_state=opt_state, updates=self.updates + 1)
        if self.ema is not None:
            new = replace(new, ema=self.optimizer.average(self.ema, (params, memory), new.updates))
        return new, norm

    def _merge(self, params: Any, memory: Any) -> Any:
        """The live network."""
        return nnx.merge(self.graphdef, params | self.frozen, memory)

    def _means(self, sums_fn: SumsFn, batch: Batch, key: jax.Array) -> Any:
        """Means over the whole batch, taken a microbatch at a time; constants to the gradient."""
        parts = jax.lax.map(lambda part: sums_fn(self.net(), part, key), self.optimizer.parts(batch))
        sums, weight = parallel.total(jax.tree.map(lambda x: x.sum(0), parts))
        return jax.tree.map(lambda x: x / weight, sums)


def _take_apart(net: nnx.Module) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The network's graph, its parameters, and what it remembers besides, as plain nested dicts."""
    graphdef, *states = nnx.split(net, nnx.Param, ...)
    params, memory = map(nnx.to_pure_dict, states)
    return graphdef, params, memory

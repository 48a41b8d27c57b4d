"""`Learner`: a network in training. Its `descend` computes the gradient of a loss and updates the network."""

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
"""`loss_fn(net, batch, key) -> (total, weight, metrics)`: the loss summed over rows, its divisor, and metrics as pairs
(sum, weight). A metric `Rows(value)` has the batch row as first axis and is returned unchanged; `AllRows(value)` is
returned with the rows of all devices; `MemorySums(value)` is passed to `update_memory` and not returned."""

SumsFn = Callable[[Any, Batch, jax.Array], tuple[Any, jax.Array]]
"""`sums_fn(net, batch, key) -> (sums, weight)`: arrays summed over rows, and the divisor that gives their means."""

UpdateMemory = Callable[[Any, dict[str, Any]], None]
"""`update_memory(net, sums)` updates variables of the network in place, given the values of the loss's `MemorySums` by
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
        params: trained parameters, as nested dicts; the first level is the network's submodules.
        memory: variables that are updated without a gradient (BatchNorm's statistics, codebooks).
        frozen: submodules without gradient, average and optimizer state.
        opt_state: the optimizer's state, one entry for each submodule in `params`.
        ema: moving averages of `params` and `memory`, or None.
        updates: number of updates; batches that `descend` skipped are not counted.
        graphdef: the network without its arrays.
        optimizer: settings of the optimizer.
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
        """The learner of a network; `frozen` names submodules that are not trained."""
        graphdef, params, memory = _take_apart(net)
        # A weakly typed initial value would make the second step recompile.
        strong = partial(jax.tree.map, lambda x: jnp.asarray(x, x.dtype))
        params, memory = strong(params), strong(memory)
        still = {name: params.pop(name) for name in frozen}
        return cls(
            params=params,
            memory=memory,
            frozen=still,
            opt_state={name: setup.optimizer.transform(name).init(part) for name, part in params.items()},
            # Copies, since the state is donated and a buffer cannot be donated twice.
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
        """The evaluation network, used to sample and score: averaged weights and memory if there are averages."""
        return self._merge(*self.ema) if self.ema is not None else self.net()

    @property
    def eval_params(self) -> Any:
        """The parameters of `eval_net`."""
        return self.params if self.ema is None else self.ema[0]

    def inference(self) -> "Learner":
        """This learner reduced to the arrays that `eval_net` needs."""
        lean = replace(self, opt_state=None)
        return lean if self.ema is None else replace(lean, params={}, memory={})

    @property
    def eval_memory(self) -> dict[str, Any]:
        """The memory of `eval_net`."""
        return self.memory if self.ema is None else self.ema[1]

    def with_params(self, params: dict[str, Any], memory: dict[str, Any] | None = None) -> "Learner":
        """This learner with other weights and, if given, other memory; its averages are reset to them."""
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
            loss_fn: see `LossFn`; changes that it makes to the network's memory are kept.
            batch: arrays whose first axis is the batch row.
            step: number of training steps before this one, at which the learning rate schedule is evaluated; it may
                differ from the learner's own count of updates.
            key: the same for all microbatches and devices; noise is drawn per row.
            only: the submodules to update; other parameters and their optimizer state do not change.
            sums_fn: for a loss that needs means over the whole batch (free bits). With microbatches, or if a device
                holds only its own rows (pmap), it first runs over the batch without gradients, and `loss_fn` receives
                the means as `means=`. Otherwise it is not run, and `loss_fn`, called without `means=`, computes the
                means over its rows, which are the whole batch.
            update_memory: see `UpdateMemory`. It is called once, after all microbatches, with the parameters before the
                update and the memory after the last microbatch; only its changes to memory are kept.

        Raises:
            ValueError: `only` names a submodule that does not exist; or only one of `MemorySums` in the metrics of
                `loss_fn` and `update_memory` is given.

        Returns:
            The learner after the update, and the metrics: `loss`, `grad_norm`, `learning_rate`, `skipped` and those of
            `loss_fn`. If the weights of a batch sum to 0, the learner does not change and `skipped` is 1, else 0.
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
        empty = weight == 0  # then there is no mean gradient, and the learner does not change
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
        """This learner after one update by the mean gradient of some submodules, and the gradient's norm."""
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
        """The network with the given weights and memory and the frozen submodules."""
        return nnx.merge(self.graphdef, params | self.frozen, memory)

    def _means(self, sums_fn: SumsFn, batch: Batch, key: jax.Array) -> Any:
        """Means over the whole batch, computed one microbatch at a time, without gradients."""
        parts = jax.lax.map(lambda part: sums_fn(self.net(), part, key), self.optimizer.parts(batch))
        sums, weight = parallel.total(jax.tree.map(lambda x: x.sum(0), parts))
        return jax.tree.map(lambda x: x / weight, sums)


def _take_apart(net: nnx.Module) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The network's graph, and its parameters and other variables as plain nested dicts."""
    graphdef, *states = nnx.split(net, nnx.Param, ...)
    params, memory = map(nnx.to_pure_dict, states)
    return graphdef, params, memory

"""Placement of state and batches on devices, and compilation of a pure step for them.

There are two strategies with the same results. `jit` traces the step over the global batch, and the compiler splits it
over a mesh with the axes `data` and `fsdp`. `pmap` traces it over the rows of one device, and `total` adds sums over
rows across devices. Noise is drawn per row, so both strategies agree with each other and with one device.
"""

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import numpy as np
from annotated_types import Ge
from einops import rearrange
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.core.errors import UserError, require
from zoo.core.family import Batch, Rows, State

AXIS = "devices"
_in_pmap: ContextVar[bool] = ContextVar("_in_pmap", default=False)
_whole: ContextVar[NamedSharding | None] = ContextVar("_whole", default=None)
"""While a step over split parameters is traced: the sharding of an array that every device holds whole."""


@dataclass(frozen=True)
class Parallel:
    """Settings of the use of devices."""

    strategy: Literal["jit", "pmap"] = "jit"
    """jit: one program over a device mesh; pmap: one program per device, data-parallel."""
    devices: Annotated[int, Ge(0)] = 0
    """Number of devices; 0: all."""
    fsdp: Annotated[int, Ge(1)] = 1
    """Number of devices over which each parameter and its optimizer state are split (jit only); it must divide the
    number of devices. Batches are always split over all devices."""

    def __post_init__(self) -> None:
        require(self, "parallel.")

    def start(self, batch_size: int, microbatches: int = 1) -> "Strategy":
        """Checks the settings against the machine and the batch, and returns the strategy.

        Raises:
            UserError: there are fewer devices than the settings name; the numbers of devices and rows do not divide; or
                `pmap` is used with `fsdp` or with several processes.
        """
        found = jax.device_count()
        count = self.devices or found
        if not 1 <= count <= found:
            raise UserError(f"parallel.devices is {self.devices}, but this machine has {found}")
        if count % self.fsdp:
            raise UserError(f"parallel.fsdp is {self.fsdp}; it must divide the number of devices, {count}")
        if batch_size < 1 or batch_size % (count * microbatches):
            parts = f" x {microbatches} microbatches" if microbatches > 1 else ""
            raise UserError(
                f"batch_size is {batch_size}; it must be a multiple of {count * microbatches} ({count} devices{parts})"
            )
        if self.strategy == "jit":
            return MeshStrategy(jax.devices()[:count], self.fsdp)
        if self.fsdp > 1:
            raise UserError(
                f"parallel.fsdp is {self.fsdp}, but pmap splits only the batch; use --parallel.strategy jit"
            )
        if jax.process_count() > 1:
            raise UserError("parallel.strategy is pmap, which runs in one process here; use --parallel.strategy jit")
        return PmapStrategy(jax.devices()[:count])


def total(tree: Any) -> Any:
    """The sum over devices of sums over their rows; the identity under jit, where rows are global."""
    return jax.lax.psum(tree, AXIS) if _in_pmap.get() else tree


def mean(tree: Any) -> Any:
    """The mean over devices of means over equal numbers of rows; the identity under jit, where rows are global."""
    return jax.lax.pmean(tree, AXIS) if _in_pmap.get() else tree


def rows_are_split() -> bool:
    """Whether the traced batch has the rows of one device only (pmap); under jit, rows are global."""
    return _in_pmap.get()


def all_rows(tree: Any) -> Any:
    """The rows of all devices, in the order of the global batch; the identity under jit, where rows are global."""
    return jax.lax.all_gather(tree, AXIS, tiled=True) if _in_pmap.get() else tree


def own_rows(tree: Any) -> Any:
    """The rows of this device among the rows of all devices, which `all_rows` returns; the identity under jit."""
    if not _in_pmap.get():
        return tree

    def own(x: jax.Array) -> jax.Array:
        size = len(x) // jax.lax.axis_size(AXIS)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * size, size)

    return jax.tree.map(own, tree)


def gathered(parameter: jax.Array) -> jax.Array:
    """The parameter whole on every device, if `fsdp` splits it; the identity otherwise.

    A layer that the compiler should split by rows only, as convolutions are, gathers its parameter before use.
    """
    whole = _whole.get()
    return parameter if whole is None else jax.lax.with_sharding_constraint(parameter, whole)


@contextmanager
def _tracing(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _run_once() -> dict[str, int] | None:
    """Compiler options for a function that runs once: no optimisation on the CPU, which takes a third of the time."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


class _CompiledOnce:
    """A function that is compiled at its first call and never again.

    Raises:
        TypeError: later arguments have other shapes or dtypes than the first.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            self._compiled = self._function.lower(*arguments).compile()
        return self._compiled(*arguments)


def _is_rows(node: Any) -> bool:
    return isinstance(node, Rows)


class Strategy(abc.ABC):
    """Puts state and batches on devices and compiles pure functions of them."""

    def __init__(self, devices: list[jax.Device]) -> None:
        self.devices = devices

    def rows(self, size: int) -> slice:
        """The rows of a global batch of `size` rows that this process reads."""
        processes, index = jax.process_count(), jax.process_index()
        return slice(index * size // processes, (index + 1) * size // processes)

    @abc.abstractmethod
    def init(self, make: Callable[..., State], key: jax.Array, *saved: Any) -> State:
        """Computes the state `make(key, *saved)` on its devices; `saved` are trees of arrays, as `gather` returns."""

    @abc.abstractmethod
    def place(self, state: State) -> State:
        """Puts a global state, as `gather` returns it, on the devices."""

    @abc.abstractmethod
    def gather(self, state: State) -> State:
        """The global state: one copy of everything, rows in the order of the global batch."""

    def replicate(self, state: State) -> State:
        """A global state with every array whole on every device, for functions that this strategy does not compile.

        Samplers compile their own functions; a token decoded with split weights would gather them again.
        """
        return state

    @abc.abstractmethod
    def abstract(self, make: Callable[[jax.Array], State], key: jax.Array) -> State:
        """Shapes, dtypes and shardings of the global state, for restoring a checkpoint."""

    @abc.abstractmethod
    def put(self, batch: Batch) -> Batch:
        """Puts this process's rows of a batch on its devices."""

    @abc.abstractmethod
    def compile_step(self, step: Callable[..., tuple[State, Any]]) -> Callable[..., tuple[State, Any]]:
        """Compiles `step(state, batch, number) -> (state, metrics)`; the state passed in is donated."""

    @abc.abstractmethod
    def compile_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles `function(state, batch, number) -> arrays`, whose first axis is the batch row."""


class MeshStrategy(Strategy):
    """`jax.jit` over a mesh (the default)."""

    def __init__(self, devices: list[jax.Device], fsdp: int = 1) -> None:
        super().__init__(devices)
        shape = (len(devices) // fsdp, fsdp)
        self.mesh = jax.make_mesh(shape, ("data", "fsdp"), devices=devices, axis_types=(AxisType.Auto,) * 2)
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())
        # On one device, a step returns arrays with the replicated sharding; another one for the same placement would
        # make the next step recompile.
        split = NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))
        self.by_row = split if len(devices) > 1 else self.everywhere
        self._copy_whole = jax.jit(lambda state: state, out_shardings=self.everywhere)

    def _sharding(self, leaf: Any) -> NamedSharding:
        """Splits the largest axis that `fsdp` divides; small leaves and those without such an axis are replicated."""
        fsdp = self.mesh.shape["fsdp"]
        axes = [axis for axis, size in enumerate(leaf.shape) if size % fsdp == 0]
        if fsdp == 1 or not axes or leaf.size < 1024:
            return self.everywhere
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    def _shardings(self, state: State) -> State:
        def of(node: Any) -> Any:
            return jax.tree.map(lambda _: self.by_row, node) if _is_rows(node) else self._sharding(node)

        return jax.tree.map(of, state, is_leaf=_is_rows)

    def init(self, make: Callable[..., State], key: jax.Array, *saved: Any) -> State:
        shardings = self._shardings(jax.eval_shape(make, key, *saved))
        made = jax.jit(make, out_shardings=shardings, compiler_options=_run_once())
        return made(key, *(self.place(tree) for tree in saved))

    def place(self, state: State) -> State:
        return jax.device_put(state, self._shardings(state))

    def gather(self, state: State) -> State:
        return state

    def replicate(self, state: State) -> State:
        if self.mesh.shape["fsdp"] == 1:
            return state
        return self._copy_whole(state)

    def abstract(self, make: Callable[[jax.Array], State], key: jax.Array) -> State:
        shapes = jax.eval_shape(make, key)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            self._shardings(shapes),
        )

    def put(self, batch: Batch) -> Batch:
        if jax.process_count() == 1:
            return jax.device_put(batch, self.by_row)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.by_row, x), batch)

    def compile_step(self, step: Callable[..., tuple[State, Any]]) -> Callable[..., tuple[State, Any]]:
        def pinned(state: State, batch: Batch, number: jax.Array) -> tuple[State, Any]:
            new, metrics = self._gathering(step)(state, batch, number)
            return jax.lax.with_sharding_constraint(new, self._shardings(new)), metrics

        return _CompiledOnce(jax.jit(pinned, donate_argnums=0))

    def compile_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(self._gathering(function), out_shardings=self.everywhere)

    def _gathering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*arguments: Any) -> Any:
            with _tracing(_whole, self.everywhere if self.mesh.shape["fsdp"] > 1 else None):
                return function(*arguments)

        return traced


class PmapStrategy(Strategy):
    """`jax.pmap`: the first axis of every array is the device; each device computes on its own rows."""

    def init(self, make: Callable[..., State], key: jax.Array, *saved: Any) -> State:
        return self.place(jax.jit(make, compiler_options=_run_once())(key, *saved))

    def place(self, state: State) -> State:
        count = len(self.devices)

        def of(node: Any) -> Any:
            if _is_rows(node):
                return jax.tree.map(self._split, node)
            return np.broadcast_to(np.asarray(node)[None], (count, *node.shape))

        return self._put(jax.tree.map(of, state, is_leaf=_is_rows))

    def gather(self, state: State) -> State:
        def of(node: Any) -> Any:
            if _is_rows(node):
                return jax.tree.map(lambda x: rearrange(np.asarray(x), "d b ... -> (d b) ..."), node)
            return jax.device_put(node.addressable_shards[0].data[0])

        return jax.tree.map(of, state, is_leaf=_is_rows)

    def abstract(self, make: Callable[[jax.Array], State], key: jax.Array) -> State:
        sharding = jax.sharding.SingleDeviceSharding(self.devices[0])
        shapes = jax.eval_shape(make, key)
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)

    def put(self, batch: Batch) -> Batch:
        return self._put(jax.tree.map(self._split, batch))

    def compile_step(self, step: Callable[..., tuple[State, Any]]) -> Callable[..., tuple[State, Any]]:
        compiled = _CompiledOnce(self._pmap(step, donate_argnums=0))

        def run(state: State, batch: Batch, number: Any) -> tuple[State, Any]:
            state, metrics = compiled(state, batch, number)
            return state, jax.tree.map(lambda x: x[0], metrics)

        return run

    def compile_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = self._pmap(function)

        def run(state: State, batch: Batch, number: Any) -> Any:
            rows = compiled(state, batch, number)
            return jax.tree.map(lambda x: rearrange(np.asarray(x), "d b ... -> (d b) ..."), rows)

        return run

    def _pmap(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def traced(state: State, batch: Batch, number: jax.Array) -> Any:
            with _tracing(_in_pmap, True):
                return function(state, batch, number)

        return jax.pmap(traced, axis_name=AXIS, in_axes=(0, 0, None), devices=self.devices, **options)

    def _split(self, x: Any) -> np.ndarray:
        return rearrange(np.asarray(x), "(d b) ... -> d b ...", d=len(self.devices))

    def _put(self, tree: Any) -> Any:
        """Puts one slice of stacked arrays on each device, with the sharding that later calls have."""
        mesh = jax.sharding.Mesh(np.array(self.devices), (AXIS,))
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))

"""Makes run directories from the weights of other libraries."""

from typing import Any

import jax

from zoo.core.data import Spec
from zoo.core.family import State
from zoo.harness.checkpoint import Checkpoints, flatten, unflatten
from zoo.harness.config import Run, to_json
from zoo.harness.rundir import RunDir
from zoo.harness.trained import inference_state, make_setup


def abstract_state(run: Run, spec: Spec) -> State:
    """Returns the shapes and dtypes of the inference state, without optimizer state; computes nothing."""
    setup = make_setup(run)
    return inference_state(jax.eval_shape(lambda key: run.family.init(spec, setup, key), jax.random.key(0)))


def write_run(run: Run, spec: Spec, weights: dict[str, Any]) -> None:
    """Makes the run directory `run.rundir` with one checkpoint, at step 0, of the given weights.

    The checkpoint has no optimizer state; --init.from starts training from it.

    Args:
        run: the run's settings, without weight averaging.
        spec: spec of the data.
        weights: arrays by their path in the state, such as `net.params.embedding.table`, with the shapes of
            `abstract_state`. Missing ones (such as the discriminator of an imported generator) are initialised.

    Raises:
        UserError: the directory is not empty.
    """
    setup, like = make_setup(run), abstract_state(run, spec)
    missing = flatten(like).keys() - weights.keys()

    @jax.jit
    def initialise(key: jax.Array) -> dict[str, jax.Array]:
        leaves = flatten(inference_state(run.family.init(spec, setup, key)))
        return {name: leaves[name] for name in missing}

    target = RunDir(run.rundir)
    target.create(run, spec, fresh=False)
    checkpoints = Checkpoints(target.path, monitor=run.family.monitor)
    checkpoints.save(0, unflatten(like, initialise(jax.random.key(run.seed)) | weights), to_json(run))
    checkpoints.close()
    target.close()


def under(path: str, tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths in a state that has the tree at `path`."""
    return {f"{path}.{name}": leaf for name, leaf in flatten(tree).items()}

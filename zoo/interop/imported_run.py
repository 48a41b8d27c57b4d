"""Run directories made of other programs' weights."""

from typing import Any

import jax

from zoo.core.data import Spec
from zoo.core.family import State
from zoo.harness.checkpoint import Checkpoints, flatten, unflatten
from zoo.harness.config import Run, to_json
from zoo.harness.rundir import RunDir
from zoo.harness.trained import inference_state, make_setup


def abstract_state(run: Run, spec: Spec) -> State:
    """Shapes and dtypes of the state that samples and scores, without optimizer state; nothing is computed."""
    setup = make_setup(run)
    return inference_state(jax.eval_shape(lambda key: run.family.init(spec, setup, key), jax.random.key(0)))


def write_run(run: Run, spec: Spec, weights: dict[str, Any]) -> None:
    """Makes the run directory `run.rundir` with one checkpoint, of step 0, that holds the given weights.

    The checkpoint has no optimizer state: training starts from it with --init.from.

    Args:
        run: the settings, without averages of the weights.
        spec: of the data.
        weights: arrays by their path in the state, such as `lm.params.embedding.table`, of the shapes in
            `abstract_state`. What they leave out (a discriminator beside an imported generator) is initialised.

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
    """The leaves of a tree by their paths in a state that holds it at `path`."""
    return {f"{path}.{name}": leaf for name, leaf in flatten(tree).items()}

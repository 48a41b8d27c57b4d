"""The state before the first step: random weights, or the weights of another run (`--init.from`)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from zoo.core.errors import UserError
from zoo.core.family import Family, State
from zoo.core.learner import Learner
from zoo.core.parallel import Strategy
from zoo.harness.checkpoint import flatten
from zoo.harness.config import Run, differences
from zoo.harness.trained import Trained, key_of, make_setup


class Keys(NamedTuple):
    """The root keys of a run."""

    init: jax.Array
    """Of the random weights."""
    step: jax.Array
    """Of training: step n uses `fold_in(step, n)`."""
    evaluation: jax.Array
    """Of evaluations and of the samples that are made during training."""


def keys_of(run: Run) -> Keys:
    """The root keys of a run, derived from its seed.

    Raises:
        UserError: the seed has more than 32 bits.
    """
    return Keys(*jax.random.split(key_of(run.seed), 3))


class Weights(NamedTuple):
    """The evaluation weights of one network."""

    params: dict[str, Any]
    """Frozen submodules included."""
    memory: dict[str, Any]


def random_state(run: Run, spec: Any) -> tuple[Callable[[jax.Array], State], jax.Array]:
    """A function that makes the state of a new run, and the key to call it with; parts are loaded."""
    setup = make_setup(run)
    return lambda key: run.family.init(spec, setup, key), keys_of(run).init


def first_state(run: Run, spec: Any, strategy: Strategy, source: Trained | None) -> State:
    """The state before the first step, on its devices.

    With a source, evaluation gives the same results as in the source: parameters, memory and their moving averages
    start from its evaluation weights, and the optimizer's state is new. No random weights are computed then, since the
    compiler removes those that the source replaces.

    Raises:
        UserError: the source's weights do not fit.
    """
    make, key = random_state(run, spec)
    if source is None:
        return strategy.init(make, key)
    weights = [Weights(net.eval_params | net.frozen, net.eval_memory) for net in _learners(source.model.state)]
    _check_fit(source, weights, jax.eval_shape(make, key), run.family)
    return strategy.init(lambda key, weights: with_weights(make(key), weights), key, weights)


def with_weights(state: State, weights: list[Weights]) -> State:
    """The state with the given weights in its networks, in the order of the state's leaves."""
    left = iter(weights)

    def replaced(node: Any) -> Any:
        if not isinstance(node, Learner):
            return node
        params, memory = next(left)
        started = node.with_params({name: params[name] for name in node.params}, memory)
        return dataclasses.replace(started, frozen={name: params[name] for name in node.frozen})

    return jax.tree.map(replaced, state, is_leaf=lambda node: isinstance(node, Learner))


def _learners(state: State) -> list[Learner]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Learner))
    return [node for node in nodes if isinstance(node, Learner)]


def _check_fit(source: Trained, weights: list[Weights], state: State, family: Family) -> None:
    """Compares names and shapes of the weights with those of an abstract state.

    Raises:
        UserError: names the first weight that differs, and the settings of the family that differ.
    """
    changed = differences(source.run.family, family).items()
    differing = [f"{name} is {old!r} there and {new!r} here" for name, (old, new) in changed]
    because = f" ({'; '.join(differing)})" if differing else ""
    networks = _learners(state)
    if len(weights) < len(networks):
        raise UserError(f"init.from is {source.path}, which has fewer networks than this run{because}")
    for given, network in zip(weights, networks, strict=False):
        theirs = flatten(given.params) | flatten(given.memory)
        ours = flatten(network.params | network.frozen) | flatten(network.memory)
        for name in sorted(theirs.keys() | ours.keys()):
            here = ours[name].shape if name in ours else "absent"
            there = theirs[name].shape if name in theirs else "absent"
            if here != there:
                raise UserError(
                    f"init.from is {source.path}, whose {name} is {there} while this run's is {here}{because}"
                )

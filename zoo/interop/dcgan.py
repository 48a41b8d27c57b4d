"""Reads and writes the weights of the DCGAN generator of PyTorch's example and tutorial, without PyTorch.

    python -m zoo.interop.dcgan FILE RUNDIR            makes a run directory from a generator's weights
    python -m zoo.interop.dcgan --export RUNDIR FILE   writes a run's generator as .safetensors

In PyTorch the generator is `main`, a sequence of ConvTranspose2d, BatchNorm2d and ReLU: `main.0.weight` [latent,
8 width, 4, 4] (4 width for images of 32 pixels), `main.1.weight`, `main.1.bias`, `main.1.running_mean`,
`main.1.running_var`, `main.3.weight`, and so on. FILE is a `.safetensors` file or one of `torch.save`, with the weights
alone or inside a training checkpoint. sample.py and `train.py --init.from` accept the run directory; its discriminator
is untrained.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from safetensors.numpy import save_file

from zoo.core.errors import UserError, run_script
from zoo.core.learner import Learner
from zoo.data.images import Images
from zoo.data.specs import ImageSpec
from zoo.dcgan import DCGAN
from zoo.harness.config import Run
from zoo.harness.platform import prepare
from zoo.harness.rundir import RunDir
from zoo.harness.trained import load_run
from zoo.interop.imported_run import abstract_state, under, write_run
from zoo.interop.torch_file import read_tensors

Tensors = dict[str, np.ndarray]
KERNEL = "main.{}.weight"
STAGES = {3: 32, 4: 64}
"""Image size by number of batch normalisations."""


def entries(stages: int) -> Iterator[tuple[str, tuple[str | int, ...], bool]]:
    """Yields each tensor of a generator: its name in PyTorch, its path in the zoo, and whether it is memory."""
    for stage in range(stages + 1):
        path: tuple[str | int, ...] = ("project",) if stage == 0 else ("ups", stage - 1)
        yield KERNEL.format(3 * stage), (*path, "kernel"), False
    ours = {"weight": "gain", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    for stage in range(stages):
        for theirs, name in ours.items():
            yield f"main.{3 * stage + 1}.{theirs}", ("norms", stage, name), theirs.startswith("running")


def read_generator(path: str | Path) -> tuple[DCGAN, ImageSpec, dict[str, Any], dict[str, Any]]:
    """Reads a generator's weights.

    Returns:
        The family, the spec of its images, and the parameters and memory of its `Generator`.

    Raises:
        UserError: the file is not a generator's, or tensors are missing or unused.
    """
    tensors = {
        name[name.index("main.") :]: value
        for name, value in read_tensors(path).items()
        if "main." in name and not name.endswith("num_batches_tracked")
    }
    kernels = [int(match[1]) for name in tensors if (match := re.fullmatch(r"main\.(\d+)\.weight", name))]
    stages = max(kernels, default=0) // 3
    wanted = {name for name, _, _ in entries(stages)}
    if stages not in STAGES or tensors.keys() != wanted:
        lacking, besides = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
        why = f"it lacks {lacking[0]}" if lacking else f"it has {(besides or kernels)[-1]}"
        raise UserError(f"{path} is not a DCGAN generator of 32 or 64 pixels in PyTorch's layout: {why}")
    latent, _, channels = *tensors[KERNEL.format(0)].shape[:2], tensors[KERNEL.format(3 * stages)].shape[1]
    family = DCGAN(width=tensors[KERNEL.format(3 * stages)].shape[0], latent=latent)
    params: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    for name, where, remembered in entries(stages):
        value = tensors[name].astype(np.float32)
        value = rearrange(value, "i o kh kw -> kh kw i o") if value.ndim == 4 else value
        _put(memory if remembered else params, where, jnp.asarray(value))
    return family, ImageSpec(STAGES[stages], STAGES[stages], channels), params, memory


def write_generator(path: str | Path, learner: Learner) -> None:
    """Writes a generator's evaluation weights as .safetensors, for PyTorch's `load_state_dict`."""
    net = learner.eval_net()
    tensors: Tensors = {}
    for name, where, _ in entries(len(net.norms)):
        value: Any = net
        for part in where:
            value = value[part] if isinstance(part, int) else getattr(value, part)
        array = np.asarray(value[...], np.float32)
        array = rearrange(array, "kh kw i o -> i o kh kw") if array.ndim == 4 else array
        tensors[name] = np.ascontiguousarray(array)
    for stage in range(len(net.norms)):
        tensors[f"main.{3 * stage + 1}.num_batches_tracked"] = np.array(int(learner.updates), np.int64)
    save_file(tensors, path, metadata={"format": "pt"})


def import_run(path: str | Path, rundir: str | Path) -> None:
    """Makes a run directory whose only checkpoint, at step 0, has a generator's weights."""
    prepare()
    RunDir(rundir).check_free(fresh=False)
    family, spec, params, memory = read_generator(path)
    # The data is only the default for evaluate.py: embedded images of the same shape.
    data = Images(size=spec.height, fit="pad") if spec.channels == 1 else Images(embedded="emoji", size=spec.height)
    run = Run(family=family, data=data, rundir=str(rundir))
    gen = abstract_state(run, spec).generator
    _same_shapes(path, params, gen.params)
    _same_shapes(path, memory, gen.memory)
    write_run(run, spec, under("generator.params", params) | under("generator.memory", memory))


def export_run(rundir: str | Path, path: str | Path) -> None:
    """Writes the generator of a trained DCGAN in PyTorch's layout."""
    model = load_run(rundir).model
    if not isinstance(model.family, DCGAN) or model.family.conditional:
        raise UserError(f"{rundir} does not hold an unconditional DCGAN; PyTorch's layout has no place for others")
    write_generator(path, model.state.generator)


def _put(tree: dict[Any, Any], where: tuple[str | int, ...], value: Any) -> None:
    for part in where[:-1]:
        tree = tree.setdefault(part, {})
    tree[where[-1]] = value


def _same_shapes(path: str | Path, given: Any, wanted: Any) -> None:
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (given, wanted)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{path} has a generator whose stages do not halve their channels; it cannot be a DCGAN here")


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m zoo.interop.dcgan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", action="store_true", help="from a run directory to a file")
    parser.add_argument("source", help="a file; with --export a run directory")
    parser.add_argument("target", help="a new run directory; with --export a new .safetensors file")
    arguments = parser.parse_args(sys.argv[1:])
    (export_run if arguments.export else import_run)(arguments.source, arguments.target)


if __name__ == "__main__":
    run_script(main)

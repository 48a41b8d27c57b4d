"""The notebook's family from outside the package: short, right by mathematics, and taken by the three commands."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call, refused
from flax import nnx
from paths import ROOT

from zoo.harness.flags import trust

TINY = ("--family.layers", "1", "--family.width", "16", "--batch-size", "8", "--steps", "2", "--eval-every", "0")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """The file that the notebook writes."""
    notebook = json.loads((ROOT / "notebooks" / "your_own_family.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    (family,) = [source for source in sources if source.startswith("%%writefile my_family.py\n")]
    path = tmp_path_factory.mktemp("outside") / "my_family.py"
    path.write_text(family.partition("\n")[2] + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def module(file):
    return trust(str(file))


def random_flow(module, shape: tuple[int, int, int], scale: float) -> nnx.Module:
    """A flow none of whose layers is the identity."""
    flow, keys = module.Flow(shape, 2, 16, nnx.Rngs(0)), nnx.Rngs(1)
    for _, leaf in nnx.iter_graph(flow):
        if isinstance(leaf, nnx.Param):
            leaf[...] = leaf[...] + scale * jax.random.normal(keys.params(), leaf.shape)
    return flow


def test_the_file_is_short(file):
    assert len(file.read_text().splitlines()) <= 120


def test_the_density_integrates_to_one(module):
    """Over images of two pixels, on a grid."""
    flow, side = random_flow(module, (1, 2, 1), 0.3), 400
    axis = (jnp.arange(side) + 0.5) / side
    x = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = jnp.exp(module.RealNVP().log_density(flow, x))
    assert density.std() > 0.3  # it is not uniform
    np.testing.assert_allclose(density.mean(), 1.0, atol=0.01)


def test_every_pixel_is_changed_and_the_inverse_undoes_it(module):
    flow = random_flow(module, (4, 4, 1), 0.1)
    y = jax.random.normal(jax.random.key(0), (3, 16))
    z, log_det = flow.forward(y)
    assert (jnp.abs(z - y).max(0) > 1e-3).all()
    np.testing.assert_allclose(flow.inverse(z), y, atol=1e-4)
    jacobian = jax.vmap(jax.jacfwd(lambda one: flow.forward(one[None])[0][0]))(y)
    np.testing.assert_allclose(log_det, jnp.linalg.slogdet(jacobian)[1], atol=1e-4)


@pytest.mark.slow
def test_the_three_commands_take_it(file, module, capsys, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (96, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    rundir, data = tmp_path / "run", ("--data.path", tmp_path / "images.npz")
    result = call(capsys, "train", file, *TINY, *data, "--rundir", rundir)
    assert result.code == 0, result.err
    monkeypatch.delitem(sys.modules, f"{file.parent.name}.my_family")  # as in a new process
    refused(call(capsys, "evaluate", rundir), "my_family:RealNVP", "--trust")
    result = call(capsys, "evaluate", rundir, "--split", "test", "--json", "--trust", file)
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    expected = scores["loss"] / (64 * np.log(2)) + 8
    np.testing.assert_allclose(scores["bits_per_dim"], expected, rtol=1e-5)
    result = call(capsys, "sample", rundir, "--n", "3", "--trust", file, "--out", tmp_path / "out")
    assert result.code == 0, result.err
    assert [Path(line).name for line in result.out.splitlines()][:3] == [f"sample_{n:04}.png" for n in range(3)]

"""Small flows, velocities that are known in closed form, and what diffusers computes.

If the data is normal, N(0, S) in some directions, the velocity of the straight path is known:

    v(x, t) = E[eps - x_0 | x_t = x] = (t I - (1 - t) S) S_t^-1 x,      S_t = (1 - t)^2 S + t^2 I

and its ODE maps x at time t to S_r^(1/2) S_t^(-1/2) x at time r.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ddpm_cases import SPEC, FewImages
from flax import nnx
from safetensors.numpy import load_file

from zoo.core.family import Model, Setup
from zoo.core.optimizer import Optimizer
from zoo.data.specs import ImageSpec
from zoo.flow_matching import FlowMatching, FlowRequest
from zoo.nets.denoiser import DenoiserOptions
from zoo.nets.dit import DiT
from zoo.sampling.diffusion.noise_levels import even_grid, shifted
from zoo.sampling.diffusion.noise_schedule import StraightPath
from zoo.sampling.diffusion.prediction import VELOCITY, solve
from zoo.sampling.diffusion.rules import Now, euler

FAMILY = FlowMatching(network="dit", patch=4, width=16, heads=2, layers=1)
MEAN_FLOW = replace(FAMILY, objective="mean", time_scale=20.0)


def make_model(family: FlowMatching, spec: ImageSpec = SPEC) -> Model:
    """A network with noise on all weights, so that every layer shows in its output."""
    state = jax.jit(lambda key: family.init(spec, Setup(Optimizer(), 10, 4), key))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(state.net.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    net = state.net.with_params(jax.tree.unflatten(tree, noisy)).inference()
    return Model(family, spec, state._replace(net=net), 0, FewImages)


def draw(model: Model, seed: int = 0, **request: Any) -> np.ndarray:
    """Two samples in five steps, unless something else is asked for."""
    made = model.family.sample(model, FlowRequest(**({"n": 2, "steps": 5} | request)), jax.random.key(seed))
    return np.stack([image.pixels for image in made]).astype(int)


def deviation(t: Any, std: float) -> Any:
    """Standard deviation of x_t for data N(0, std^2)."""
    return ((1 - t) ** 2 * std**2 + t**2) ** 0.5


def normal_velocity(x: Any, t: Any, std: float) -> Any:
    """v(x, t) for data N(0, std^2)."""
    return (t - (1 - t) * std**2) / deviation(t, std) ** 2 * x


def as_network(std: float, scale: float = 1000.0):
    """What to put in place of a network's `__call__`: the velocity of data N(0, std^2), given times of some scale."""

    def call(self, x, t, symbol=None, span=None, **_):
        return normal_velocity(x, t[:, None, None, None] / scale, std)

    return call


def load_dit(folder: Path) -> DiT:
    """diffusers' DiT as the zoo's."""
    config = json.loads((folder / "config.json").read_text())
    heads, layers, patch = (config[name] for name in ("num_attention_heads", "num_layers", "patch_size"))
    options = DenoiserOptions(
        network="dit", patch=patch, width=heads * config["attention_head_dim"], heads=heads, layers=layers,
        frequency_shift=1,
    )  # fmt: skip
    size, symbols = config["sample_size"], config["num_embeds_ada_norm"] + 1
    settings = options.dit_settings(size, size, config["in_channels"], symbols)
    given = load_file(folder / "diffusion_pytorch_model.safetensors")

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": given[name + ".weight"].T, "bias": given[name + ".bias"]}

    def block(name: str) -> dict[str, Any]:
        parts = [dense(f"{name}.attn1.to_{letter}") for letter in "qkv"]
        qkv = {key: np.concatenate([part[key] for part in parts], axis=-1) for key in ("kernel", "bias")}
        return {
            "modulation": dense(f"{name}.norm1.linear"),
            "attention": {"qkv": qkv, "out": dense(f"{name}.attn1.to_out.0")},
            "mlp": {"up": dense(f"{name}.ff.net.0.proj"), "down": dense(f"{name}.ff.net.2")},
        }

    kernel = np.moveaxis(given["pos_embed.proj.weight"], 0, -1)  # [c p q o]
    first = "transformer_blocks.0.norm1.emb"
    params = {
        "patch_in": {
            "kernel": np.moveaxis(kernel, 0, 2).reshape(-1, kernel.shape[-1]), "bias": given["pos_embed.proj.bias"],
        },
        "time_in": dense(f"{first}.timestep_embedder.linear_1"),
        "time_out": dense(f"{first}.timestep_embedder.linear_2"),
        "classes": {"table": given[f"{first}.class_embedder.embedding_table.weight"]},
        "blocks": {i: block(f"transformer_blocks.{i}") for i in range(layers)},
        "modulation": dense("proj_out_1"),
        "patch_out": dense("proj_out_2"),
    }  # fmt: skip
    graphdef, own, rest = nnx.split(nnx.eval_shape(lambda: DiT(settings, nnx.Rngs(0))), nnx.Param, ...)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, nnx.to_pure_dict(own))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params), nnx.to_pure_dict(rest))


def check_dit(folder: Path) -> None:
    expected = load_file(folder / "expected.safetensors")
    found = jax.jit(load_dit(folder))(expected["x"], expected["t"], expected["classes"])
    # Angles of up to 1000 radians in float32 are off by up to 3e-5.
    np.testing.assert_allclose(found, expected["output"], atol=1e-4)


@partial(jax.jit, static_argnames="rule")
def step_along(rule, grid, x, k, velocity):
    def denoise(x_t, t):
        return solve(velocity, x_t, StraightPath().at(t[:, None, None, None]), VELOCITY)

    return rule(denoise, grid, Now(x, k, k == 0, x, x, jnp.float32(0)))[0]


def check_flow_steps(folder: Path) -> None:
    arrays = load_file(folder / "flow.safetensors")
    cases = json.loads((folder / "flow.json").read_text())["cases"]
    for number, case in enumerate(cases):
        x, velocities, times = (arrays[f"{number}.{name}"] for name in ("x", "outputs", "timesteps"))
        grid = shifted(even_grid(StraightPath(), case["steps"]), StraightPath(), case["shift"])
        np.testing.assert_allclose(grid.t[: case["steps"]], times, rtol=1e-6)
        grid = jax.tree.map(jnp.asarray, grid)
        for k in range(case["steps"]):
            made = step_along(euler, grid, x[k], np.int32(k), velocities[k])
            np.testing.assert_allclose(made, x[k + 1], atol=1e-5, err_msg=f"{case}, step {k}")

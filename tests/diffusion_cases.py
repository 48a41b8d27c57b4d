"""Denoisers that are known in closed form, sampling with them, and the steps of diffusers' schedulers.

If the data is Gaussian, N(MEAN, STD^2) in every pixel, the best denoiser is known, and a deterministic sampler maps
noise z to mean + std z: two rows of noise, -1 and 1, give its mean and standard deviation without any sampling error.

`tests/references/schedulers.*` contain the steps of diffusers' schedulers for random network outputs, made by
tools/make_references.py.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from paths import REFERENCES
from safetensors.numpy import load_file

from zoo.sampling.diffusion.loop import keep_known, prior, sample
from zoo.sampling.diffusion.noise_levels import edm_grid, even_grid, make_grid
from zoo.sampling.diffusion.noise_schedule import Level, VariancePreserving, make_alpha_bar
from zoo.sampling.diffusion.prediction import solve, target_weights
from zoo.sampling.diffusion.rules import Now, ddim, ddpm, dpm_solver_pp, euler, heun

MEAN, STD = 0.4, 0.3
PATHS = {name: VariancePreserving(make_alpha_bar(name, 1000)) for name in ("linear", "cosine")}
LINEAR = PATHS["linear"]
KEY = jax.random.key(0)
SHAPE = (4, 4, 3)
ROWS = np.arange(8)
# One shape for most tests, so that little has to be compiled.
NOISE = np.asarray(prior(KEY, jnp.asarray(ROWS), SHAPE))
IMAGES = np.linspace(-0.4, 1.2, 8, dtype=np.float32)[:, None, None, None] * np.ones((8, *SHAPE), np.float32)
KNOWN = np.broadcast_to((np.arange(4) < 2)[None, None, :, None], (8, 4, 4, 1))
MANY = np.asarray(prior(KEY, jnp.asarray(ROWS), (32, 32, 3)))


def alpha_bar_at(alpha_bar, t):
    """alpha_bar at fractional times, with the log of the signal-to-noise ratio interpolated."""
    log_snr = jnp.log(alpha_bar) - jnp.log1p(-alpha_bar)
    return jax.nn.sigmoid(jnp.interp(t, jnp.arange(len(alpha_bar), dtype=jnp.float32), log_snr))


def to_eps(x_0, x_t, ab):
    """The noise in x_t, by DDPM's equation 4."""
    return (x_t - jnp.sqrt(ab) * x_0) / jnp.sqrt(1 - ab)


def gaussian(alpha_bar):
    """The best denoiser where pixels are independent, N(MEAN, STD^2)."""

    def denoise(x_t, t):
        ab = alpha_bar_at(alpha_bar, t)[:, None, None, None]
        x_0 = MEAN + STD**2 * jnp.sqrt(ab) / (ab * STD**2 + 1 - ab) * (x_t - jnp.sqrt(ab) * MEAN)
        return x_0, to_eps(x_0, x_t, ab)

    return denoise


def uniform_images(alpha_bar):
    """The best denoiser where all pixels of an image are equal, one draw of N(MEAN, STD^2)."""

    def denoise(x_t, t):
        ab = alpha_bar_at(alpha_bar, t)[:, None, None, None]
        seen = x_t.mean(axis=(1, 2, 3), keepdims=True)
        noise = (1 - ab) / (x_t[0].size)
        x_0 = MEAN + STD**2 * jnp.sqrt(ab) / (ab * STD**2 + noise) * (seen - jnp.sqrt(ab) * MEAN)
        x_0 = jnp.broadcast_to(x_0, x_t.shape)
        return x_0, to_eps(x_0, x_t, ab)

    return denoise


def untrained(alpha_bar):
    """A network whose eps has nothing to do with the image, so that x_0 is far out at the noisy end, and clipped."""

    def denoise(x_t, t):
        ab = alpha_bar_at(alpha_bar, t)[:, None, None, None]
        x_0 = jnp.clip((x_t - jnp.sqrt(1 - ab) * jnp.cos(5 * x_t)) / jnp.sqrt(ab), -1, 1)
        return x_0, to_eps(x_0, x_t, ab)

    return denoise


DATA = (gaussian, uniform_images, untrained)


@partial(jax.jit, static_argnames=("rule", "frames"))
def _walk(rule, frames, data, alpha_bar, x, grid, key, rows, known, x_0, **how):
    def denoise(x_t, t):
        return jax.lax.switch(data, [make(alpha_bar) for make in DATA], x_t, t)

    constrain = None if known is None else keep_known(x_0, known, grid)
    return sample(rule, denoise, x, grid, key, rows, constrain=constrain, frames=frames, **how)


def walk(rule, x, grid, *, data=gaussian, frames=0, path=LINEAR, key=KEY, rows=None, known=None, x_0=None, **how):
    """`sample`, compiled for each rule, number of frames, size, and whether something is known."""
    rows = np.arange(len(x)) if rows is None else rows
    kinds = {"eta": np.float32, "start": np.int32, "repeats": np.int32}
    numbers = {"eta": np.float32(0), "start": np.int32(0)} | {name: kinds[name](how[name]) for name in how}
    table, number = np.asarray(path.alpha_bar, np.float32), np.int32(DATA.index(data))
    made, strip = _walk(rule, frames, number, table, x, grid, key, rows, known, x_0, **numbers)
    return (np.asarray(made), jax.tree.map(np.asarray, strip)) if frames else np.asarray(made)


def moments(rule, grid, path=LINEAR):
    """Mean and standard deviation of what a deterministic sampler makes."""
    ends = np.where(ROWS[:, None, None, None] % 2, 1, -1) * np.ones((8, *SHAPE), np.float32)
    low, high = walk(rule, ends, grid, path=path)[:2, 0, 0, 0]
    return (low + high) / 2, (high - low) / 2


RULE_OF = {
    "DDPMScheduler": ddpm,
    "DDIMScheduler": ddim,
    "EulerDiscreteScheduler": euler,
    "HeunDiscreteScheduler": heun,
    "DPMSolverMultistepScheduler": dpm_solver_pp,
}
BETAS = {"linear": "linear", "squaredcos_cap_v2": "cosine"}


def load_schedulers(folder=REFERENCES):
    """Every case, its numbers and its table of alpha_bar."""
    arrays = load_file(folder / "schedulers.safetensors")
    cases = json.loads((folder / "schedulers.json").read_text())["cases"]
    for number, case in enumerate(cases):
        own = {name.split(".")[1]: value for name, value in arrays.items() if name.startswith(f"{number}.")}
        yield case, own, arrays["alpha_bar." + case["settings"].get("beta_schedule", "linear")]


def levels_of(case, arrays, alpha_bar):
    """Times and alpha_bar of a scheduler's levels."""
    t = arrays["timesteps"]
    if "sigmas" not in arrays:
        return t, alpha_bar[t.astype(int)]
    sigmas = arrays["sigmas"][:-1]
    if case["scheduler"] == "HeunDiscreteScheduler":  # which lists a level for each call
        t, sigmas = np.append(t[:1], t[1::2]), np.append(sigmas[:1], sigmas[1::2])
    return t, 1 / (1 + sigmas.astype(np.float64) ** 2)


@partial(jax.jit, static_argnames=("rule", "prediction"))
def advance(rule, prediction, grid, now, outputs):
    """One step with the given network outputs, of which the second is for a call at the next level."""

    def denoise(x_t, t):
        call = jnp.where(t[0] == grid.t[now.k], 0, 1)
        level = grid.level(now.k + call)
        return solve(outputs[call], x_t, level, target_weights(prediction, level))

    return rule(denoise, grid, now)


def check_rules(folder):
    for number, (case, arrays, alpha_bar) in enumerate(load_schedulers(folder)):
        rule, steps = RULE_OF[case["scheduler"]], case["steps"]
        t, levels = levels_of(case, arrays, alpha_bar)
        level = Level(np.sqrt(levels.astype(np.float64)), np.sqrt(1 - levels.astype(np.float64)))
        grid = jax.tree.map(jnp.asarray, make_grid(t.astype(np.float64), level, 1000))
        assert len(t) == steps
        calls = 2 if rule is heun else 1
        # Euler and Heun hold x_t / sqrt(alpha_bar).
        scale = np.sqrt(np.append(levels, 1.0)) if rule in (euler, heun) else np.ones(steps + 1)
        expected = np.append(arrays["x"][:-1:calls], arrays["x"][-1:], 0) * scale[:, None, None, None, None]
        outputs = jnp.asarray(np.append(arrays["outputs"], arrays["outputs"][-1:], 0))
        noise = arrays.get("noise", np.zeros_like(expected))
        x = x_0 = jnp.asarray(expected[0], jnp.float32)
        for k in range(steps):
            now = Now(x, jnp.int32(k), jnp.asarray(k == 0), x_0, jnp.asarray(noise[k]), jnp.float32(case["eta"]))
            x, x_0 = advance(rule, case["prediction"], grid, now, outputs[calls * k : calls * k + 2])
            size = max(1, abs(expected[k + 1]).max())
            np.testing.assert_allclose(x, expected[k + 1], atol=2e-4 * size, err_msg=f"case {number}, step {k}: {case}")


def check_grids(folder):
    compared = []
    for case, arrays, alpha_bar in load_schedulers(folder):
        settings, schedule = case["settings"], BETAS[case["settings"].get("beta_schedule", "linear")]
        own = PATHS[schedule]
        np.testing.assert_allclose(own.alpha_bar, alpha_bar, rtol=1e-3, atol=1e-6)
        t, levels = levels_of(case, arrays, alpha_bar)
        if case["steps"] == 1:
            continue  # diffusers' single step begins at t = 0, where there is no noise to remove
        if case["scheduler"] == "DDPMScheduler":
            grid = even_grid(own, case["steps"])
            np.testing.assert_array_equal(grid.t[: case["steps"]], t)
        elif settings.get("use_karras_sigmas"):
            grid = edm_grid(own, case["steps"])
            # DPMSolverMultistepScheduler rounds the times at which the network is called; its levels are the same.
            near = 0.5 if case["scheduler"] == "DPMSolverMultistepScheduler" else 0.05
            np.testing.assert_allclose(grid.t[: case["steps"]], t, atol=near + 1e-3)
        else:
            continue
        compared.append(case["scheduler"])
        np.testing.assert_allclose(grid.signal[: case["steps"]] ** 2, levels, rtol=2e-3, atol=1e-6)
        # The time that the network receives is that of the noise in the images.
        at_t = alpha_bar_at(jnp.asarray(own.alpha_bar, jnp.float32), jnp.asarray(grid.t[: case["steps"]]))
        np.testing.assert_allclose(1 - at_t, grid.noise[: case["steps"]] ** 2, rtol=2e-3)
        assert grid.signal[case["steps"]] == 1
        assert grid.noise[case["steps"]] == 0
    assert len(set(compared)) == 4

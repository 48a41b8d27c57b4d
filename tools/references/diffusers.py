"""References of diffusers: U-Nets, noise schedules and samplers."""

from pathlib import Path

import numpy as np
import torch
from references.files import write_arrays, write_json

UNETS = {
    "unet": {"sample_size": 12, "in_channels": 1, "out_channels": 1, "num_class_embeds": 4, "attention_head_dim": 4,
             "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
             "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
             "block_out_channels": [8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
    # Settings of networks converted from DDPM's checkpoints that differ from the defaults.
    "unet_ddpm": {"sample_size": 8, "attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1,
                  "downsample_padding": 0, "norm_eps": 1e-6, "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
                  "up_block_types": ["UpBlock2D", "AttnUpBlock2D"], "block_out_channels": [8, 16],
                  "layers_per_block": 2, "norm_num_groups": 4},
}  # fmt: skip


def draw_parameters(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Gives a U-Net random parameters, with scales of normalisation near 1."""
    for key, parameter in sorted(model.named_parameters()):
        noise = rng.standard_normal(parameter.shape)
        is_scale = "norm" in key and key.endswith("weight")
        value = 1 + 0.3 * noise if is_scale else noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)
        parameter.data = torch.tensor(value, dtype=torch.float32)


def write_unet_references(folder: Path, seed: int) -> None:
    """Writes small U-Nets of diffusers and their `output` for images `x` [b h w c], times `t` and classes."""
    from diffusers import UNet2DModel

    for number, (name, config) in enumerate(UNETS.items()):
        rng = np.random.default_rng([seed, 300 + number])
        model = UNet2DModel(**config).eval()
        draw_parameters(model, rng)
        model.save_pretrained(folder / name)
        size, colours = config["sample_size"], config.get("in_channels", 3)
        x = torch.tensor(rng.standard_normal((3, colours, size, size)), dtype=torch.float32)
        t, classes = torch.tensor([0.0, 13.25, 999.0]), torch.tensor([3, 0, 2])
        with torch.no_grad():
            output = model(x, t, classes if "num_class_embeds" in config else None).sample
        arrays = {"x": x.permute(0, 2, 3, 1), "t": t, "classes": classes.int(), "output": output.permute(0, 2, 3, 1)}
        write_arrays(folder / name / "expected.safetensors", {key: value.numpy() for key, value in arrays.items()})


CAPTIONED = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "block_out_channels": [8, 16], "layers_per_block": 1,
    "norm_num_groups": 4, "cross_attention_dim": 6, "attention_head_dim": 2, "use_linear_projection": True,
    "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 6,
}  # fmt: skip
"""A `UNet2DConditionModel`, whose `attention_head_dim` is the number of heads, and whose classes are vectors."""


def write_captioned_unet_reference(folder: Path, seed: int) -> None:
    """Writes a small U-Net with cross-attention of diffusers and its `output` for images `x` [b h w c], times `t` and
    `features` of captions, of which `length` of each row are real and the first is also its class."""
    from diffusers import UNet2DConditionModel

    rng = np.random.default_rng([seed, 305])
    model = UNet2DConditionModel(**CAPTIONED).eval()
    draw_parameters(model, rng)
    model.save_pretrained(folder / "unet_captions")
    x = torch.tensor(rng.standard_normal((3, 3, 8, 8)), dtype=torch.float32)
    features = torch.tensor(rng.standard_normal((3, 5, 6)), dtype=torch.float32)
    t, length = torch.tensor([0.0, 13.25, 999.0]), torch.tensor([5, 2, 3])
    mask = torch.arange(5)[None] < length[:, None]
    with torch.no_grad():
        output = model(x, t, features, features[:, 0], encoder_attention_mask=mask).sample
    arrays = {
        "x": x.permute(0, 2, 3, 1), "t": t, "features": features, "length": length.int(),
        "output": output.permute(0, 2, 3, 1),
    }  # fmt: skip
    write_arrays(folder / "unet_captions" / "expected.safetensors", {key: v.numpy() for key, v in arrays.items()})


EVEN, KARRAS = {"timestep_spacing": "linspace"}, {"use_karras_sigmas": True}
COSINE, NO_CLIP = {"beta_schedule": "squaredcos_cap_v2"}, {"clip_sample": False}
SCHEDULERS = [
    ("DDPMScheduler", 7, "eps", 0.0, EVEN | NO_CLIP),
    ("DDPMScheduler", 7, "x0", 0.0, EVEN | NO_CLIP | COSINE),
    # With other spacings, this scheduler does not step to the next of its own levels.
    ("DDIMScheduler", 8, "eps", 0.0, {"timestep_spacing": "trailing"} | NO_CLIP),
    ("DDIMScheduler", 8, "v", 0.6, {"timestep_spacing": "trailing"} | NO_CLIP),
    ("DDIMScheduler", 8, "x0", 1.0, {"timestep_spacing": "leading"} | NO_CLIP | COSINE),
    ("EulerDiscreteScheduler", 6, "eps", 0.0, KARRAS),
    ("EulerDiscreteScheduler", 9, "v", 0.0, KARRAS | COSINE | {"sigma_max": float(np.exp(5.1))}),
    ("HeunDiscreteScheduler", 6, "eps", 0.0, KARRAS),
    ("HeunDiscreteScheduler", 1, "v", 0.0, KARRAS),
    ("DPMSolverMultistepScheduler", 6, "eps", 0.0, KARRAS),
    ("DPMSolverMultistepScheduler", 20, "v", 0.0, KARRAS),
    ("DPMSolverMultistepScheduler", 20, "x0", 0.0, EVEN),
]
"""(scheduler, steps, prediction type, eta, other settings) of diffusers."""


def scheduler_reference(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Trajectories of diffusers' schedulers for random noise and random network outputs.

    `x` [calls + 1 ...] is the scheduler's sample before each call of the network and at the end, `outputs` are the
    network's outputs, and `noise` is the noise of each step, if any. Euler's and Heun's x has scale sqrt(1 + sigma^2).
    """
    import diffusers

    predictions = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    common = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    arrays: dict[str, np.ndarray] = {}
    cases = []
    for number, (name, steps, prediction, eta, settings) in enumerate(SCHEDULERS):
        cases.append({"scheduler": name, "steps": steps, "prediction": prediction, "eta": eta, "settings": settings})
        make = getattr(diffusers, name)
        scheduler = make(prediction_type=predictions[prediction], **common, **settings)
        scheduler.set_timesteps(steps)
        x = torch.tensor(rng.standard_normal((2, 2, 2, 3)), dtype=torch.float32) * scheduler.init_noise_sigma
        calls: dict[str, list] = {"x": [x], "outputs": [], "noise": []}
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            output = torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
            calls["outputs"].append(output)
            if name == "DDPMScheduler":
                # This scheduler draws its own noise, which an equal generator reproduces.
                calls["noise"].append(torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t))))
                step = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(int(t)))
            elif eta:
                noise = torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
                calls["noise"].append(noise)
                step = scheduler.step(output, t, x, eta, variance_noise=noise)
            else:
                step = scheduler.step(output, t, x)
            x = step.prev_sample
            calls["x"].append(x)
        arrays |= {f"{number}.{kind}": torch.stack(values).numpy() for kind, values in calls.items() if values}
        arrays[f"{number}.timesteps"] = scheduler.timesteps.float().numpy()
        if hasattr(scheduler, "sigmas"):
            arrays[f"{number}.sigmas"] = scheduler.sigmas.float().numpy()
    for schedule in ("linear", "squaredcos_cap_v2"):
        scheduler = diffusers.DDPMScheduler(beta_schedule=schedule, **common)
        arrays[f"alpha_bar.{schedule}"] = scheduler.alphas_cumprod.numpy()
    return arrays, cases


def write_scheduler_references(folder: Path, seed: int) -> None:
    """Writes the references of diffusers' noise schedules and samplers."""
    arrays, cases = scheduler_reference(np.random.default_rng([seed, 200]))
    write_arrays(folder / "schedulers.safetensors", arrays)
    write_json(folder / "schedulers.json", {"cases": cases})


DIT = {
    "sample_size": 8, "in_channels": 2, "patch_size": 2, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 4, "num_embeds_ada_norm": 3, "norm_eps": 1e-6,
}  # fmt: skip


def write_dit_reference(folder: Path, seed: int) -> None:
    """Writes a small DiT of diffusers and its `output` for images `x` [b h w c], times `t` and classes.

    Each block of diffusers' DiT embeds time and class with weights of its own; here they are those of the first.
    """
    from diffusers import DiTTransformer2DModel

    rng = np.random.default_rng([seed, 310])
    model = DiTTransformer2DModel(**DIT).eval()
    for _, parameter in sorted(model.named_parameters()):
        noise = rng.standard_normal(parameter.shape)
        parameter.data = torch.tensor(
            noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3), dtype=torch.float32
        )
    first, *others = (block.norm1.emb for block in model.transformer_blocks)
    for embedding in others:
        embedding.load_state_dict(first.state_dict())
    model.save_pretrained(folder / "dit")
    x = torch.tensor(rng.standard_normal((3, 2, 8, 8)), dtype=torch.float32)
    t, classes = torch.tensor([0.0, 13.25, 999.0]), torch.tensor([3, 0, 2])
    with torch.no_grad():
        output = model(x, t, classes).sample[:, :2]
    arrays = {"x": x.permute(0, 2, 3, 1), "t": t, "classes": classes.int(), "output": output.permute(0, 2, 3, 1)}
    write_arrays(folder / "dit" / "expected.safetensors", {key: value.numpy() for key, value in arrays.items()})


FLOWS = [{"steps": 5, "shift": 1.0}, {"steps": 8, "shift": 3.0}]


def write_flow_reference(folder: Path, seed: int) -> None:
    """Writes steps of diffusers' flow-matching Euler scheduler for random velocities, on SD3's sigmas.

    `x` [steps + 1 ...] is the sample at each level, `outputs` are the velocities, `timesteps` the network's times.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    rng = np.random.default_rng([seed, 320])
    arrays: dict[str, np.ndarray] = {}
    for number, case in enumerate(FLOWS):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=case["shift"])
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / case["steps"], case["steps"]))
        x = [torch.tensor(rng.standard_normal((2, 2, 2, 3)), dtype=torch.float32)]
        outputs = torch.tensor(rng.standard_normal((case["steps"], 2, 2, 2, 3)), dtype=torch.float32)
        for t, output in zip(scheduler.timesteps, outputs, strict=True):
            x.append(scheduler.step(output, t, x[-1]).prev_sample)
        arrays |= {f"{number}.x": torch.stack(x).numpy(), f"{number}.outputs": outputs.numpy()}
        arrays[f"{number}.timesteps"] = scheduler.timesteps.numpy()
    write_arrays(folder / "flow.safetensors", arrays)
    write_json(folder / "flow.json", {"cases": FLOWS})

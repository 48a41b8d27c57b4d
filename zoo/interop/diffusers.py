"""Reads and writes `UNet2DModel`, the U-Net of Hugging Face's `diffusers`, without PyTorch or diffusers.

    python -m zoo.interop.diffusers FOLDER RUNDIR            makes a run directory from a checkpoint
    python -m zoo.interop.diffusers --export RUNDIR FOLDER   writes a run's weights for `UNet2DModel.from_pretrained`

FOLDER contains config.json and diffusion_pytorch_model.safetensors, or is the folder of a pipeline with these in unet/;
the noise schedule is in scheduler/scheduler_config.json. Reading uses every tensor and fills every parameter, or fails;
a setting without an equivalent here is an error that names it.

A network with classes has one more class vector in the zoo than there are classes: the last one means no class.
Reading appends zeros for it, or with --no-class-last uses the checkpoint's last vector; writing keeps it.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from zoo.core.errors import UserError, run_script
from zoo.data.images import Images
from zoo.data.specs import ImageSpec
from zoo.ddpm import DDPM
from zoo.harness.checkpoint import flatten
from zoo.harness.config import Run
from zoo.harness.platform import prepare
from zoo.harness.trained import load_run
from zoo.interop.checkpoint_files import Entry, Settings, check_free, fill, gather, load_tensors, read_object
from zoo.interop.imported_run import under, write_run
from zoo.nets.unet import UNet, UNetSettings
from zoo.nn.group_norm import GroupNorm
from zoo.sampling.diffusion.noise_schedule import Schedule
from zoo.sampling.diffusion.prediction import Prediction

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SCHEDULES: dict[str, Schedule] = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
OPTIONS: dict[str, tuple[str, Any]] = {
    "layers": ("layers_per_block", 2),
    "groups": ("norm_num_groups", 32),
    "dropout": ("dropout", 0.0),
    "norm_epsilon": ("norm_eps", 1e-5),
    "cos_first": ("flip_sin_to_cos", True),
    "frequency_shift": ("freq_shift", 0),
}
"""Options of the U-Net that have the same values in diffusers: their name and default there."""
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of attention layers before diffusers 0.15."""


def read_diffusers(folder: str | Path, no_class_last: bool = False) -> tuple[DDPM, ImageSpec, dict[str, Any]]:
    """Reads a checkpoint in the layout of diffusers.

    Args:
        folder: the folder of a `UNet2DModel`, or of a pipeline with one.
        no_class_last: whether the last class of the checkpoint means no class.

    Returns:
        The family, the spec of its images, and the parameters of its `UNet`, float32.

    Raises:
        UserError: a file is missing or broken, a setting has no equivalent here, or tensors are missing, unused or of
            another shape; the message names it.
    """
    folder = Path(folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    settings = Settings(read_object(unet / CONFIG))
    family, spec = _to_family(settings, no_class_last)
    if scheduler.is_file():
        family = _with_schedule(family, Settings(read_object(scheduler)))
    tensors = {_present_name(name): value for name, value in load_tensors(unet / WEIGHTS).items()}
    if family.conditional and not no_class_last:
        classes = tensors["class_embedding.weight"]
        tensors["class_embedding.weight"] = np.concatenate([classes, np.zeros_like(classes[:1])])
    unet_settings = family.unet_settings(spec)
    if _groups(unet_settings) != family.groups:
        raise UserError(
            f"config.json has norm_num_groups = {family.groups}, one for each channel; here every group must have two"
        )
    params = fill(list(_entries(unet_settings)), tensors)
    return family, spec, params


def write_diffusers(folder: str | Path, family: DDPM, spec: ImageSpec, params: dict[str, Any]) -> None:
    """Writes a checkpoint that `UNet2DModel.from_pretrained(folder)` reads, and the noise schedule beside it.

    Args:
        folder: new, or empty.
        family: the family.
        spec: spec of its images.
        params: the parameters of its `UNet`.

    Raises:
        UserError: the folder is not empty, the network is no U-Net, or the number of groups differs between layers.
    """
    folder = Path(folder)
    check_free(folder)
    if family.network != "unet":
        raise UserError(f"family.network is {family.network}; it must be unet to be written as a `UNet2DModel`")
    s = family.unet_settings(spec)
    if s.caption is not None:
        raise UserError("the network reads captions with an encoder of its own, for which `UNet2DModel` has no place")
    groups = _groups(s)
    if not groups:
        raise UserError(
            f"family.groups is {family.groups}, but layers with few channels have fewer; in diffusers all have the same"
        )
    kinds = ["AttnDownBlock2D" if s.attends(level) else "DownBlock2D" for level in range(len(s.channels))]
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": spec.height if spec.height == spec.width else [spec.height, spec.width],
        "in_channels": spec.channels,
        "out_channels": spec.channels,
        "block_out_channels": list(s.channels),
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        **{theirs: getattr(s, ours) for ours, (theirs, _) in OPTIONS.items()},
        "norm_num_groups": groups,
        "attention_head_dim": s.head_width or None,
        "downsample_padding": int(s.pad_evenly),
        "num_class_embeds": s.symbols or None,
    }
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": family.timesteps,
        "beta_schedule": {ours: theirs for theirs, ours in SCHEDULES.items()}[family.schedule],
        "beta_start": 0.1 / family.timesteps,
        "beta_end": 20 / family.timesteps,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[family.prediction],
        "clip_sample": family.clip,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, values in ((folder / CONFIG, config), (folder / "scheduler" / "scheduler_config.json", scheduler)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    save_file(gather(list(_entries(s)), params), folder / WEIGHTS, metadata={"format": "pt"})


def import_run(folder: str | Path, rundir: str | Path, no_class_last: bool = False) -> None:
    """Makes a run directory whose only checkpoint, at step 0, has the weights of a diffusers checkpoint."""
    prepare()
    check_free(Path(rundir))
    family, spec, params = read_diffusers(folder, no_class_last)
    # The data is only the default for evaluate.py: embedded images of the same size.
    colours = {1: Images(size=spec.height), 3: Images(embedded="emoji", size=spec.height)}
    run = Run(family=family, data=colours[spec.channels], rundir=str(rundir))
    write_run(run, spec, under("net.params", params))


def export_run(rundir: str | Path, folder: str | Path) -> None:
    """Writes the evaluation weights of a trained diffusion model in the layout of diffusers."""
    model = load_run(rundir).model
    if not isinstance(model.family, DDPM):
        raise UserError(f"{rundir} holds a {type(model.family).__name__}; only a DDPM can be exported")
    write_diffusers(folder, model.family, model.spec, model.state.net.eval_params)


def _to_family(settings: Settings, no_class_last: bool) -> tuple[DDPM, ImageSpec]:
    """The family and the spec that a config.json describes."""
    for name, *right in (
        ("_class_name", "UNet2DModel"), ("act_fn", "silu"), ("add_attention", True), ("center_input_sample", False),
        ("downsample_type", "conv"), ("upsample_type", "conv"), ("mid_block_type", "UNetMidBlock2D"),
        ("mid_block_scale_factor", 1.0), ("resnet_time_scale_shift", "default"), ("time_embedding_type", "positional"),
        ("downsample_padding", 1, 0), ("freq_shift", 0, 1), ("in_channels", 3, 1),
    ):  # fmt: skip
        settings.must(name, *right)
    for name in ("class_embed_type", "attn_norm_num_groups", "time_embedding_dim"):
        if settings.values.get(name) is not None:
            raise UserError(f"config.json has {name} = {settings.values[name]!r}, which has no equivalent here")
    colours = settings.get("in_channels", 3)
    settings.must("out_channels", colours)
    size = settings.values.get("sample_size")
    height, width = (size, size) if isinstance(size, int) else size or (0, 0)
    if not height or not width:
        raise UserError(f"config.json has sample_size = {size!r}; it must be the height and width of the images")
    channels = tuple(settings.get("block_out_channels", [224, 448, 672, 896]))
    down = settings.get("down_block_types", ["DownBlock2D", *["AttnDownBlock2D"] * 3])
    up = settings.get("up_block_types", [*["AttnUpBlock2D"] * 3, "UpBlock2D"])
    if not set(down) <= {"DownBlock2D", "AttnDownBlock2D"} or up != [kind.replace("Down", "Up") for kind in down[::-1]]:
        raise UserError(
            f"config.json has down_block_types = {down} and up_block_types = {up}; here they are DownBlock2D and "
            "AttnDownBlock2D, and their counterparts in the other order"
        )
    rows = settings.get("num_class_embeds", 0)
    # In diffusers, None means one head, and a missing value means 8 features per head.
    head_width = settings.get("attention_head_dim", 8) if settings.values.get("attention_head_dim", 8) else 0
    family = DDPM(
        **{ours: settings.get(theirs, default) for ours, (theirs, default) in OPTIONS.items()},
        channels=channels,
        attention=tuple(height >> level for level, kind in enumerate(down) if kind.startswith("Attn")),
        head_width=head_width,
        conditional=rows > 0,
        label_dropout=0.1 if no_class_last else 0.0,
        pad_evenly=settings.get("downsample_padding", 1) == 1,
    )
    return family, ImageSpec(height, width, colours, tuple(str(i) for i in range(rows - no_class_last)))


def _with_schedule(family: DDPM, settings: Settings) -> DDPM:
    """The family with the noise schedule of scheduler_config.json."""
    settings.must("beta_schedule", *SCHEDULES)
    settings.must("prediction_type", *PREDICTIONS)
    timesteps, schedule = settings.get("num_train_timesteps", 1000), settings.get("beta_schedule", "linear")
    if schedule == "linear":
        settings.must("beta_start", 0.1 / timesteps)
        settings.must("beta_end", 20 / timesteps)
    return replace(
        family,
        timesteps=timesteps,
        schedule=SCHEDULES[schedule],
        prediction=PREDICTIONS[settings.get("prediction_type", "epsilon")],
        clip=settings.get("clip_sample", True),
    )


def _present_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _groups(s: UNetSettings) -> int:
    """The number of groups in every normalisation; 0 if they differ."""
    net = nnx.eval_shape(lambda: UNet(s, nnx.Rngs(0)))
    groups = {module.groups for _, module in nnx.iter_graph(net) if isinstance(module, GroupNorm)}
    return groups.pop() if len(groups) == 1 else 0


# ----------------------------------------------------------------------------- which tensors are which parameters

NAMES = (
    (r"^(down|up)\.(\d+)\.resize\.", r"\1_blocks.\2.\1samplers.0."),
    (r"^(down|up)\.(\d+)\.layers\.(\d+)\.", r"\1_blocks.\2.KIND.\3."),
    (r"^middle\.(\d+)\.", r"mid_block.KIND.\1."),
    (r"KIND\.(\d+)\.residual\.", r"resnets.\1."),
    (r"KIND\.(\d+)\.attention\.", r"attentions.\1."),
    (r"^time_in\.", "time_embedding.linear_1."),
    (r"^time_out\.", "time_embedding.linear_2."),
    (r"^classes\.table$", "class_embedding.weight"),
    (r"^norm_out\.", "conv_norm_out."),
    (r"(resnets\.\d+)\.(norm|conv)_in\.", r"\1.\g<2>1."),
    (r"(resnets\.\d+)\.(norm|conv)_out\.", r"\1.\g<2>2."),
    (r"(resnets\.\d+)\.time\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+)\.shortcut\.", r"\1.conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
    (r"\.(kernel|scale)$", ".weight"),
)
"""Regular expressions, applied in order, that turn a parameter's path into its tensor's name."""


def _entries(s: UNetSettings) -> Iterator[Entry]:
    """Yields the entries of all parameters of a network."""
    net = nnx.eval_shape(lambda: UNet(s, nnx.Rngs(0)))
    for path, leaf in flatten(nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[1])).items():
        name = path
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        names = [name.replace(".qkv.", f".to_{part}.") for part in "qkv"] if ".qkv." in name else [name]
        transposed = path.endswith("kernel")
        *others, out = leaf.shape
        out //= len(names)
        # Convolutions are [height, width, in, out] in the zoo and [out, in, height, width] in diffusers.
        shape = (out, others[-1], *others[:-1]) if transposed else (*others, out)
        keys = tuple(int(key) if key.isdecimal() else key for key in path.split("."))
        yield Entry(keys, dict.fromkeys(names, shape), transposed)


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the checkpoint's folder, or with --export the run directory")
    parser.add_argument("target", help="the run directory to make, or with --export the folder to write")
    parser.add_argument("--export", action="store_true", help="from a run directory to the layout of diffusers")
    parser.add_argument("--no-class-last", action="store_true", help="the last class means no class")
    arguments = parser.parse_args()
    if arguments.export:
        export_run(arguments.source, arguments.target)
    else:
        import_run(arguments.source, arguments.target, arguments.no_class_last)
    print(f"wrote {arguments.target}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)

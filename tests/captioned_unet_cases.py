"""The U-Net with cross-attention on the weights of diffusers' `UNet2DConditionModel`."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from zoo.harness.checkpoint import flatten, unflatten
from zoo.nets.captions import CaptionSettings, Context
from zoo.nets.unet import UNet, UNetSettings

SETTINGS = UNetSettings(
    height=8, features_in=3, channels=(8, 16), layers=1, attention=(4,), head_width=8, groups=4,
    caption=CaptionSettings(symbols=7, positions=5, width=6, layers=1, heads=2),
)  # fmt: skip

NAMES = (
    (r"^(down|up)\.(\d+)\.resize\.", r"\1_blocks.\2.\1samplers.0."),
    (r"^(down|up)\.(\d+)\.layers\.(\d+)\.", r"\1_blocks.\2.KIND.\3."),
    (r"^middle\.(\d+)\.", r"mid_block.KIND.\1."),
    (r"KIND\.(\d+)\.residual\.", r"resnets.\1."),
    (r"KIND\.(\d+)\.attention\.", r"attentions.\1."),
    (r"^time_(in|out)\.", lambda found: f"time_embedding.linear_{1 + (found[1] == 'out')}."),
    (r"^caption_vector\.", "class_embedding."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"(resnets\.\d+)\.(norm|conv)_in\.", r"\1.\g<2>1."),
    (r"(resnets\.\d+)\.(norm|conv)_out\.", r"\1.\g<2>2."),
    (r"(resnets\.\d+)\.time\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+)\.shortcut\.", r"\1.conv_shortcut."),
    (r"(attentions\.\d+)\.(in|out)ward\.", r"\1.proj_\2."),
    (r"(attentions\.\d+)\.self_norm\.", r"\1.transformer_blocks.0.norm1."),
    (r"(attentions\.\d+)\.cross_norm\.", r"\1.transformer_blocks.0.norm2."),
    (r"(attentions\.\d+)\.mlp_norm\.", r"\1.transformer_blocks.0.norm3."),
    (r"(attentions\.\d+)\.attention\.out\.", r"\1.transformer_blocks.0.attn1.to_out.0."),
    (r"(attentions\.\d+)\.attention\.qkv\.", r"\1.transformer_blocks.0.attn1.to_qkv."),
    (r"(attentions\.\d+)\.cross\.out\.", r"\1.transformer_blocks.0.attn2.to_out.0."),
    (r"(attentions\.\d+)\.cross\.query\.", r"\1.transformer_blocks.0.attn2.to_q."),
    (r"(attentions\.\d+)\.cross\.key_value\.", r"\1.transformer_blocks.0.attn2.to_kv."),
    (r"(attentions\.\d+)\.mlp\.up\.", r"\1.transformer_blocks.0.ff.net.0.proj."),
    (r"(attentions\.\d+)\.mlp\.down\.", r"\1.transformer_blocks.0.ff.net.2."),
    (r"\.(kernel|scale)$", ".weight"),
)


def ours(theirs: dict[str, np.ndarray], path: str, shape: tuple[int, ...], used: set[str]) -> np.ndarray:
    """The value of one of our parameters, from their tensors."""
    name = path
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    if name.endswith("attn1.to_qkv.bias"):
        return np.zeros(shape, np.float32)  # theirs have none
    joined = re.fullmatch(r"(.*\.to_)(qkv|kv)(\.weight)", name)
    names = [f"{joined[1]}{part}{joined[3]}" for part in joined[2]] if joined else [name]
    used |= {*names}
    value = np.concatenate([theirs[each] for each in names]) if joined else theirs[name]
    if ".net.0.proj." in name:
        value = np.concatenate(np.split(value, 2)[::-1])  # their value comes before the gate
    if path.endswith("kernel"):
        value = np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim == 4 else value.T
    return value


def check_captioned_unet(folder: Path) -> None:
    """Our output is theirs, and every tensor of theirs is used."""
    theirs = load_file(folder / "unet_captions" / "diffusion_pytorch_model.safetensors")
    expected, used = load_file(folder / "unet_captions" / "expected.safetensors"), set()
    graphdef, params, rest = nnx.split(UNet(SETTINGS, nnx.Rngs(0)), nnx.Param, ...)
    like = nnx.to_pure_dict(params)
    flat = flatten(like)
    read = {
        path: leaf if path.startswith("captions.") else ours(theirs, path, leaf.shape, used)
        for path, leaf in flat.items()
    }
    assert used == theirs.keys()
    assert all(read[path].shape == leaf.shape for path, leaf in flat.items())
    net = nnx.merge(graphdef, jax.tree.map(jnp.asarray, unflatten(like, read)), nnx.to_pure_dict(rest))
    context = Context(jnp.asarray(expected["features"]), jnp.asarray(expected["length"]))
    found = jax.jit(lambda x, t, context: net(x, t, context=context))(expected["x"], expected["t"], context)
    np.testing.assert_allclose(found, expected["output"], atol=3e-5)

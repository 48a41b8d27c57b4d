"""Small CLIPs on small captioned digits, and transformers' CLIP in the layout of `zoo.nets.clip_towers`."""

import json
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from zoo.clip import CLIP, info_nce, rivals
from zoo.core.family import Setup
from zoo.core.optimizer import Optimizer
from zoo.data.captions import CaptionedImages
from zoo.nets.clip_towers import Towers, TowerSettings, unit_vectors
from zoo.nets.transformer import BlockSettings

TINY = CLIP(layers=1, heads=2, width=16, features=8, patch=4)
DATA = CaptionedImages(size=16, digit_size=7, held_out_scenes=20, caption_dropout=0.0)
BATCH = 8
SGD = Optimizer(name="sgd", learning_rate=0.1, momentum=0.0, schedule="constant")


@cache
def opened(dropout: float = 0.0):
    """The data; `dropout` is the share of empty captions."""
    return replace(DATA, caption_dropout=dropout).open(length=None, batch_size=BATCH, seed=0)


def first_state(family=TINY, optimizer=SGD, spec=None):
    setup = Setup(optimizer, total_steps=10, batch_size=BATCH)
    return family.init(spec or opened().spec, setup, jax.random.key(0))


@cache
def tiny_state():
    """The first state of `TINY`."""
    return jax.jit(first_state)()


def load_clip(folder):
    """The towers with the weights of a CLIPModel, by their names there."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    text, vision = config["text_config"], config["vision_config"]

    def blocks(part):
        return BlockSettings(
            layers=part["num_hidden_layers"], width=part["hidden_size"], heads=part["num_attention_heads"],
            hidden=part["intermediate_size"],
        )  # fmt: skip

    side = vision["image_size"] // vision["patch_size"]
    settings = TowerSettings(
        rows=side, columns=side, channels=vision["num_channels"], patch=vision["patch_size"],
        symbols=text["vocab_size"], length=text["max_position_embeddings"], features=config["projection_dim"],
        image=blocks(vision), text=blocks(text),
    )  # fmt: skip
    graphdef, params, rest = nnx.split(nnx.eval_shape(lambda: Towers(settings, nnx.Rngs(0))), nnx.Param, ...)
    params = nnx.to_pure_dict(params)
    found = _tower(tensors, "text_model", text["num_hidden_layers"], "final_layer_norm", "text_projection")
    found["embedding"] = {"table": tensors["text_model.embeddings.token_embedding.weight"]}
    image = _tower(tensors, "vision_model", vision["num_hidden_layers"], "post_layernorm", "visual_projection")
    kernel = tensors["vision_model.embeddings.patch_embedding.weight"]  # [out, c, p, q]
    image |= {
        "patches": {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])},
        "symbol": tensors["vision_model.embeddings.class_embedding"],
        "first_norm": _norm(tensors, "vision_model.pre_layrnorm"),
    }
    filled = {"text": found, "image": image, "log_scale": tensors["logit_scale"]}
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, filled)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, filled), nnx.to_pure_dict(rest))


def _norm(tensors, name):
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _dense(tensors, *names):
    """Linear layers side by side, as one."""
    kernel = np.concatenate([tensors[f"{name}.weight"] for name in names]).T
    return {"kernel": kernel, "bias": np.concatenate([tensors[f"{name}.bias"] for name in names])}


def _tower(tensors, part, layers, norm, projection):
    blocks = {}
    for i in range(layers):
        layer = f"{part}.encoder.layers.{i}"
        qkv = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
        blocks[i] = {
            "attention_norm": _norm(tensors, f"{layer}.layer_norm1"),
            "attention": {"qkv": _dense(tensors, *qkv), "out": _dense(tensors, f"{layer}.self_attn.out_proj")},
            "mlp_norm": _norm(tensors, f"{layer}.layer_norm2"),
            "mlp": {"up": _dense(tensors, f"{layer}.mlp.fc1"), "down": _dense(tensors, f"{layer}.mlp.fc2")},
        }
    return {
        "position": {"table": tensors[f"{part}.embeddings.position_embedding.weight"]},
        "blocks": blocks,
        "norm": _norm(tensors, f"{part}.{norm}"),
        "projection": {"kernel": tensors[f"{projection}.weight"].T},
    }


def check_clip(folder):
    """Vectors of both towers, logits and loss are transformers'."""
    net, arrays = load_clip(folder), load_file(folder / "expected.safetensors")
    image, tokens, length = (jnp.asarray(arrays[name]) for name in ("image", "tokens", "length"))
    u, v = map(unit_vectors, jax.jit(lambda: (net.image(image), net.text(tokens, length)))())
    np.testing.assert_allclose(u, arrays["image_vectors"], atol=1e-5)
    np.testing.assert_allclose(v, arrays["text_vectors"], atol=1e-5)
    np.testing.assert_allclose(net.scale * (u @ v.T), arrays["logits"], atol=1e-4)
    nats = info_nce(u, v, net.scale, rivals(tokens))
    np.testing.assert_allclose(nats.mean(), arrays["loss"], rtol=1e-5)

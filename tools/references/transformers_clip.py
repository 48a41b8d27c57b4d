"""References of transformers: CLIP with small random weights and exact GELU."""

from pathlib import Path

import numpy as np
import torch
from references.files import write_arrays
from references.transformers import randomise
from transformers import CLIPConfig, CLIPModel

VOCABULARY = 40
LENGTH = 9
END = VOCABULARY - 1
"""Number of the end-of-text token, at which CLIP reads a caption."""


def write_clip_reference(folder: Path, seed: int) -> None:
    """Writes a small CLIP and its outputs for padded captions and random pictures: vectors, logits and loss."""
    rng = np.random.default_rng([seed, 800])
    common = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    config = CLIPConfig(
        projection_dim=10,
        text_config={
            "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "hidden_size": 12, "intermediate_size": 48,
            "bos_token_id": 0, "eos_token_id": END, "pad_token_id": END, **common,
        },
        vision_config={
            "image_size": 8, "patch_size": 4, "num_channels": 3, "hidden_size": 16, "intermediate_size": 64, **common,
        },
    )  # fmt: skip
    model = CLIPModel(config)
    randomise(model, rng)
    model.logit_scale.data = torch.tensor(2.3)
    target = folder / "clip"
    model.save_pretrained(target)
    length = torch.tensor([9, 3, 6, 4])
    tokens, place = torch.tensor(rng.integers(1, END, (4, LENGTH))), torch.arange(LENGTH)[None]
    tokens[:, 0] = 0
    tokens = torch.where(place < length[:, None] - 1, tokens, END)
    pixels = torch.tensor(rng.uniform(-1, 1, (4, 3, 8, 8)), dtype=torch.float32)
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=pixels, return_loss=True)
    write_arrays(target / "expected.safetensors", {
        "tokens": tokens.int().numpy(), "length": length.int().numpy(),
        "image": pixels.permute(0, 2, 3, 1).numpy(), "image_vectors": output.image_embeds.numpy(),
        "text_vectors": output.text_embeds.numpy(), "logits": output.logits_per_image.numpy(),
        "loss": output.loss.numpy(),
    })  # fmt: skip

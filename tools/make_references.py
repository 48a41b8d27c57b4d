"""Writes reference outputs of other libraries on small random weights, for the tests.

    pip install -e ".[parity]" && python tools/make_references.py tests/references

Each model of transformers has a folder in its own layout (config.json, model.safetensors, tokenizer.json) with
`expected.safetensors` (logits, loss, gradients) and `expected.json` (versions, greedy and beam-search continuations).
`processors.safetensors` and `processors.json` have logits before and after transformers' logits processors. Weights are
drawn by NumPy's generator, so that the files do not depend on PyTorch's. `tools/references/` has one file a library.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from references.diffusers import (
    write_captioned_unet_reference,
    write_dit_reference,
    write_flow_reference,
    write_scheduler_references,
    write_unet_references,
)
from references.files import write_arrays
from references.torch import recurrent_reference, write_dcgan_reference, write_legacy_reference
from references.torch_fidelity import write_metric_references
from references.transformers import write_transformers_references
from references.transformers_bert import write_bert_reference
from references.transformers_clip import write_clip_reference
from references.vector_quantize import library_versions, quantisation_reference


def write_references(folder: Path, seed: int) -> None:
    """Writes all references to `folder`; the same seed and versions give the same bytes."""
    torch.set_num_threads(1)
    write_transformers_references(folder, seed)
    write_bert_reference(folder, seed)
    write_clip_reference(folder, seed)
    write_scheduler_references(folder, seed)
    write_arrays(folder / "recurrent.safetensors", recurrent_reference(np.random.default_rng([seed, 600])))
    quantisers = quantisation_reference(np.random.default_rng([seed, 700]))
    write_arrays(folder / "quantisation.safetensors", quantisers, library_versions())
    write_unet_references(folder, seed)
    write_dit_reference(folder, seed)
    write_captioned_unet_reference(folder, seed)
    write_flow_reference(folder, seed)
    write_dcgan_reference(folder, seed)
    write_metric_references(folder, seed)
    write_legacy_reference(folder)


def main() -> None:
    """Parses the command line and writes the references."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the references go")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_references(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()

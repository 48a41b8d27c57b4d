"""Writes what other libraries compute on small random weights, for the tests to compare with.

    pip install -e ".[parity]" && python tools/make_references.py tests/references

For every model a folder in transformers' own layout (config.json, model.safetensors, tokenizer.json) and beside it
`expected.safetensors` (logits, loss, gradients) and `expected.json` (versions, greedy and beam-search continuations);
`processors.safetensors` and `processors.json` hold logits before and after transformers' logits processors. The weights
come from NumPy's generator, so that the same seed gives the same files whatever PyTorch does with its own.
`tools/references/` has one file a library.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from references.diffusers import write_scheduler_references, write_unet_references
from references.files import write_arrays
from references.torch import recurrent_reference, write_dcgan_reference, write_legacy_reference
from references.torch_fidelity import write_metric_references
from references.transformers import write_transformers_references
from references.transformers_bert import write_bert_reference


def write_references(folder: Path, seed: int) -> None:
    """Writes everything under `folder`; the same seed and versions give the same bytes."""
    torch.set_num_threads(1)
    write_transformers_references(folder, seed)
    write_bert_reference(folder, seed)
    write_scheduler_references(folder, seed)
    write_arrays(folder / "recurrent.safetensors", recurrent_reference(np.random.default_rng([seed, 600])))
    write_unet_references(folder, seed)
    write_dcgan_reference(folder, seed)
    write_metric_references(folder, seed)
    write_legacy_reference(folder)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the references go")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_references(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()

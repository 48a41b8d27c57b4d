"""References of vector-quantize-pytorch: a codebook by moving averages, and finite scalar quantisation."""

from importlib.metadata import version

import numpy as np
import torch
from vector_quantize_pytorch import FSQ, VectorQuantize

LIBRARIES = ("vector-quantize-pytorch", "torch", "numpy")
ROWS, POSITIONS, FEATURES, CODES, STEPS = 4, 5, 3, 6, 3
LEVELS = (8, 5, 4)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute these references."""
    return {name: version(name) for name in LIBRARIES}


def quantisation_reference(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Codes, quantised vectors and gradients of both quantisers, and the codebook before and after each of three steps.

    Gradients are those of `sum(quantised * towards)`, for the codebook plus 0.25 times the mean commitment error.
    """

    def draw(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)

    # With this epsilon the smoothing of counts, which the paper lacks, is below rounding.
    layer = VectorQuantize(FEATURES, CODES, decay=0.9, eps=1e-12, commitment_weight=0.25, rotation_trick=False)
    book = layer._codebook
    book.embed.copy_(draw(1, CODES, FEATURES))
    book.embed_avg.copy_(book.embed)
    found: dict[str, list[np.ndarray]] = {"vectors": [book.embed[0].numpy().copy()], "counts": [np.ones(CODES, "f4")]}
    for _ in range(STEPS):
        z, towards = draw(ROWS, POSITIONS, FEATURES).requires_grad_(), draw(ROWS, POSITIONS, FEATURES)
        quantised, codes, commitment = layer(z)
        ((quantised * towards).sum() + commitment.sum()).backward()
        step = {"z": z, "towards": towards, "codes": codes.int(), "quantised": quantised, "gradient": z.grad,
                "commitment": commitment.sum(), "vectors": book.embed[0], "counts": book.cluster_size[0]}  # fmt: skip
        for name, value in step.items():
            found.setdefault(name, []).append(value.detach().numpy().copy())
    arrays = {f"codebook.{name}": np.stack(values) for name, values in found.items()}

    z, towards = (2.0 * draw(ROWS, POSITIONS, len(LEVELS))).requires_grad_(), draw(ROWS, POSITIONS, len(LEVELS))
    scalars = FSQ(list(LEVELS))
    quantised, codes = scalars(z)
    (quantised * towards).sum().backward()
    every = torch.arange(int(np.prod(LEVELS)))
    fsq = {"z": z, "towards": towards, "codes": codes.int(), "quantised": quantised, "gradient": z.grad,
           "every": scalars.indices_to_codes(every), "levels": torch.tensor(LEVELS, dtype=torch.int32)}  # fmt: skip
    return arrays | {f"fsq.{name}": value.detach().numpy() for name, value in fsq.items()}

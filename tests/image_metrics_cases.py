"""Metrics of features that torch-fidelity has computed, too."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from zoo.metrics.features import classifier_score, frechet_distance, kernel_distance, precision_recall


def check_metrics(folder: Path) -> None:
    """Every figure is torch-fidelity's."""
    arrays = load_file(folder / "metrics.safetensors")
    for case in ("0", "1"):
        real, fake, logits = (arrays[f"{case}.{name}"] for name in ("real", "fake", "logits"))
        found = {
            "fid": frechet_distance(real, fake),
            "kid": kernel_distance(real, fake, subset_size=12),
            "precision_recall": precision_recall(real, fake),
            "score": classifier_score(logits),
        }
        for name, value in found.items():
            np.testing.assert_allclose(value, arrays[f"{case}.{name}"], rtol=1e-6, atol=1e-9, err_msg=name)

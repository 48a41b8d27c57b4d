"""References of torch-fidelity: metrics of features, and the features of Inception-v3."""

import zlib
from pathlib import Path

import numpy as np
import torch
from references.files import write_arrays


def import_torch_fidelity():
    """Imports the package without torchvision, which it needs only for metrics that are not compared here."""
    import importlib
    import sys
    from unittest.mock import MagicMock

    names = ["torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"]
    stood_in = {name: MagicMock() for name in names if name not in sys.modules}
    sys.modules.update(stood_in)
    try:
        return importlib.import_module("torch_fidelity")
    finally:
        for name in stood_in:
            del sys.modules[name]


def metric_reference(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Metrics of features: with more vectors than dimensions, and with fewer, whose covariance is singular."""
    import_torch_fidelity()
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    arrays = {}
    for number, (n, m, d) in enumerate([(60, 50, 8), (21, 17, 24)]):
        mix = rng.standard_normal((d, d)) / d**0.5
        real = np.maximum(rng.standard_normal((n, d)) @ mix, 0)
        fake = np.maximum(rng.standard_normal((m, d)) @ mix + 0.2, 0)
        logits = 3 * rng.standard_normal((m, 7))
        theirs = [torch.tensor(x) for x in (fake, real)]
        moments = [metric_fid.fid_features_to_statistics(x) for x in theirs]
        kid = metric_kid.kid_features_to_metric(*theirs[::-1], kid_subset_size=12, verbose=False)
        nearest = metric_prc.prc_features_to_metric(*theirs, verbose=False, save_cpu_ram=False)
        expected = {
            "fid": metric_fid.fid_statistics_to_metric(*moments, False)["frechet_inception_distance"],
            "kid": [kid["kernel_inception_distance_mean"], kid["kernel_inception_distance_std"]],
            "precision_recall": [nearest["precision"], nearest["recall"]],
            "score": metric_isc.isc_features_to_metric(torch.tensor(logits), splits=1)["inception_score_mean"],
        }
        arrays |= {f"{number}.{name}": np.float64(x) for name, x in (expected | {"real": real, "fake": fake}).items()}
        arrays[f"{number}.logits"] = logits
    return arrays


def random_tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A reproducible random value for a tensor of Inception's, scaled so that activations keep their size."""
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return 1 + 0.2 * np.tanh(noise) if name.endswith(("bn.weight", "running_var")) else 0.2 * noise


def narrow(module: torch.nn.Module, factor: int) -> None:
    """Divides the channels of every convolution in a module, except the colour channels of the input."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Conv2d):
            channels = child.in_channels if child.in_channels == 3 else child.in_channels // factor
            place = (child.kernel_size, child.stride, child.padding)
            setattr(module, name, torch.nn.Conv2d(channels, child.out_channels // factor, *place, bias=False))
        elif isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, torch.nn.BatchNorm2d(child.num_features // factor, eps=child.eps))
        elif isinstance(child, torch.nn.Linear):
            setattr(module, name, torch.nn.Linear(child.in_features // factor, child.out_features))
        else:
            narrow(child, factor)


def write_inception_reference(folder: Path, seed: int, factor: int) -> None:
    """Writes features and logits of torch-fidelity's Inception-v3, narrowed, with weights from `random_tensor`."""
    from unittest import mock

    import_torch_fidelity()
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3
    with mock.patch.object(network, "load_state_dict"), mock.patch.object(theirs, "load_state_dict_from_url"):
        model = network("inception-v3-compat", ["2048", "logits_unbiased"])
    narrow(model, factor)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items() if x.is_floating_point()}
    tensors = {name: torch.tensor(random_tensor(seed, name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(tensors, strict=False)
    model.eval()
    images = np.random.default_rng([seed, 501]).integers(0, 256, (2, 20, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        features, logits = model(torch.tensor(images).permute(0, 3, 1, 2))
    folder.mkdir(exist_ok=True)
    arrays = {"seed": np.int64(seed), "images": images, "features": features.numpy(), "logits": logits.numpy()}
    write_arrays(folder / "expected.safetensors", arrays)
    lines = ",\n".join(f'"{name}": {list(shape)}' for name, shape in shapes.items())
    (folder / "shapes.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def write_metric_references(folder: Path, seed: int) -> None:
    """Writes the references of image metrics: metrics of features, and the features of Inception-v3."""
    write_arrays(folder / "metrics.safetensors", metric_reference(np.random.default_rng([seed, 500])))
    write_inception_reference(folder / "inception", seed, factor=16)

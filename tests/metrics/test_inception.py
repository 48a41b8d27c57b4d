"""Inception-v3 computes what torch-fidelity's does on the same random weights, a sixteenth as wide here.

The references are made by `tools/make_references.py`; `make parity` compares at full width.
"""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from inception_cases import check_inception, random_weights
from paths import REFERENCES
from safetensors.numpy import load_file

from zoo.core.errors import UserError
from zoo.interop.torch_legacy import is_legacy, read_legacy
from zoo.metrics import inception
from zoo.metrics.inception import average_pool, make_inception, max_pool, resize

INCEPTION = REFERENCES / "inception"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(INCEPTION)


def test_it_computes_what_torch_fidelity_does():
    check_inception(INCEPTION)


def test_images_are_resized_as_tensorflow_1_did():
    x = jnp.arange(4.0)[None, :, None, None]
    # Output i lies at i / 2: corners are not aligned, and the last pixel is repeated.
    along = resize(jnp.tile(x, (1, 1, 2, 1)), 8)[0, :, 0, 0]
    np.testing.assert_allclose(along, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    assert jnp.array_equal(resize(jnp.tile(x, (1, 1, 4, 1)), 4)[0, :, :, 0], jnp.tile(jnp.arange(4.0)[:, None], (1, 4)))
    np.testing.assert_allclose(resize(jnp.tile(x, (1, 1, 4, 1)), 2)[0, :, 0, 0], [0, 2])


def test_grey_images_have_three_equal_channels(monkeypatch):
    monkeypatch.setattr(inception, "inception", lambda weights, x: x.mean((1, 2)))
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.uint8)
    weights = {"fc": (jnp.eye(3), jnp.zeros(3))}
    grey, _ = inception._extract(weights, images[..., :1])
    assert grey.shape == (2, 3)
    np.testing.assert_array_equal(grey, np.repeat(grey[:, :1], 3, 1))
    (colour,), _ = inception._extract(weights, images[:1])
    assert len(set(colour.tolist())) == 3


def test_pools_do_not_count_their_padding():
    x = -1.0 - jnp.arange(9.0).reshape(1, 3, 3, 1)
    assert average_pool(x)[0, 0, 0, 0] == x[0, :2, :2].mean()
    assert max_pool(x, stride=1)[0, 2, 2, 0] == x[0, 1:, 1:].max()
    assert max_pool(x, stride=2).shape == (1, 1, 1, 1)


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(UserError, match="holds no Inception-v3"):
        make_inception({"conv.weight": np.zeros((1, 1, 1, 1))}, "some.pth")
    usual = weights | {"fc.weight": weights["fc.weight"][:1000]}
    with pytest.raises(UserError, match=r"some.pth has 1000 classes, and FID's Inception-v3 has 1008"):
        make_inception(usual, "some.pth")
    missing = {name: x for name, x in weights.items() if not name.startswith("Mixed_6c.branch7x7_2")}
    with pytest.raises(UserError, match=r"lacks Mixed_6c.branch7x7_2, which"):
        make_inception(missing, "some.pth")
    del missing["Mixed_5b.branch1x1.bn.bias"]
    with pytest.raises(UserError, match=r"lacks Mixed_5b.branch1x1.bn.bias, which"):
        make_inception(missing, "some.pth")
    misshapen = weights | {"Mixed_5b.branch1x1.conv.weight": weights["Mixed_5b.branch1x1.conv.weight"][:, :5]}
    with pytest.raises(UserError, match="shapes that do not fit"):
        make_inception(misshapen, "some.pth")


# ------------------------------------------------------------------------------- files of PyTorch before 1.6


def test_legacy_files_hold_the_tensors_that_were_saved():
    expected = load_file(REFERENCES / "legacy.safetensors")
    path = REFERENCES / "legacy.pth"
    assert is_legacy(path)
    assert not is_legacy(REFERENCES / "legacy.safetensors")
    found = read_legacy(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_legacy_files_that_are_cut_off_or_run_code_are_refused(tmp_path):
    data = (REFERENCES / "legacy.pth").read_bytes()
    shorter = data.replace((24).to_bytes(8, "little"), (23).to_bytes(8, "little"))
    assert shorter != data
    for damaged in (data[:20], data[:200], data[:-5], shorter):
        (tmp_path / "cut.pth").write_bytes(damaged)
        with pytest.raises(UserError, match=r"cut\.pth is damaged"):
            read_legacy(tmp_path / "cut.pth")
    (tmp_path / "code.pth").write_bytes(b"".join(pickle.dumps(x, protocol=2) for x in (1, 2, 3, print)))
    with pytest.raises(UserError, match=r"code\.pth holds a __builtin__\.print, which is not loaded"):
        read_legacy(tmp_path / "code.pth")
    (tmp_path / "list.pth").write_bytes(b"".join(pickle.dumps(x, protocol=2) for x in (1, 2, 3, [4], [])))
    with pytest.raises(UserError, match="holds something else than named tensors"):
        read_legacy(tmp_path / "list.pth")

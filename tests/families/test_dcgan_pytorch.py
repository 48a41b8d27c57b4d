"""DCGAN against PyTorch: the same images, logits and gradients, and files of weights."""

import io
import os
import pickle
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dcgan_cases import KEY, OPTIMIZER, memory
from paths import REFERENCES
from safetensors.numpy import load_file

from zoo.core.errors import UserError
from zoo.core.family import Setup
from zoo.core.learner import Learner
from zoo.dcgan import discriminator_loss, generator_loss
from zoo.interop.dcgan import export_run, import_run, read_generator
from zoo.interop.torch_file import read_tensors

DCGAN_REFERENCES = REFERENCES / "dcgan"


@pytest.fixture(scope="module")
def reference():
    return load_file(DCGAN_REFERENCES / "expected.safetensors")


def players() -> dict[str, Learner]:
    """Both players with the weights of the reference."""
    family, spec, params, memory = read_generator(DCGAN_REFERENCES / "generator.pth")
    state = jax.jit(lambda key: family.init(spec, Setup(OPTIMIZER, 10, 4), key))(KEY)
    theirs = load_file(DCGAN_REFERENCES / "discriminator.safetensors")
    return {
        "gen": replace(state.generator, params=params, memory=memory),
        "disc": replace(
            state.discriminator,
            params=fill(state.discriminator.params, disc_names("params"), theirs),
            memory=fill(state.discriminator.memory, disc_names("memory"), theirs),
        ),
    }


def disc_names(kind: str) -> dict[str, str]:
    """Where a tensor of PyTorch's discriminator is in ours."""
    convs = {"downs.0.conv": 0, "downs.1.conv": 2, "downs.2.conv": 5, "head.conv": 8}
    norms = {"downs.1.norm": 3, "downs.2.norm": 6}
    if kind == "memory":
        kinds = {"mean": "running_mean", "variance": "running_var"}
    else:
        kinds = {"gain": "weight", "bias": "bias"}
    names = {f"{ours}.{a}": f"{number}.{b}" for ours, number in norms.items() for a, b in kinds.items()}
    return names | (
        {} if kind == "memory" else {f"{ours}.kernel": f"{number}.weight" for ours, number in convs.items()}
    )


def path_name(path) -> str:
    return ".".join(str(getattr(part, "key", part)) for part in path)


def fill(tree, names, tensors):
    """A tree of our arrays with PyTorch's values."""

    def value(path, leaf):
        found = tensors[names[path_name(path)]]
        found = found.transpose(2, 3, 1, 0) if found.ndim == 4 else found
        assert found.shape == leaf.shape
        return jnp.asarray(found)

    return jax.tree_util.tree_map_with_path(value, tree)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_images_and_logits_are_those_of_pytorch(reference, mode):
    learners, label = players(), jnp.zeros(4, jnp.int32)
    z, x, train = jnp.asarray(reference["z"]), jnp.asarray(reference["x"]), mode == "train"

    @jax.jit
    def play(gen, disc):
        gen, disc = gen.net(), disc.net()
        images = gen(z, label, train=train)
        logits = {"real": disc(x, label, train=train), "fake": disc(images, label, train=train)}
        return {"images": images} | logits, memory(gen), memory(disc)

    made, gen_memory, disc_memory = play(learners["gen"], learners["disc"])
    for name, ours in made.items():
        np.testing.assert_allclose(ours, reference[f"{mode}.{name}"], rtol=1e-4, atol=1e-4)
    assert np.abs(made["images"]).max() > 0.5
    if train:
        moved = {name: reference[f"disc.moved.{name}"] for name in disc_names("memory").values()}
        expected = fill(disc_memory, disc_names("memory"), moved)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), disc_memory, expected)
        for stage, norm in gen_memory["norms"].items():
            for ours, theirs in (("mean", "running_mean"), ("variance", "running_var")):
                expected = reference[f"gen.moved.{3 * stage + 1}.{theirs}"]
                np.testing.assert_allclose(norm[ours], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_game_are_those_of_pytorch(reference):
    learners, label = players(), jnp.zeros(4, jnp.int32)
    z, x = jnp.asarray(reference["z"]), jnp.asarray(reference["x"])

    @jax.jit
    def gradients(gen, disc):
        def gen_loss(params):
            fakes = replace(gen, params=params).net()(z, label, train=True)
            return generator_loss("nonsaturating", disc.net()(fakes, label, train=True)).mean()

        def disc_loss(params):
            net, fakes = replace(disc, params=params).net(), gen.net()(z, label, train=True)
            return discriminator_loss("nonsaturating", net(x, label, train=True), net(fakes, label, train=True)).mean()

        return jax.value_and_grad(gen_loss)(gen.params), jax.value_and_grad(disc_loss)(disc.params)

    (gen_loss, of_gen), (disc_loss, of_disc) = gradients(learners["gen"], learners["disc"])
    np.testing.assert_allclose(gen_loss, reference["gen.loss"], rtol=1e-4)
    np.testing.assert_allclose(disc_loss, reference["disc.loss"], rtol=1e-4)
    given = {name: reference[f"disc.gradient.{name}"] for name in disc_names("params").values()}
    expected = fill(of_disc, disc_names("params"), given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), of_disc, expected)
    kernels = [of_gen["project"]["kernel"], *(of_gen["ups"][stage]["kernel"] for stage in range(3))]
    for stage, kernel in enumerate(kernels):
        expected = reference[f"gen.gradient.{3 * stage}.weight"].transpose(2, 3, 0, 1)
        np.testing.assert_allclose(kernel, expected, rtol=2e-3, atol=2e-4)
    for stage in range(3):
        for ours, theirs in (("gain", "weight"), ("bias", "bias")):
            expected = reference[f"gen.gradient.{3 * stage + 1}.{theirs}"]
            np.testing.assert_allclose(of_gen["norms"][stage][ours], expected, rtol=2e-3, atol=2e-4)


def test_a_run_made_of_pytorch_weights_gives_them_back(tmp_path):
    import_run(DCGAN_REFERENCES / "generator.pth", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "again.safetensors")
    there, back = read_tensors(DCGAN_REFERENCES / "generator.pth"), load_file(tmp_path / "again.safetensors")
    assert {f"netG_state_dict.{name}" for name in back} == there.keys()
    for name, array in back.items():
        assert array.dtype == there[f"netG_state_dict.{name}"].dtype
        np.testing.assert_array_equal(array, there[f"netG_state_dict.{name}"])


class Evil:
    def __reduce__(self):
        return os.getcwd, ()


def test_a_file_that_is_not_weights_is_refused(tmp_path):
    whole = (DCGAN_REFERENCES / "generator.pth").read_bytes()
    evil, file = io.BytesIO(), tmp_path / "weights.pth"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("weights/data.pkl", pickle.dumps({"main.0.weight": Evil()}))
    for content, message in (
        (evil.getvalue(), "getcwd"), (whole[: len(whole) // 2], "neither"), (b"", "neither"), (b"weights", "neither"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_generator(file)
    with pytest.raises(UserError, match="there is no file"):
        read_generator(tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"not a DCGAN generator.*lacks main.0.weight"):
        read_generator(DCGAN_REFERENCES / "expected.safetensors")

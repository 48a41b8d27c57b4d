"""Diffusers' U-Net and the diffusion model's are the same, and so are their files."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from ddpm_cases import FAMILY, SPEC
from flax import nnx
from paths import REFERENCES
from safetensors.numpy import load_file, save_file

from zoo.core.errors import UserError
from zoo.harness.trained import load_run
from zoo.interop.diffusers import export_run, import_run, read_diffusers, write_diffusers
from zoo.nets.unet import UNet


@pytest.fixture(scope="module")
def net() -> UNet:
    return nnx.eval_shape(lambda: UNet(FAMILY.unet_settings(SPEC), nnx.Rngs(0)))


@pytest.mark.parametrize("name", ["unet", "unet_ddpm"])
def test_unet_is_that_of_diffusers(name, tmp_path):
    family, spec, params = read_diffusers(REFERENCES / name)
    settings = family.unet_settings(spec)
    graphdef, _, rest = nnx.split(nnx.eval_shape(lambda: UNet(settings, nnx.Rngs(0))), nnx.Param, ...)
    net = nnx.merge(graphdef, params, nnx.to_pure_dict(rest))
    expected = load_file(REFERENCES / name / "expected.safetensors")
    found = jax.jit(net)(expected["x"], expected["t"], expected["classes"] if family.conditional else None)
    np.testing.assert_allclose(found, expected["output"], atol=2e-5)

    write_diffusers(tmp_path / "back", family, spec, params)
    theirs, ours = (
        load_file(f / "diffusion_pytorch_model.safetensors") for f in (REFERENCES / name, tmp_path / "back")
    )
    if family.conditional:
        assert (ours["class_embedding.weight"][-1] == 0).all()
        ours["class_embedding.weight"] = ours["class_embedding.weight"][:-1]
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[tensor], ours[tensor]) for tensor in theirs)
    their_config, our_config = (
        json.loads((f / "config.json").read_text()) for f in (REFERENCES / name, tmp_path / "back")
    )
    differing = {key for key in our_config if their_config[key] != our_config[key]}
    assert differing <= {"num_class_embeds"}
    again = read_diffusers(tmp_path / "back", no_class_last=True)
    assert replace(again[0], label_dropout=0.0) == family
    assert again[1] == spec
    jax.tree.map(np.testing.assert_array_equal, again[2], params)


@pytest.mark.slow
def test_run_directory_from_diffusers_and_back(tmp_path):
    import_run(REFERENCES / "unet", tmp_path / "run")
    trained = load_run(tmp_path / "run")
    assert len(trained.sample(n=2, steps=2)) == 2
    export_run(tmp_path / "run", tmp_path / "back")
    assert read_diffusers(tmp_path / "back", no_class_last=True)[1] == trained.model.spec
    with pytest.raises(UserError, match="not an empty folder"):
        import_run(REFERENCES / "unet", tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ({"out_channels": 2}, "out_channels = 2"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "their counterparts in the other order"),
        ({"sample_size": None}, "sample_size = None"),
        ({"norm_num_groups": 8}, "norm_num_groups = 8"),
        ({"layers_per_block": 2}, r"lacks the tensors down_blocks\.0\.resnets\.1"),
    ],
)
def test_settings_of_diffusers_without_an_equal_are_refused(config, says, tmp_path):
    values = json.loads((REFERENCES / "unet" / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(values))
    shutil.copy(REFERENCES / "unet" / "diffusion_pytorch_model.safetensors", tmp_path)
    with pytest.raises(UserError, match=says):
        read_diffusers(tmp_path)


def test_pipelines_and_old_names_of_attention_are_read(tmp_path):
    (tmp_path / "scheduler").mkdir()
    shutil.copytree(REFERENCES / "unet", tmp_path / "unet")
    schedule = {"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    tensors = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, before in old.items():
        tensors = {name.replace(new, before): value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    family, spec, params = read_diffusers(tmp_path)
    plain, _, plain_params = read_diffusers(REFERENCES / "unet")
    assert family == replace(plain, timesteps=500, schedule="cosine", prediction="v")
    jax.tree.map(np.testing.assert_array_equal, params, plain_params)
    assert spec.classes == ("0", "1", "2", "3")

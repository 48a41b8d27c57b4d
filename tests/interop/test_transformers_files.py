"""Files of transformers: the same files back, what is accepted and what is refused, tokenizers, run directories."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from flax import nnx
from paths import REFERENCES
from safetensors.numpy import load_file, save_file
from transformers_cases import END, MODELS, Reference, load_reference, make_net

from zoo.core.errors import UserError
from zoo.core.parallel import Parallel
from zoo.data.specs import BlockSpec
from zoo.data.text import Text
from zoo.data.tokenizers import BPE, GPT2, Bytes, Characters
from zoo.harness.checkpoint import flatten
from zoo.harness.loop import fit
from zoo.harness.trained import load_run
from zoo.interop.tokenizer_json import read_tokenizer, write_tokenizer
from zoo.interop.transformers import export_run, import_run, read_transformers, write_transformers
from zoo.transformer_lm import Transformer, TransformerLM


@pytest.fixture(params=MODELS)
def reference(request) -> Reference:
    return load_reference(REFERENCES / request.param)


# ------------------------------------------------------------------------------ the same files back


@pytest.mark.parametrize("model", MODELS)
def test_round_trip_is_bitwise(model, tmp_path):
    family, params = read_transformers(REFERENCES / model)
    spec = BlockSpec(read_tokenizer(REFERENCES / model, END))
    write_transformers(tmp_path / "out", family, spec, params)
    original, written = (load_file(folder / "model.safetensors") for folder in (REFERENCES / model, tmp_path / "out"))
    assert original.keys() == written.keys()
    assert all(np.array_equal(original[name], written[name]) for name in original)
    again, back = read_transformers(tmp_path / "out")
    assert again == family
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True))
    theirs, ours = (
        json.loads((folder / "config.json").read_text()) for folder in (REFERENCES / model, tmp_path / "out")
    )
    assert {name: theirs[name] for name in ours if name in theirs} == {n: v for n, v in ours.items() if n in theirs}


def test_family_without_biases_is_written_with_zeros(tmp_path):
    family = TransformerLM(layers=1, heads=2, width=8, context=16, tied=False)
    spec = BlockSpec(Characters("abc"))
    net = Transformer(family, 4, END, nnx.Rngs(0))
    write_transformers(tmp_path / "out", family, spec, nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[1]))
    again, params = read_transformers(tmp_path / "out")
    assert again.bias
    assert again.mlp == "gelu"
    assert read_tokenizer(tmp_path / "out", 3) == spec.tokenizer
    tokens = jnp.array([[3, 0, 1, 2, 2, 1]])
    np.testing.assert_allclose(jax.jit(make_net(again, 4, params))(tokens), jax.jit(net)(tokens), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"positions": "rope"}, "positions 'rope'"),
        ({"mlp": "swiglu"}, "mlp 'swiglu'"),
        ({"norm": "rmsnorm"}, "norm 'rmsnorm'"),
        ({"kv_heads": 1}, "kv_heads 1"),
        ({"document_mask": True}, "document_mask True"),
    ],
)
def test_family_that_transformers_lacks_is_refused(settings, named, tmp_path):
    family = TransformerLM(layers=1, heads=2, width=8, context=16, **settings)
    with pytest.raises(UserError, match=named):
        write_transformers(tmp_path, family, BlockSpec(Bytes()), {})


def test_folder_with_files_is_not_overwritten(reference, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        write_transformers(tmp_path, reference.family, BlockSpec(Bytes()), reference.params)


# --------------------------------------------------------------------------------- what is accepted


@pytest.fixture
def copy_of(tmp_path):
    """Copies a reference checkpoint after changing its config and its tensors."""

    def copy(model: str, config: dict[str, Any] | None = None, change=lambda tensors: tensors) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        values = json.loads((REFERENCES / model / "config.json").read_text()) | (config or {})
        (folder / "config.json").write_text(json.dumps(values))
        shutil.copy(REFERENCES / model / "tokenizer.json", folder)
        save_file(change(load_file(REFERENCES / model / "model.safetensors")), folder / "model.safetensors")
        return folder

    return copy


def assert_reads_as(folder: Path, model: str) -> None:
    family, params = read_transformers(folder)
    original = load_reference(REFERENCES / model)
    assert family == original.family
    for name, value in flatten(params).items():
        np.testing.assert_array_equal(value, flatten(original.params)[name], err_msg=name)


def test_names_without_the_prefix_and_saved_buffers(copy_of):
    def as_in_2019(tensors):
        bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        mask = np.tril(np.ones((1, 1, 48, 48), np.float32))
        return bare | {"h.0.attn.bias": mask, "h.1.attn.masked_bias": np.array(-1e4, np.float32)}

    assert_reads_as(copy_of("gpt2", change=as_in_2019), "gpt2")


def test_head_saved_beside_a_tied_embedding(copy_of):
    folder = copy_of("llama_tied", change=lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]})
    assert_reads_as(folder, "llama_tied")


def test_rope_settings_of_older_versions(copy_of):
    folder = copy_of("llama_tied", {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": None})
    assert_reads_as(folder, "llama_tied")


def test_shards(copy_of):
    folder = copy_of("llama")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shard_of = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(shard_of.values()):
        save_file({name: value for name, value in tensors.items() if shard_of[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    assert_reads_as(folder, "llama")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors"):
        read_transformers(folder)


def test_half_precision_becomes_float32(copy_of):
    folder = copy_of("gpt2", change=lambda t: {name: value.astype(ml_dtypes.bfloat16) for name, value in t.items()})
    table = read_transformers(folder)[1]["embedding"]["table"]
    assert table.dtype == jnp.float32
    np.testing.assert_array_equal(
        table, load_reference(REFERENCES / "gpt2").params["embedding"]["table"].astype("bfloat16").astype("float32")
    )


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "config", "named"),
    [
        ("gpt2", {"model_type": "mistral"}, "model_type = 'mistral'; gpt2 and llama"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"attn_pdrop": 0.3}, "attn_pdrop = 0.3"),
        ("gpt2", {"n_layer": "2"}, "n_layer = '2'"),
        ("gpt2", {"n_positions": 32}, r"wpe\.weight has the shape \[48, 16\]; config.json says \[32, 16\]"),
        ("gpt2", {"n_layer": 3}, r"lacks the tensors transformer\.h\.2"),
        ("gpt2", {"n_layer": 1}, r"does not use: transformer\.h\.1"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type = 'llama3'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "type = 'linear'"),
        ("llama", {"head_dim": 16}, "head_dim = 16"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ("llama", {"attention_bias": True, "mlp_bias": True}, r"lacks the tensors .*mlp\.down_proj\.bias"),
        ("llama", {"num_attention_heads": 5}, "head_dim = 6|multiple"),
        ("llama", {"tie_word_embeddings": True}, "lm_head.weight is not the embedding"),
        ("llama_tied", {"tie_word_embeddings": False}, r"lacks the tensors lm_head\.weight"),
    ],
)
def test_settings_without_an_equal_are_refused(model, config, named, copy_of):
    with pytest.raises(UserError, match=named):
        read_transformers(copy_of(model, config))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: {n: v for n, v in t.items() if "ln_f.bias" not in n}, r"lacks the tensors transformer\.ln_f\.bias"),
        (lambda t: t | {"transformer.extra": np.zeros(3, np.float32)}, r"does not use: transformer\.extra"),
        (lambda t: t | {"transformer.ln_f.bias": np.zeros(3, np.float32)}, r"ln_f\.bias has the shape \[3\]"),
        (lambda t: t | {"transformer.ln_f.bias": np.zeros(16, np.int8)}, r"ln_f\.bias is of type int8"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, named, copy_of):
    with pytest.raises(UserError, match=named):
        read_transformers(copy_of("gpt2", change=change))


def test_files_that_are_missing_or_broken_are_refused(copy_of, tmp_path):
    with pytest.raises(UserError, match=r"nowhere has no config\.json"):
        read_transformers(tmp_path / "nowhere")
    folder = copy_of("gpt2")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_transformers(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        read_transformers(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_transformers(folder)


# --------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("model", MODELS)
def test_tokenizer_makes_the_same_ids(model):
    tokenizer = read_tokenizer(REFERENCES / model, END)
    assert tokenizer.end_of_text == END
    for case in load_reference(REFERENCES / model).lists["encoded"]:
        assert tokenizer.encode(case["text"]).tolist() == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("tokenizer", [GPT2(), Bytes(), Characters("\n abcé"), BPE.train(["abcabc abc"], 270)])
def test_tokenizer_round_trip(tokenizer, tmp_path):
    write_tokenizer(tmp_path, tokenizer)
    again = read_tokenizer(tmp_path, tokenizer.end_of_text)
    assert type(again) is (BPE if isinstance(tokenizer, Bytes) else type(tokenizer))
    assert again.end_of_text == tokenizer.end_of_text
    assert again.pieces == tokenizer.pieces
    text = "abc\n\n caé"
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).tolist()


def test_tokenizers_that_cannot_be_read_are_refused(copy_of):
    folder = copy_of("gpt2")
    for end in (None, 64, -1, 2**40, "a", []):
        with pytest.raises(UserError, match="eos_token_id"):
            read_tokenizer(folder, end)
    fields = json.loads((folder / "tokenizer.json").read_text())
    words = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "two": 1}, "unk_token": "<unk>"}
    (folder / "tokenizer.json").write_text(json.dumps(fields | {"model": words}))
    with pytest.raises(UserError, match="vocabulary of words"):
        read_tokenizer(folder, END)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        read_tokenizer(folder, END)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        read_tokenizer(folder, END)


# ---------------------------------------------------------------------------------- run directories


def test_run_directory_from_a_checkpoint_and_back(tmp_path):
    folder, rundir = REFERENCES / "llama", tmp_path / "run"
    import_run(folder, rundir)
    trained = load_run(rundir)
    tokens = jnp.asarray(load_reference(folder).arrays["tokens"])
    np.testing.assert_allclose(jax.jit(trained.net())(tokens), load_reference(folder).arrays["logits"], atol=1e-4)
    assert isinstance(trained.model.spec.tokenizer, BPE)
    assert isinstance(trained.run.data, Text)
    with pytest.raises(UserError, match="not an empty folder"):
        import_run(folder, rundir)
    export_run(rundir, tmp_path / "back")
    original, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert all(np.array_equal(original[name], back[name]) for name in original | back)


def test_an_imported_run_holds_weights_alone_and_does_not_go_on(tmp_path):
    rundir = tmp_path / "run"
    import_run(REFERENCES / "llama", rundir)
    run = replace(load_run(rundir).run, parallel=Parallel(devices=1))
    with pytest.raises(UserError, match=r"holds weights to start from with --init\.from"):
        fit(run)


def test_run_directory_needs_a_tokenizer_that_fits(copy_of, tmp_path):
    folder = copy_of("gpt2", {"vocab_size": 65}, lambda t: t | {
        "transformer.wte.weight": np.pad(t["transformer.wte.weight"], ((0, 1), (0, 0)))})  # fmt: skip
    with pytest.raises(UserError, match="embedding of 65 tokens, but its tokenizer has 64"):
        import_run(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()

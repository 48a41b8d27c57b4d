"""Masked language models and transformers' BERT are the same, and so are their files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from masked_lm_cases import BERT, REFERENCE, SPEC, XLNET, check_bert, load_bert
from safetensors.numpy import load_file, save_file

from zoo.core.errors import UserError
from zoo.data.text.sentence_pairs import make_spec
from zoo.data.tokenizers import BPE
from zoo.harness.trained import load_run
from zoo.interop.tokenizer_json import read_tokenizer
from zoo.interop.transformers import export_run, import_run, read_transformers, write_transformers
from zoo.masked_lm import Encoder


def test_bert_is_transformers():
    check_bert(REFERENCE)


def test_bert_is_written_as_it_was_read(tmp_path):
    family, spec, params, _ = load_bert(REFERENCE)
    write_transformers(tmp_path / "out", family, spec, params)
    original, written = (load_file(folder / "model.safetensors") for folder in (REFERENCE, tmp_path / "out"))
    assert original.keys() == written.keys()
    assert all(np.array_equal(original[name], written[name]) for name in original)
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (REFERENCE, tmp_path / "out"))
    assert {name: theirs[name] for name in ours} == ours | {"eos_token_id": None}
    again, _ = read_transformers(tmp_path / "out")
    assert again == family
    assert make_spec(read_tokenizer(tmp_path / "out", None)).special == spec.special


def changed(folder, config=None, change=lambda tensors: tensors):
    folder.mkdir()
    values = json.loads((REFERENCE / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(values))
    save_file(change(load_file(REFERENCE / "model.safetensors")), folder / "model.safetensors")
    return folder


def test_names_of_2018_and_tensors_saved_twice(tmp_path):
    def as_in_2018(tensors):
        words, bias = (tensors[n] for n in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"))
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            tensors = {n.replace(new, name): value for n, value in tensors.items()}
        return tensors | {
            "cls.predictions.decoder.weight": words,
            "cls.predictions.decoder.bias": bias,
            "bert.embeddings.position_ids": np.arange(48)[None],
        }

    family, params = read_transformers(changed(tmp_path / "old", change=as_in_2018))
    assert family == load_bert(REFERENCE)[0]
    jax.tree.map(np.testing.assert_array_equal, params, load_bert(REFERENCE)[2])


def test_a_bert_without_the_second_head(tmp_path):
    def bare(tensors):
        return {n: value for n, value in tensors.items() if "pooler" not in n and "seq_relationship" not in n}

    family, params = read_transformers(changed(tmp_path / "mlm", {"architectures": ["BertForMaskedLM"]}, bare))
    assert not family.next_sentence
    assert "pooler" not in params


@pytest.mark.parametrize(
    ("config", "change", "named"),
    [
        ({"hidden_act": "relu"}, dict, "hidden_act = 'relu'"),
        ({"type_vocab_size": 3}, dict, "type_vocab_size = 3"),
        ({"position_embedding_type": "relative_key"}, dict, "relative_key"),
        ({"is_decoder": True}, dict, "is_decoder = True"),
        ({"num_hidden_layers": 3}, dict, r"lacks the tensors bert\.encoder\.layer\.2"),
        (
            {},
            lambda t: t | {"cls.predictions.decoder.bias": t["cls.predictions.bias"] + 1},
            r"decoder\.bias is not cls\.predictions\.bias",
        ),
    ],
)
def test_a_bert_that_cannot_be_read_is_named(tmp_path, config, change, named):
    with pytest.raises(UserError, match=named):
        read_transformers(changed(tmp_path / "bert", config, change))


def test_what_transformers_lacks_is_not_written(tmp_path):
    with pytest.raises(UserError, match="objective 'permutation'"):
        write_transformers(tmp_path, XLNET, SPEC, {})


def test_an_imported_bert_fills_and_is_exported(tmp_path):
    import_run(REFERENCE, tmp_path / "run")
    trained = load_run(tmp_path / "run")
    fills = trained.sample(fill="the quick [MASK] jumps", n=3)
    (_, _, _, net), tokenizer = load_bert(REFERENCE), trained.model.spec.tokenizer
    ids = jnp.array([[2, *tokenizer.encode("the quick"), 4, *tokenizer.encode("jumps"), 3]])
    place = ids[0].tolist().index(4)
    x, _ = net(ids, jnp.zeros_like(ids), jnp.array([ids.shape[1]]), jnp.array([[place]]))
    logits = np.asarray(net.token_logits(x))[0, place].astype(np.float64)
    logits[[0, 2, 3, 4]] = -np.inf
    best = np.argsort(-logits)[:3]
    for fill, token in zip(fills, best, strict=True):
        assert fill.text == tokenizer.decode([*tokenizer.encode("the quick"), token, *tokenizer.encode("jumps")])
        assert fill.scores["probability"] == pytest.approx(np.exp(logits[token]) / np.exp(logits).sum(), rel=1e-4)
    export_run(tmp_path / "run", tmp_path / "out")
    original, written = (load_file(folder / "model.safetensors") for folder in (REFERENCE, tmp_path / "out"))
    assert all(np.array_equal(original[name], written[name]) for name in original)


def test_byte_pairs_are_exported_with_their_special_tokens(tmp_path):
    spec = make_spec(BPE.train(["abc abc dab fade cab"], 270))
    net = Encoder(BERT, spec, nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[1])
    write_transformers(tmp_path / "out", BERT, spec, params)
    again = make_spec(
        read_tokenizer(tmp_path / "out", json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"])
    )
    assert again.special == spec.special
    assert again.vocab_size == spec.vocab_size
    assert again.tokenizer.encode("dab fade").tolist() == spec.tokenizer.encode("dab fade").tolist()

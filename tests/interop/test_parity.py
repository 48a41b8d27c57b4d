"""The programs that are installed and the zoo agree, on fresh weights and in both directions (`make parity`).

Other tests compare with references that are kept; here they are made again, by the same tool, so that they can be
trusted, and with other seeds, so that agreement is no luck.
"""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import captioned_unet_cases as captioned_unet
import clip_cases as clip
import diffusion_cases as diffusion_samplers
import flow_cases as flows
import image_metrics_cases as image_metrics
import inception_cases as inception
import jax
import jax.numpy as jnp
import masked_lm_cases as masked_lm
import numpy as np
import pytest
import quantisation_cases as quantisation
import recurrent_cases as recurrent
import transformers_cases as interop
from flax import nnx
from paths import REFERENCES, ROOT
from safetensors.numpy import load_file

from zoo.data.specs import BlockSpec
from zoo.data.text.sentence_pairs import make_spec
from zoo.data.tokenizers import BPE, GPT2, Bytes, Characters
from zoo.interop.transformers import write_transformers
from zoo.masked_lm import Encoder, MaskedLM
from zoo.transformer_lm import Transformer, TransformerLM

pytestmark = pytest.mark.parity
PROGRAMS = ("torch", "transformers", "diffusers", "torch_fidelity", "vector_quantize_pytorch")
if not all(map(importlib.util.find_spec, PROGRAMS)):
    pytest.skip("needs PyTorch and the programs to compare with (make parity)", allow_module_level=True)

TOOL = ROOT / "tools" / "make_references.py"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes the references of a seed, in a process without JAX."""

    def make(seed: int) -> Path:
        folder = tmp_path_factory.mktemp(f"seed_{seed}")
        subprocess.run([sys.executable, TOOL, folder, "--seed", str(seed)], check=True)
        return folder

    return make


@pytest.fixture(scope="module", params=[1, 2])
def fresh(request, make) -> Path:
    return make(request.param)


def test_kept_references_are_what_transformers_computes(make):
    folder = make(0)
    kept = sorted(path.relative_to(REFERENCES) for path in REFERENCES.rglob("*.*"))
    assert kept == sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    for path in (path for path in kept if path.suffix == ".safetensors"):
        old, new = load_file(REFERENCES / path), load_file(folder / path)
        assert old.keys() == new.keys()
        for name in old:
            np.testing.assert_allclose(new[name], old[name], atol=1e-5, rtol=1e-4, err_msg=f"{path}: {name}")
    for path in (
        path for path in kept if path.name in ("expected.json", "processors.json", "schedulers.json", "flow.json")
    ):
        old, new = (json.loads((root / path).read_text()) for root in (REFERENCES, folder))
        for name in old.keys() - {"versions", "beam"}:
            assert new[name] == old[name], f"{path}: {name}"
        for now, then in zip(new.get("beam", []), old.get("beam", []), strict=True):
            assert now.pop("scores") == [pytest.approx(scores, abs=1e-4) for scores in then.pop("scores")]
            assert now == then


@pytest.mark.parametrize("model", interop.MODELS)
def test_fresh_weights(fresh, model):
    reference = interop.load_reference(fresh / model)
    logits = jax.jit(reference.net)(jnp.asarray(reference.arrays["tokens"]))
    np.testing.assert_allclose(logits, reference.arrays["logits"], atol=1e-4)
    interop.check_padded_logits(reference)
    interop.check_loss_and_gradients(reference)


@pytest.mark.parametrize("model", interop.MODELS)
def test_fresh_searches(fresh, model):
    reference = interop.load_reference(fresh / model)
    interop.check_greedy(reference)
    interop.check_beams(reference)


def test_fresh_bert(fresh):
    masked_lm.check_bert(fresh / "bert")


def test_fresh_clip(fresh):
    clip.check_clip(fresh / "clip")


def test_fresh_processors(fresh):
    interop.check_processors(fresh)


def test_fresh_schedulers(fresh):
    diffusion_samplers.check_rules(fresh)
    diffusion_samplers.check_grids(fresh)


def test_fresh_captioned_unet(fresh):
    captioned_unet.check_captioned_unet(fresh)


def test_fresh_dit_and_flow(fresh):
    flows.check_dit(fresh / "dit")
    flows.check_flow_steps(fresh)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fresh_recurrent_layers(fresh, cell):
    recurrent.check_states_and_gradients(fresh, cell)
    recurrent.check_both_directions(fresh, cell)


def test_fresh_quantisers(fresh):
    quantisation.check_codebook(fresh)
    quantisation.check_finite_scalars(fresh)


def test_fresh_image_metrics(fresh):
    image_metrics.check_metrics(fresh)
    inception.check_inception(fresh / "inception")


def test_inception_at_full_width(tmp_path):
    program = (
        "import pathlib, sys; from references.torch_fidelity import write_inception_reference as write; "
        "write(pathlib.Path(sys.argv[1]), 3, 1)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "inception"], check=True, cwd=TOOL.parent)
    inception.check_inception(tmp_path / "inception")


def enlarge(net: nnx.Module) -> None:
    """Gives a network larger weights than the initial ones, none of them zero or one."""
    keys = nnx.Rngs(1)
    for _, leaf in nnx.iter_graph(net):
        if isinstance(leaf, nnx.Param):
            leaf[...] = leaf[...] + 0.2 * jax.random.normal(keys.params(), leaf.shape)


@pytest.mark.parametrize("next_sentence", [True, False])
def test_transformers_reads_a_bert_that_the_zoo_writes(next_sentence, tmp_path):
    family = MaskedLM(layers=2, heads=2, width=32, context=32, mlp="gelu_tanh", next_sentence=next_sentence)
    spec = make_spec(BPE.train(["abc abc dab fade cab", "é"], 270))
    net = Encoder(family, spec, nnx.Rngs(0))
    enlarge(net)
    write_transformers(tmp_path, family, spec, nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import AutoTokenizer, BertForMaskedLM, BertForPreTraining

        kind = BertForPreTraining if next_sentence else BertForMaskedLM
        theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        row = their_tokenizer("abc dé", "fa\nde", return_tensors="pt", return_token_type_ids=True)
        tokens, segment = (row[name].numpy().astype(np.int32) for name in ("input_ids", "token_type_ids"))
        a, b = (spec.tokenizer.encode(text).tolist() for text in ("abc dé", "fa\nde"))
        assert tokens[0].tolist() == [spec.classify, *a, spec.separate, *b, spec.separate]
        assert their_tokenizer.mask_token_id == spec.mask
        with torch.no_grad():
            output = theirs(**row)
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, asked = net(jnp.asarray(tokens), jnp.asarray(segment), jnp.array([tokens.shape[1]]), positions)
    logits = output.prediction_logits if next_sentence else output.logits
    np.testing.assert_allclose(net.token_logits(asked), logits.numpy(), atol=1e-4, rtol=1e-4)
    if next_sentence:
        np.testing.assert_allclose(net.next_logits(hidden)[:, 0], output.seq_relationship_logits, atol=1e-4, rtol=1e-4)


SHAPES = {
    "the zoo's default": (TransformerLM(layers=2, width=32, context=32), Characters("\n abcdefé")),
    "gpt2": (TransformerLM(layers=2, width=32, context=32, mlp="gelu_tanh", bias=True, tied=False), GPT2()),
    "llama": (
        TransformerLM(
            layers=2,
            width=32,
            kv_heads=2,
            context=32,
            positions="rope",
            norm="rmsnorm",
            mlp="swiglu",
            norm_epsilon=1e-3,
            rope_theta=100.0,
        ),
        BPE.train(["abc abc dab fade cab", "é"], 270),
    ),
    "llama with biases": (
        TransformerLM(
            layers=2,
            width=32,
            context=32,
            positions="rope",
            norm="rmsnorm",
            mlp="swiglu",
            bias=True,
            tied=False,
        ),
        Bytes(),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_reads_what_the_zoo_writes(shape, tmp_path):
    family, tokenizer = SHAPES[shape]
    net = Transformer(family, tokenizer.vocab_size, tokenizer.end_of_text, nnx.Rngs(0))
    enlarge(net)
    params = nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[1])
    write_transformers(tmp_path, family, BlockSpec(tokenizer), params)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        text = "abc dé fa\nde"
        ids = tokenizer.encode(text)
        assert their_tokenizer(text, add_special_tokens=False)["input_ids"] == ids.tolist()
        assert their_tokenizer.decode(ids.tolist()) == text
        assert their_tokenizer.eos_token_id == tokenizer.end_of_text
        with torch.no_grad():
            expected = theirs(torch.tensor(ids[None].astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(jax.jit(net)(jnp.asarray(ids[None])), expected, atol=1e-4, rtol=1e-4)

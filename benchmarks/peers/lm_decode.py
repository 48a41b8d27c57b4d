"""Times decoding by other programs with the shape of GPT-2 124M: float32, random weights, prompt 32, 128 new tokens.

    python benchmarks/peers/lm_decode.py prepare                  # once: random weights in every program's format
    python benchmarks/peers/lm_decode.py gguf                     # once, for llama.cpp: needs the package gguf
    python benchmarks/peers/lm_decode.py PROGRAM [1 8 beam5]      # batch sizes, or five beams for one prompt

PROGRAM: transformers, ctranslate2, llama.cpp (needs the package xllamacpp) or keras-hub; only transformers is timed
with beams. The files are in the folder PEER_DECODE, by default one in the temporary directory. Prints one JSON line a
case.
"""

import json
import os
import struct
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from timing import THREADS, emit, timed

FOLDER = Path(os.environ.get("PEER_DECODE", Path(tempfile.gettempdir()) / "peer_decode"))
PROMPT, NEW, VOCAB, LAYERS = 32, 128, 50257, 12
END = VOCAB - 1


def prompts(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50000, (batch, PROMPT))


def report(program, run, batch, task="greedy"):
    timing = timed(run, warm=1, min_s=6, min_n=3)
    emit(program, f"lm_decode {task} batch {batch}", "new tokens/s", batch * NEW, timing, batch=batch)


def prepare():
    import ctranslate2
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(FOLDER / "hf")
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {f"tok{i}": i for i in range(len(vocab), END)} | {"<|endoftext|>": END}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(FOLDER / "hf")
    ctranslate2.converters.TransformersConverter(str(FOLDER / "hf")).convert(str(FOLDER / "ct2"), force=True)


def read_weights():
    """Reads the safetensors file without the safetensors package, which llama.cpp's environment may lack."""
    with open(FOLDER / "hf" / "model.safetensors", "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header, body = json.loads(file.read(size)), file.read()
    return {
        name.removeprefix("transformer."): np.frombuffer(body[slice(*entry["data_offsets"])], "<f4").reshape(
            entry["shape"]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def gguf():
    import gguf

    weights = read_weights()
    tokens = json.loads((FOLDER / "hf" / "tokenizer.json").read_text())["model"]["vocab"]
    writer = gguf.GGUFWriter(FOLDER / "f32.gguf", "gpt2")
    writer.add_context_length(1024)
    writer.add_embedding_length(768)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(3072)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(tokens, key=tokens.get))
    writer.add_token_types([1] * END + [3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(END)
    names = {
        "wte.weight": "token_embd.weight",
        "wpe.weight": "position_embd.weight",
        "ln_f.weight": "output_norm.weight",
        "ln_f.bias": "output_norm.bias",
    }
    parts = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            names |= {f"h.{i}.{theirs}.{kind}": f"blk.{i}.{ours}.{kind}" for theirs, ours in parts.items()}
    for theirs, ours in names.items():
        # GPT-2's checkpoint stores its matrices as [in, out], llama.cpp as [out, in].
        matrix = theirs.startswith("h.") and weights[theirs].ndim == 2
        writer.add_tensor(ours, np.ascontiguousarray(weights[theirs].T if matrix else weights[theirs]))
    writer.add_tensor("output.weight", weights["wte.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def transformers(batches, num_beams=1):
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(THREADS)
    model = GPT2LMHeadModel.from_pretrained(FOLDER / "hf").eval()
    for batch in batches:
        tokens = torch.tensor(prompts(batch))

        def run(tokens=tokens):
            with torch.no_grad():
                out = model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=NEW,
                    min_new_tokens=NEW,
                    do_sample=False,
                    num_beams=num_beams,
                    pad_token_id=END,
                )
            assert out.shape == (len(tokens), PROMPT + NEW)

        report("transformers", run, batch, "greedy" if num_beams == 1 else f"beam {num_beams}")


def ctranslate2(batches):
    import ctranslate2

    generator = ctranslate2.Generator(
        str(FOLDER / "ct2"), device="cpu", compute_type="float32", inter_threads=1, intra_threads=THREADS
    )
    ids = json.loads((FOLDER / "hf" / "tokenizer.json").read_text())["model"]["vocab"]
    names = sorted(ids, key=ids.get)
    for batch in batches:
        tokens = [[names[i] for i in row] for row in prompts(batch)]

        def run(tokens=tokens):
            out = generator.generate_batch(
                tokens,
                max_length=NEW,
                min_length=NEW,
                sampling_topk=1,
                beam_size=1,
                include_prompt_in_result=False,
                max_batch_size=len(tokens),
            )
            assert all(len(row.sequences_ids[0]) == NEW for row in out)

        report("ctranslate2", run, batch)


def llama_cpp(batches):
    import xllamacpp

    for batch in batches:
        params = xllamacpp.CommonParams()
        params.model.path = str(FOLDER / "f32.gguf")
        params.n_ctx, params.n_parallel = 256 * batch, batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
        params.warmup, params.n_gpu_layers, params.cache_prompt = True, 0, False
        server, pool = xllamacpp.Server(params), ThreadPoolExecutor(batch)

        def one(tokens, server=server):
            asked = {"prompt": tokens, "n_predict": NEW, "ignore_eos": True, "temperature": 0.0, "cache_prompt": False}
            answer = server.handle_completions(asked)
            answer = answer if isinstance(answer, dict) else json.loads(answer)
            assert "error" not in answer, answer

        rows = prompts(batch).tolist()
        report("llama.cpp", lambda pool=pool, one=one, rows=rows: list(pool.map(one, rows)), batch)


def keras_hub(batches):
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCAB,
        num_layers=LAYERS,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_sequence_length=1024,
    )
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    model.compile(sampler="greedy")
    for batch in batches:
        tokens = np.pad(prompts(batch).astype(np.int32), ((0, 0), (0, NEW)))
        mask = np.pad(np.ones((batch, PROMPT), np.int32), ((0, 0), (0, NEW)))

        def run(tokens=tokens, mask=mask):
            return np.asarray(model.generate({"token_ids": tokens, "padding_mask": mask}, stop_token_ids=None))

        report("keras-hub", run, batch)


if __name__ == "__main__":
    what, cases = sys.argv[1], sys.argv[2:] or ["1", "8"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    programs = {
        "prepare": prepare,
        "gguf": gguf,
        "transformers": transformers,
        "ctranslate2": ctranslate2,
        "llama.cpp": llama_cpp,
        "keras-hub": keras_hub,
    }
    if what in ("prepare", "gguf"):
        programs[what]()
    else:
        programs[what]([int(case) for case in cases if case.isdigit()])
        if what == "transformers" and "beam5" in cases:
            transformers([1], num_beams=5)

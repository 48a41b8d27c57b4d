"""References of transformers: GPT-2 and Llama with small random weights, and logits processors."""

from pathlib import Path

import numpy as np
import torch
import transformers
from references.files import write_arrays, write_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.generation import logits_process as processors

VOCABULARY = 64
CONTEXT = 48
END_OF_TEXT = "<|endoftext|>"
PROMPT_LENGTHS = (3, 7, 1, 5)
NEW_TOKENS = 12

TEXT = """A small corpus is enough for a small vocabulary: the tokenizer merges what stands together often.
The quick brown fox jumps over the lazy dog; the dog, being lazy, lets the fox jump over it again.
Pack my box with five dozen jugs of water, said the queen, and the boxes were packed with water jugs.
"""

BEAM_CASES = [
    {"num_beams": 2, "length_penalty": 1.0, "early_stopping": False},
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": True},
    {"num_beams": 5, "length_penalty": 1.0, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": 0.0, "early_stopping": False},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": False},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": False},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never"},
    {"num_beams": 5, "length_penalty": 0.6, "early_stopping": True},
]

PROCESSOR_CASES = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"min_p": 0.4},
    {"repetition_penalty": 1.5, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.95, "min_p": 0.1},
]


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` entries, of which number 0 is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False)
    )
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def make_models() -> dict[str, PreTrainedModel]:
    """The models: GPT-2, and Llama with grouped queries, with its embedding untied and tied."""
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    gpt2 = GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, **ends)
    llama = {
        "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_size": 24, "intermediate_size": 36,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **ends,
    }  # fmt: skip
    return {
        "gpt2": GPT2LMHeadModel(gpt2),
        "llama": LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=False)),
        "llama_tied": LlamaForCausalLM(
            LlamaConfig(
                **llama, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
            )
        ),
    }


def randomise(model: PreTrainedModel, rng: np.random.Generator) -> None:
    """Sets all parameters to distinct random values, so that confusing two of them changes the results.

    Biases and norms are random too, and matrices are large enough that the logits are far from uniform.
    """
    for name, parameter in sorted(model.named_parameters()):
        noise = rng.standard_normal(parameter.shape)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        value = 1 + 0.3 * noise if is_norm else (0.3 if parameter.ndim == 1 else 0.4) * noise
        parameter.data = torch.tensor(value, dtype=torch.float32)
    model.tie_weights()
    model.eval()


def pad_left(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads rows on the left to one length: `(tokens [b, t], mask [b, t])`; the mask is 0 at padding."""
    length = max(map(len, prompts))
    tokens = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return tokens, mask


def forward_reference(model: PreTrainedModel, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Logits of full rows and of left-padded rows; loss and gradients of rows that end in padding."""
    tokens = torch.tensor(rng.integers(1, VOCABULARY, (3, 17)))
    padded, mask = pad_left([row[: length + 8].tolist() for row, length in zip(tokens, (2, 9, 0), strict=True)])
    with torch.no_grad():
        logits = model(tokens).logits
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded_logits = model(padded, attention_mask=mask, position_ids=positions).logits

    length = torch.tensor([17, 11, 6])
    inside = torch.arange(17)[None] < length[:, None]
    loss = model(tokens, labels=torch.where(inside, tokens, -100)).loss
    loss.backward()
    gradients = {f"gradient.{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return {
        "tokens": tokens.int().numpy(),
        "logits": logits.numpy(),
        "padded_tokens": padded.int().numpy(),
        "padded_start": (1 - mask).sum(-1).int().numpy(),
        "padded_logits": padded_logits.numpy(),
        "length": length.int().numpy(),
        "loss": loss.detach().numpy(),
        **gradients,
    }


def continuations(sequences: torch.Tensor, prompt_length: int, end: int) -> list[list[int]]:
    """The tokens after the prompt, up to and including the end of text; transformers' padding is removed."""
    rows = sequences[:, prompt_length:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def generation_reference(model: PreTrainedModel, rng: np.random.Generator) -> dict:
    """Greedy and beam-search continuations of prompts of different lengths, alone and in one batch.

    `end` is the token that ends a text: the tokenizer's, which random weights seldom predict, so that most searches
    reach the limit of new tokens; and a token that greedy search produces.
    """
    prompts = [rng.integers(1, VOCABULARY, length).tolist() for length in PROMPT_LENGTHS]
    tokens, mask = pad_left(prompts)
    common = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}

    def greedy(end: int) -> list[list[int]]:
        output = model.generate(tokens, attention_mask=mask, eos_token_id=end, **common)
        return continuations(output.sequences, tokens.shape[1], end)

    def beam(settings: dict, rows: slice, end: int) -> dict:
        row_tokens, row_mask = pad_left(prompts[rows])
        output = model.generate(
            row_tokens, attention_mask=row_mask, eos_token_id=end, output_scores=True,
            num_return_sequences=settings["num_beams"], **settings, **common,
        )  # fmt: skip
        found = continuations(output.sequences, row_tokens.shape[1], end)
        scores = output.sequences_scores.tolist()
        n = settings["num_beams"]
        return {
            "prompts": prompts[rows], "end": end, "new_tokens": NEW_TOKENS, **settings,
            "found": [found[i : i + n] for i in range(0, len(found), n)],
            "scores": [scores[i : i + n] for i in range(0, len(scores), n)],
        }  # fmt: skip

    met = greedy(VOCABULARY)[0][NEW_TOKENS // 2]
    searches = [beam(settings, slice(None), met) for settings in BEAM_CASES]
    searches += [beam(settings, slice(1, 2), met) for settings in BEAM_CASES[:2]]
    searches += [beam(settings, slice(None), 0) for settings in BEAM_CASES[:4]]
    return {
        "greedy": [
            {"prompts": prompts, "end": end, "new_tokens": NEW_TOKENS, "found": greedy(end)} for end in (0, met)
        ],
        "beam": searches,
    }


def processor_reference(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], list[dict]]:
    """Logits before and after each case, processors in the order in which `generate` applies them."""
    logits = torch.tensor(3 * rng.standard_normal((4, VOCABULARY)), dtype=torch.float32)
    seen = torch.tensor(rng.integers(0, VOCABULARY, (4, 20)))
    order = {
        "repetition_penalty": processors.RepetitionPenaltyLogitsProcessor,
        "temperature": processors.TemperatureLogitsWarper,
        "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper,
        "min_p": processors.MinPLogitsWarper,
    }
    arrays = {"logits": logits.numpy(), "seen": seen.int().numpy()}
    for number, case in enumerate(PROCESSOR_CASES):
        chain = transformers.LogitsProcessorList(order[name](case[name]) for name in order if name in case)
        arrays[f"processed.{number}"] = chain(seen, logits.clone()).numpy()
    return arrays, PROCESSOR_CASES


def write_transformers_references(folder: Path, seed: int) -> None:
    """Writes a folder for each model, in transformers' layout with its outputs, and the logits processors."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = [TEXT, "the quick fox", " water,  jugs\nand boxes."]
    for number, (name, model) in enumerate(make_models().items()):
        rng = np.random.default_rng([seed, number])
        randomise(model, rng)
        target = folder / name
        model.save_pretrained(target)
        (target / "generation_config.json").unlink(missing_ok=True)
        tokenizer = make_tokenizer()
        tokenizer.save(str(target / "tokenizer.json"))
        encoded = [{"text": text, "ids": tokenizer.encode(text).ids} for text in texts]
        write_arrays(target / "expected.safetensors", forward_reference(model, rng))
        write_json(target / "expected.json", generation_reference(model, rng) | {"encoded": encoded})
    arrays, cases = processor_reference(np.random.default_rng([seed, 99]))
    write_arrays(folder / "processors.safetensors", arrays)
    write_json(folder / "processors.json", {"cases": cases})

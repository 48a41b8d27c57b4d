"""Writes what transformers' GPT-2, Llama and BERT compute on small random weights, for the tests to compare with.

    pip install -e ".[parity]" && python tools/make_references.py tests/references

For every model a folder in transformers' own layout (config.json, model.safetensors, tokenizer.json) and beside it
`expected.safetensors` (logits, loss, gradients) and `expected.json` (versions, greedy and beam-search continuations);
`processors.safetensors` and `processors.json` hold logits before and after transformers' logits processors. The weights
come from NumPy's generator, so that the same seed gives the same files whatever PyTorch does with its own.
"""

import argparse
import json
import re
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.generation import logits_process as processors

VOCABULARY = 64
CONTEXT = 48
END_OF_TEXT = "<|endoftext|>"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
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
    """A byte-level BPE of `VOCABULARY` entries whose number 0 is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False)
    )
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def make_models() -> dict[str, PreTrainedModel]:
    """The shapes that are compared: GPT-2, and Llama with grouped queries, its embedding untied and tied."""
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
    """Gives every parameter a value far enough from its usual start that no two of them could be taken for each other.

    Biases and norms are random too, and matrices large enough that the logits are far from uniform.
    """
    for name, parameter in sorted(model.named_parameters()):
        noise = rng.standard_normal(parameter.shape)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        value = 1 + 0.3 * noise if is_norm else (0.3 if parameter.ndim == 1 else 0.4) * noise
        parameter.data = torch.tensor(value, dtype=torch.float32)
    model.tie_weights()
    model.eval()


def pad_left(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one length and their mask: `(tokens [b, t], 0 where a slot is padding [b, t])`."""
    length = max(map(len, prompts))
    tokens = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return tokens, mask


def forward_reference(model: PreTrainedModel, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Logits of whole rows and of left-padded ones; loss and gradients of rows that end in padding."""
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
    """What follows the prompt, up to and with the end of text; what transformers fills up with is cut off."""
    rows = sequences[:, prompt_length:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def generation_reference(model: PreTrainedModel, rng: np.random.Generator) -> dict:
    """Greedy and beam-search continuations of prompts of different lengths, alone and in one batch.

    `end` is the token that ends a text: the tokenizer's own, which random weights seldom predict, so that most searches
    run into the limit of new tokens, and one that greedy search is seen to meet.
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


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """safetensors writes a buffer as it lies in memory, so rows must follow each other there."""
    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)


def write_json(path: Path, lists: dict[str, list]) -> None:
    """An object of lists, an entry a line, and the versions of the libraries that the numbers come from."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    fields = [f'"versions": {json.dumps(versions)}']
    for name, entries in lists.items():
        lines = ",\n".join(json.dumps(entry) for entry in entries)
        fields.append(f'"{name}": [\n{lines}\n]')
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


UNETS = {
    "unet": {"sample_size": 12, "in_channels": 1, "out_channels": 1, "num_class_embeds": 4, "attention_head_dim": 4,
             "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
             "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
             "block_out_channels": [8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
    # The details in which the networks differ that were converted from DDPM's own checkpoints.
    "unet_ddpm": {"sample_size": 8, "attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1,
                  "downsample_padding": 0, "norm_eps": 1e-6, "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
                  "up_block_types": ["UpBlock2D", "AttnUpBlock2D"], "block_out_channels": [8, 16],
                  "layers_per_block": 2, "norm_num_groups": 4},
}  # fmt: skip


def write_unet_references(folder: Path, seed: int) -> None:
    """Small U-Nets of diffusers and what they compute: `output` of pictures `x` [b h w c] at times `t`, of classes."""
    from diffusers import UNet2DModel

    for number, (name, config) in enumerate(UNETS.items()):
        rng = np.random.default_rng([seed, 300 + number])
        model = UNet2DModel(**config).eval()
        for key, parameter in sorted(model.named_parameters()):
            noise = rng.standard_normal(parameter.shape)
            is_scale = "norm" in key and key.endswith("weight")
            value = (
                1 + 0.3 * noise if is_scale else noise * (parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)
            )
            parameter.data = torch.tensor(value, dtype=torch.float32)
        model.save_pretrained(folder / name)
        size, colours = config["sample_size"], config.get("in_channels", 3)
        x = torch.tensor(rng.standard_normal((3, colours, size, size)), dtype=torch.float32)
        t, classes = torch.tensor([0.0, 13.25, 999.0]), torch.tensor([3, 0, 2])
        with torch.no_grad():
            output = model(x, t, classes if "num_class_embeds" in config else None).sample
        arrays = {"x": x.permute(0, 2, 3, 1), "t": t, "classes": classes.int(), "output": output.permute(0, 2, 3, 1)}
        write_arrays(folder / name / "expected.safetensors", {key: value.numpy() for key, value in arrays.items()})


def make_word_pieces() -> Tokenizer:
    """A WordPiece with BERT's special tokens and normalisation: letters, marks, and the words that are used most."""
    words = re.findall(r"\w+|[^\w\s]", TEXT.lower())
    letters = sorted({letter for word in words for letter in word})
    common = sorted({word for word in words if words.count(word) > 1 and len(word) > 1})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters if letter.isalpha()), *common, "##s", "##ing"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def write_bert_reference(folder: Path, seed: int) -> None:
    """A small BERT and what it computes of padded pairs: hidden states, logits of tokens and of the next sentence."""
    rng, tokenizer = np.random.default_rng([seed, 700]), make_word_pieces()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=CONTEXT, hidden_size=16, intermediate_size=40,
        num_hidden_layers=2, num_attention_heads=4, layer_norm_eps=1e-12,
    )  # fmt: skip
    model = BertForPreTraining(config)
    randomise(model, rng)
    target = folder / "bert"
    model.save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(target / "tokenizer.json"))
    tokens = torch.tensor(rng.integers(len(SPECIAL), config.vocab_size, (3, 17)))
    length, first = torch.tensor([17, 11, 6]), torch.tensor([8, 3, 4])
    place = torch.arange(17)[None]
    segment = ((place >= first[:, None]) & (place < length[:, None])).long()
    with torch.no_grad():
        output = model(
            tokens, attention_mask=(place < length[:, None]).long(), token_type_ids=segment, output_hidden_states=True
        )
    write_arrays(target / "expected.safetensors", {
        "tokens": tokens.int().numpy(), "segment": segment.int().numpy(), "length": length.int().numpy(),
        "hidden": output.hidden_states[-1].numpy(), "token_logits": output.prediction_logits.numpy(),
        "next_logits": output.seq_relationship_logits.numpy(),
    })  # fmt: skip
    texts = [TEXT, "The quick FOX", "zebra, the dög \u7329"]
    encoded = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in texts]
    write_json(target / "expected.json", {"encoded": encoded})


EVEN, KARRAS = {"timestep_spacing": "linspace"}, {"use_karras_sigmas": True}
COSINE, NO_CLIP = {"beta_schedule": "squaredcos_cap_v2"}, {"clip_sample": False}
SCHEDULERS = [
    ("DDPMScheduler", 7, "eps", 0.0, EVEN | NO_CLIP),
    ("DDPMScheduler", 7, "x0", 0.0, EVEN | NO_CLIP | COSINE),
    # With other spacings than these this scheduler does not step to the next of its own levels.
    ("DDIMScheduler", 8, "eps", 0.0, {"timestep_spacing": "trailing"} | NO_CLIP),
    ("DDIMScheduler", 8, "v", 0.6, {"timestep_spacing": "trailing"} | NO_CLIP),
    ("DDIMScheduler", 8, "x0", 1.0, {"timestep_spacing": "leading"} | NO_CLIP | COSINE),
    ("EulerDiscreteScheduler", 6, "eps", 0.0, KARRAS),
    ("EulerDiscreteScheduler", 9, "v", 0.0, KARRAS | COSINE | {"sigma_max": float(np.exp(5.1))}),
    ("HeunDiscreteScheduler", 6, "eps", 0.0, KARRAS),
    ("HeunDiscreteScheduler", 1, "v", 0.0, KARRAS),
    ("DPMSolverMultistepScheduler", 6, "eps", 0.0, KARRAS),
    ("DPMSolverMultistepScheduler", 20, "v", 0.0, KARRAS),
    ("DPMSolverMultistepScheduler", 20, "x0", 0.0, EVEN),
]
"""(scheduler, steps, what the network predicts, eta, other settings) of diffusers."""


def scheduler_reference(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], list[dict]]:
    """What diffusers' schedulers make of random noise and of random network outputs, step by step.

    `x` [calls + 1 ...] is what the scheduler holds before each call of the network and at the end, `outputs` what the
    network says at each, `noise` what a step draws, if any. Euler's and Heun's x is of scale sqrt(1 + sigma^2).
    """
    import diffusers

    predictions = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    common = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    arrays: dict[str, np.ndarray] = {}
    cases = []
    for number, (name, steps, prediction, eta, settings) in enumerate(SCHEDULERS):
        cases.append({"scheduler": name, "steps": steps, "prediction": prediction, "eta": eta, "settings": settings})
        make = getattr(diffusers, name)
        scheduler = make(prediction_type=predictions[prediction], **common, **settings)
        scheduler.set_timesteps(steps)
        x = torch.tensor(rng.standard_normal((2, 2, 2, 3)), dtype=torch.float32) * scheduler.init_noise_sigma
        calls: dict[str, list] = {"x": [x], "outputs": [], "noise": []}
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            output = torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
            calls["outputs"].append(output)
            if name == "DDPMScheduler":
                # This scheduler draws for itself: the same generator gives what it draws.
                calls["noise"].append(torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t))))
                step = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(int(t)))
            elif eta:
                noise = torch.tensor(rng.standard_normal(x.shape), dtype=torch.float32)
                calls["noise"].append(noise)
                step = scheduler.step(output, t, x, eta, variance_noise=noise)
            else:
                step = scheduler.step(output, t, x)
            x = step.prev_sample
            calls["x"].append(x)
        arrays |= {f"{number}.{kind}": torch.stack(values).numpy() for kind, values in calls.items() if values}
        arrays[f"{number}.timesteps"] = scheduler.timesteps.float().numpy()
        if hasattr(scheduler, "sigmas"):
            arrays[f"{number}.sigmas"] = scheduler.sigmas.float().numpy()
    for schedule in ("linear", "squaredcos_cap_v2"):
        scheduler = diffusers.DDPMScheduler(beta_schedule=schedule, **common)
        arrays[f"alpha_bar.{schedule}"] = scheduler.alphas_cumprod.numpy()
    return arrays, cases


def write_scheduler_references(folder: Path, seed: int) -> None:
    """The noise schedules and samplers of diffusers."""
    arrays, cases = scheduler_reference(np.random.default_rng([seed, 200]))
    write_arrays(folder / "schedulers.safetensors", arrays)
    write_json(folder / "schedulers.json", {"cases": cases})


def write_dcgan_reference(folder: Path, seed: int) -> None:
    """DCGAN of 32 pixels in the layout of PyTorch's example, tiny, and what it computes; images are [b h w c].

    `generator.pth` and `discriminator.safetensors` hold the weights. Expected are images, logits and moving moments in
    evaluation and in training, and gradients of the non-saturating game.
    """
    from torch import nn

    width, latent, channels = 3, 5, 2

    def norm(features: int, activation: nn.Module) -> list[nn.Module]:
        return [nn.BatchNorm2d(features), activation]

    def up(i: int, o: int, *place: int) -> nn.Module:
        return nn.ConvTranspose2d(i, o, 4, *place, bias=False)

    def down(i: int, o: int, *place: int) -> nn.Module:
        return nn.Conv2d(i, o, 4, *place, bias=False)

    generator = nn.Sequential(
        up(latent, 4 * width, 1, 0), *norm(4 * width, nn.ReLU()), up(4 * width, 2 * width, 2, 1),
        *norm(2 * width, nn.ReLU()), up(2 * width, width, 2, 1), *norm(width, nn.ReLU()), up(width, channels, 2, 1),
        nn.Tanh(),
    )  # fmt: skip
    leaky = nn.LeakyReLU(0.2)
    discriminator = nn.Sequential(
        down(channels, width, 2, 1), leaky, down(width, 2 * width, 2, 1), *norm(2 * width, leaky),
        down(2 * width, 4 * width, 2, 1), *norm(4 * width, leaky), down(4 * width, 1, 1, 0), nn.Flatten(0),
    )  # fmt: skip
    players = {"gen": generator, "disc": discriminator}
    rng = np.random.default_rng([seed, 400])
    for player in players.values():
        for name, value in sorted(player.state_dict().items()):
            noise = rng.standard_normal(value.shape)
            if value.ndim == 4:
                value.copy_(torch.tensor(0.25 * noise))
            elif name.endswith("running_var"):
                value.copy_(torch.tensor(np.exp(0.3 * noise)))
            elif value.ndim == 1:
                value.copy_(torch.tensor(float(name.endswith("weight")) + 0.3 * noise))
    target = folder / "dcgan"
    target.mkdir(parents=True, exist_ok=True)
    torch.save({"netG_state_dict": nn.ModuleDict({"main": generator}).state_dict()}, target / "generator.pth")
    write_arrays(target / "discriminator.safetensors", {k: v.numpy() for k, v in discriminator.state_dict().items()})

    z = torch.tensor(rng.standard_normal((4, latent, 1, 1)), dtype=torch.float32)
    x = torch.tensor(rng.uniform(-1, 1, (4, channels, 32, 32)), dtype=torch.float32)
    arrays = {"z": z[:, :, 0, 0], "x": x.permute(0, 2, 3, 1)}
    for mode in ("eval", "train"):
        for player in players.values():
            player.train(mode == "train")
        fakes = generator(z)
        real, fake = discriminator(x), discriminator(fakes)
        arrays |= {f"{mode}.images": fakes.permute(0, 2, 3, 1), f"{mode}.real": real, f"{mode}.fake": fake}
    losses = {
        "gen": -nn.functional.logsigmoid(fake).mean(),
        "disc": -(nn.functional.logsigmoid(real) + nn.functional.logsigmoid(-fake)).mean(),
    }
    for player, loss in losses.items():
        names, parameters = zip(*players[player].named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        arrays[f"{player}.loss"] = loss
        arrays |= {f"{player}.gradient.{name}": value for name, value in zip(names, gradients, strict=True)}
        arrays |= {f"{player}.moved.{name}": v for name, v in players[player].named_buffers() if "running" in name}
    write_arrays(target / "expected.safetensors", {name: value.detach().numpy() for name, value in arrays.items()})


def import_torch_fidelity():
    """The package, without torchvision: it imports that for metrics that are not compared here."""
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
    """What torch-fidelity finds of features: more vectors than dimensions, and fewer, whose covariance is singular."""
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


def recurrent_reference(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two layers of LSTM and GRU: states, gradients, and what both directions make of rows of different length."""
    rows, steps, features, width = 4, 6, 3, 5
    arrays: dict[str, np.ndarray] = {}

    def draw(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)

    for cell, kind in (("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)):
        one, both = (kind(features, width, 2, batch_first=True, bidirectional=way) for way in (False, True))
        for name, network in (("one", one), ("both", both)):
            for weight, parameter in network.named_parameters():
                parameter.data = 0.6 * draw(*parameter.shape)
                arrays[f"{cell}.{name}.{weight}"] = parameter.detach().numpy()
        x, h, c = draw(rows, steps, features), draw(2, rows, width), draw(2, rows, width)
        x.requires_grad_(True)
        y, last = one(x, (h, c) if cell == "lstm" else h)
        towards = draw(*y.shape)
        (y * towards).sum().backward()
        arrays |= {f"{cell}.gradient.{name}": parameter.grad.numpy() for name, parameter in one.named_parameters()}
        lengths = torch.tensor([6, 1, 4, 3])
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        read, ends = both(packed)
        read, _ = torch.nn.utils.rnn.pad_packed_sequence(read, batch_first=True)
        lasts, both_ends = (z if cell == "lstm" else (z,) for z in (last, ends))
        arrays |= {f"{cell}.{name}": value.detach().numpy() for name, value in {
            "x": x, "h": h, "c": c, "y": y, "towards": towards, "of_x": x.grad, "last": torch.stack(lasts),
            "read": read, "ends": torch.stack(both_ends), "lengths": lengths.int(),
        }.items()}  # fmt: skip
    return arrays


def random_tensor(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value for a tensor of Inception's, the same wherever it is made: activations keep their size through it."""
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return 1 + 0.2 * np.tanh(noise) if name.endswith(("bn.weight", "running_var")) else 0.2 * noise


def narrow(module: torch.nn.Module, factor: int) -> None:
    """Divides the channels of every convolution in a module, but for those of colours."""
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
    """Features and logits of torch-fidelity's Inception-v3, narrower by a factor, with weights from `random_tensor`."""
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
    """Metrics of images: figures from features, and the features of Inception-v3."""
    write_arrays(folder / "metrics.safetensors", metric_reference(np.random.default_rng([seed, 500])))
    write_inception_reference(folder / "inception", seed, factor=16)
    write_legacy_reference(folder)


def write_legacy_reference(folder: Path) -> None:
    """A file as `torch.save` wrote it before PyTorch 1.6, and the tensors in it."""
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"whole": whole, "part": whole.T[1:4, ::2], "half": whole[0].half(), "count": torch.tensor(7),
               "none": torch.zeros(0, 3)}  # fmt: skip
    torch.save(OrderedDict(tensors), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    write_arrays(folder / "legacy.safetensors", {name: tensor.numpy() for name, tensor in tensors.items()})


def write_references(folder: Path, seed: int) -> None:
    """Writes everything under `folder`; the same seed and versions give the same bytes."""
    torch.set_num_threads(1)
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
    write_bert_reference(folder, seed)
    write_scheduler_references(folder, seed)
    write_arrays(folder / "recurrent.safetensors", recurrent_reference(np.random.default_rng([seed, 600])))
    write_unet_references(folder, seed)
    write_dcgan_reference(folder, seed)
    write_metric_references(folder, seed)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the references go")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_references(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()

"""References of transformers: BERT with small random weights and a small WordPiece tokenizer."""

import re
from pathlib import Path

import numpy as np
import torch
from references.files import write_arrays, write_json
from references.transformers import CONTEXT, TEXT, randomise
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForPreTraining

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_word_pieces() -> Tokenizer:
    """A WordPiece tokenizer with BERT's special tokens and normalisation: letters, marks and frequent words."""
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
    """Writes a small BERT and its outputs for padded pairs: hidden states, token and next-sentence logits."""
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

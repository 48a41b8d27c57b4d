"""The layout of transformers' BERT: how its settings and tensors map to a `MaskedLM`.

`BertForPreTraining` has both heads; `BertForMaskedLM` has no pooler and no next-sentence head. The output layer is the
token embedding and a bias; files contain each of them once or twice.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
from flax import nnx

from zoo.core.errors import UserError
from zoo.data.specs import SegmentSpec
from zoo.data.text.sentence_pairs import SentencePairs, make_spec
from zoo.data.tokenizers import Characters, Tokenizer
from zoo.interop.checkpoint_files import Entry, ParamPath, Settings, Tensors
from zoo.interop.layouts import ACTIVATIONS, Layout, dense, norm
from zoo.masked_lm import SEGMENTS, Encoder, MaskedLM

BOTH_HEADS, ONE_HEAD = "BertForPreTraining", "BertForMaskedLM"
DECODER = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
           "cls.predictions.decoder.bias": "cls.predictions.bias"}  # fmt: skip
"""Tensors that old versions of transformers saved twice: the copy's name and the original's."""
POOLER = "bert.pooler.dense.weight", "bert.pooler.dense.bias"
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class BertLayout(Layout[MaskedLM]):
    """BERT."""

    model_type = "bert"
    vocab_size = 30522
    kind = MaskedLM
    buffers = re.compile(r"bert\.embeddings\.(position_ids|token_type_ids)")
    says: ClassVar = {"objective": ("masked",)}

    def to_family(self, settings: Settings) -> MaskedLM:
        """Returns the family of a BERT with two segments and absolute positions."""
        settings.must("hidden_act", *sorted(ACTIVATIONS))
        settings.must("position_embedding_type", "absolute")
        settings.must("type_vocab_size", SEGMENTS)
        settings.must("is_decoder", False)
        settings.must("add_cross_attention", False)
        settings.must("tie_word_embeddings", True)
        return MaskedLM(
            layers=settings.get("num_hidden_layers", 12),
            heads=settings.get("num_attention_heads", 12),
            width=settings.get("hidden_size", 768),
            mlp_width=settings.get("intermediate_size", 3072),
            mlp="gelu" if ACTIVATIONS[settings.get("hidden_act", "gelu")] == "gelu" else "gelu_tanh",
            context=settings.get("max_position_embeddings", 512),
            next_sentence=settings.get("architectures", [BOTH_HEADS]) != [ONE_HEAD],
            dropout=settings.get("hidden_dropout_prob", 0.1),
            attention_dropout=settings.get("attention_probs_dropout_prob", 0.1),
            norm_epsilon=settings.get("layer_norm_eps", 1e-12),
        )

    def to_config(self, family: MaskedLM, spec: SegmentSpec) -> dict[str, Any]:
        """Returns the settings of config.json."""
        return {
            "architectures": [BOTH_HEADS if family.next_sentence else ONE_HEAD],
            "num_hidden_layers": family.layers,
            "num_attention_heads": family.heads,
            "hidden_size": family.width,
            "intermediate_size": family.hidden,
            "hidden_act": "gelu" if family.mlp == "gelu" else "gelu_new",
            "max_position_embeddings": family.context,
            "type_vocab_size": SEGMENTS,
            "hidden_dropout_prob": family.dropout,
            "attention_probs_dropout_prob": family.attention_dropout,
            "layer_norm_eps": family.norm_epsilon,
            "tie_word_embeddings": True,
            "pad_token_id": spec.padding,
            "eos_token_id": spec.separate,
        }

    def network(self, family: MaskedLM, vocab_size: int) -> Encoder:
        """Returns the network; its parameters do not depend on which tokens are special."""
        last = vocab_size - 1
        return Encoder(family, SegmentSpec(Characters(""), last, last, last), nnx.Rngs(0))

    def make_spec(self, tokenizer: Tokenizer) -> SegmentSpec:
        """Returns the spec of data in these tokens."""
        return make_spec(tokenizer)

    def make_data(self, tokenizer: Tokenizer) -> SentencePairs:
        """Returns the default data for evaluate.py: the embedded text."""
        return SentencePairs(tokenizer=cast(Any, tokenizer.kind))

    def normalise(self, family: MaskedLM, vocab_size: int, tensors: Tensors) -> Tensors:
        """Returns the tensors under current names, without copies, buffers and an unused pooler."""
        for old, new in OLD_NAMES.items():
            tensors = {name.replace(old, new): value for name, value in tensors.items()}
        tensors = {name: value for name, value in tensors.items() if not self.buffers.fullmatch(name)}
        for copy, original in DECODER.items():
            if copy in tensors and original in tensors and not np.array_equal(tensors[copy], tensors[original]):
                raise UserError(f"{copy} is not {original}; here the decoder of tokens is the embedding")
        unread = [*DECODER, *(() if family.next_sentence else POOLER)]
        return {name: value for name, value in tensors.items() if name not in unread}

    def entries(self, family: MaskedLM, vocab_size: int) -> list[Entry]:
        """Returns the entries of all parameters."""
        return list(self._entries(family, vocab_size))

    def _entries(self, family: MaskedLM, vocab_size: int) -> Iterator[Entry]:
        width, hidden = family.width, family.hidden
        tables = {"embedding": ("word", vocab_size), "position": ("position", family.context),
                  "segment": ("token_type", SEGMENTS)}  # fmt: skip
        for ours, (theirs, count) in tables.items():
            yield Entry((ours, "table"), {f"bert.embeddings.{theirs}_embeddings.weight": (count, width)})
        yield from norm(("norm",), "bert.embeddings.LayerNorm", width, bias=True)
        for i in range(family.layers):
            block: ParamPath = ("blocks", i)
            theirs = f"bert.encoder.layer.{i}"
            qkv = {f"{theirs}.attention.self.{name}": width for name in ("query", "key", "value")}
            yield from dense((*block, "attention", "qkv"), qkv, width)
            yield from dense((*block, "attention", "out"), {f"{theirs}.attention.output.dense": width}, width)
            yield from norm((*block, "attention_norm"), f"{theirs}.attention.output.LayerNorm", width, bias=True)
            yield from dense((*block, "mlp", "up"), {f"{theirs}.intermediate.dense": hidden}, width)
            yield from dense((*block, "mlp", "down"), {f"{theirs}.output.dense": width}, hidden)
            yield from norm((*block, "mlp_norm"), f"{theirs}.output.LayerNorm", width, bias=True)
        yield from dense(("transform",), {"cls.predictions.transform.dense": width}, width)
        yield from norm(("transform_norm",), "cls.predictions.transform.LayerNorm", width, bias=True)
        yield Entry(("output_bias",), {"cls.predictions.bias": (vocab_size,)})
        if family.next_sentence:
            yield from dense(("pooler",), {"bert.pooler.dense": width}, width)
            yield from dense(("next",), {"cls.seq_relationship": 2}, width)

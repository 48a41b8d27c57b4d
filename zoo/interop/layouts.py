"""Layouts of checkpoints of Hugging Face's `transformers`: how GPT-2 and Llama map to a `TransformerLM`.

A layout maps a `config.json` to a family and back, and lists which tensors of a checkpoint make up each parameter. The
matrices of GPT-2's Conv1D are [in, out], as in the zoo. Those of Llama's torch.nn.Linear are [out, in]; it has separate
matrices for queries, keys and values, and for gate and up, which the zoo concatenates.
"""

import abc
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from flax import nnx

from zoo.core.data import Data, Spec
from zoo.core.errors import UserError
from zoo.core.family import Family
from zoo.data.specs import BlockSpec
from zoo.data.text import Text
from zoo.data.tokenizers import Tokenizer
from zoo.interop.checkpoint_files import Entry, ParamPath, Settings, Tensors
from zoo.nets.transformer import Activation
from zoo.transformer_lm import Transformer, TransformerLM

HEAD = "lm_head.weight"


F = TypeVar("F", bound=Family)


def norm(path: ParamPath, name: str, width: int, *, bias: bool) -> Iterator[Entry]:
    """Entries of a normalisation: its scale and, if present, its bias."""
    yield Entry((*path, "scale"), {f"{name}.weight": (width,)})
    if bias:
        yield Entry((*path, "bias"), {f"{name}.bias": (width,)})


def dense(
    path: ParamPath, outs: dict[str, int], width: int, *, bias: bool = True, transposed: bool = True
) -> Iterator[Entry]:
    """Entries of a dense layer with `width` inputs; its outputs are those of the layers in `outs`, concatenated."""
    kernels = {f"{name}.weight": (out, width) if transposed else (width, out) for name, out in outs.items()}
    yield Entry((*path, "kernel"), kernels, transposed)
    if bias:
        yield Entry((*path, "bias"), {f"{name}.bias": (out,) for name, out in outs.items()})


class Layout(abc.ABC, Generic[F]):
    """An architecture of transformers, and the family that corresponds to it."""

    model_type: ClassVar[str]
    """The architecture's name in config.json."""
    kind: ClassVar[type[Family]]
    """The family's class; its state holds one network."""
    vocab_size: ClassVar[int]
    """Default vocabulary size of config.json."""
    says: ClassVar[dict[str, tuple[Any, ...]]]
    """Values that the architecture supports, for each setting of the family of which it does not support all values."""

    @abc.abstractmethod
    def to_family(self, settings: Settings) -> F:
        """Returns the family that a config.json describes.

        Raises:
            UserError: a setting has no equivalent in the zoo.
        """

    def misfits(self, family: F) -> list[str]:
        """Returns the settings of a family that the architecture does not support, as "name value"."""
        values = {name: getattr(family, name) for name in self.says}
        return [f"{name} {value!r}" for name, value in values.items() if value not in self.says[name]]

    @abc.abstractmethod
    def to_config(self, family: F, spec: Any) -> dict[str, Any]:
        """Returns the settings of config.json for a family and the tokens of its data."""

    @abc.abstractmethod
    def network(self, family: F, vocab_size: int) -> nnx.Module:
        """Returns the network that has the parameters of `entries`; called under `nnx.eval_shape`."""

    @abc.abstractmethod
    def make_spec(self, tokenizer: Tokenizer) -> Spec:
        """Returns the spec of data in these tokens."""

    @abc.abstractmethod
    def make_data(self, tokenizer: Tokenizer) -> Data:
        """Returns the default data for evaluate.py: the embedded text in these tokens."""

    @abc.abstractmethod
    def normalise(self, family: F, vocab_size: int, tensors: Tensors) -> Tensors:
        """Returns a checkpoint's tensors under the names of `entries`, without copies and buffers.

        Raises:
            UserError: tensors that must be equal are not.
        """

    @abc.abstractmethod
    def entries(self, family: F, vocab_size: int) -> list[Entry]:
        """Returns the entries of all parameters, with their names in a checkpoint of the whole model."""


class CausalLayout(Layout[TransformerLM]):
    """A causal language model: a body and a head."""

    kind = TransformerLM
    architecture: ClassVar[str]
    """The model's class in transformers."""
    prefix: ClassVar[str]
    """Prefix of all tensor names except the head's; a checkpoint of the model without its head has no prefix."""
    buffers: ClassVar[re.Pattern[str]]
    """Names of tensors that are not parameters: constants that old versions of transformers saved."""

    @abc.abstractmethod
    def body(self, family: TransformerLM, vocab_size: int) -> Iterable[Entry]:
        """Yields the entries of all parameters except the head; names without the prefix."""

    def to_config(self, family: TransformerLM, spec: BlockSpec) -> dict[str, Any]:
        """Returns the settings of config.json."""
        end = spec.tokenizer.end_of_text
        return {
            "architectures": [self.architecture],
            "bos_token_id": end,
            "eos_token_id": end,
            "tie_word_embeddings": family.tied,
            **self.shape(family),
        }

    @abc.abstractmethod
    def shape(self, family: TransformerLM) -> dict[str, Any]:
        """Returns the settings of config.json that describe the network."""

    def network(self, family: TransformerLM, vocab_size: int) -> Transformer:
        """Returns the network."""
        return Transformer(family, vocab_size, 0, nnx.Rngs(0))

    def make_spec(self, tokenizer: Tokenizer) -> BlockSpec:
        """Returns the spec of data in these tokens."""
        return BlockSpec(tokenizer)

    def make_data(self, tokenizer: Tokenizer) -> Text:
        """Returns the embedded text."""
        return Text(tokenizer=cast(Any, tokenizer.kind))

    def normalise(self, family: TransformerLM, vocab_size: int, tensors: Tensors) -> Tensors:
        """Returns the tensors without buffers, with the prefix, and without a head that is tied to the embedding."""
        tensors = {n: value for n, value in tensors.items() if not self.buffers.fullmatch(n.removeprefix(self.prefix))}
        if not any(name.startswith(self.prefix) for name in tensors):  # the model without its head
            tensors = {name if name == HEAD else self.prefix + name: value for name, value in tensors.items()}
        if family.tied and HEAD in tensors:
            head, embedding = tensors.pop(HEAD), next(iter(self.entries(family, vocab_size)[0].tensors))
            if embedding in tensors and not np.array_equal(head, tensors[embedding]):
                raise UserError(f"config.json has tie_word_embeddings = True, but {HEAD} is not the embedding")
        return tensors

    def entries(self, family: TransformerLM, vocab_size: int) -> list[Entry]:
        """Returns the entries of all parameters."""
        body = [
            Entry(entry.path, {self.prefix + name: shape for name, shape in entry.tensors.items()}, entry.transposed)
            for entry in self.body(family, vocab_size)
        ]
        head = dense(("head",), {HEAD.removesuffix(".weight"): vocab_size}, family.width, bias=False)
        return body if family.tied else [*body, *head]


ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu",
}  # fmt: skip
"""The zoo's names for transformers' `activation_function`; the first three are the same tanh approximation."""


class GPT2Layout(CausalLayout):
    """GPT-2: learned positions, LayerNorm, GELU, biases."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    vocab_size = 50257
    prefix = "transformer."
    buffers = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
    says: ClassVar = {
        "positions": ("learned",), "norm": ("layernorm",), "mlp": ("gelu", "gelu_tanh"), "document_mask": (False,),
    }  # fmt: skip

    def to_family(self, settings: Settings) -> TransformerLM:
        """Returns the family of a GPT-2; the three dropout rates of config.json must be equal."""
        settings.must("activation_function", *ACTIVATIONS)
        settings.must("scale_attn_weights", True)
        settings.must("scale_attn_by_inverse_layer_idx", False)
        settings.must("add_cross_attention", False)
        rate = settings.get("resid_pdrop", 0.1)
        for name in ("embd_pdrop", "attn_pdrop"):
            if settings.get(name, 0.1) != rate:
                raise UserError(
                    f"config.json has {name} = {settings.get(name, 0.1)} and resid_pdrop = {rate}; "
                    "here one dropout rate stands for all, so they must be equal"
                )
        return TransformerLM(
            layers=settings.get("n_layer", 12),
            heads=settings.get("n_head", 12),
            width=settings.get("n_embd", 768),
            context=settings.get("n_positions", 1024),
            dropout=float(rate),
            positions="learned",
            norm="layernorm",
            mlp=ACTIVATIONS[settings.get("activation_function", "gelu_new")],
            mlp_width=settings.get("n_inner", 0),
            bias=True,
            tied=settings.get("tie_word_embeddings", True),
            norm_epsilon=float(settings.get("layer_norm_epsilon", 1e-5)),
        )

    def misfits(self, family: TransformerLM) -> list[str]:
        """Returns the settings that GPT-2 does not support; a family without biases is exported with zeros."""
        grouped = family.kv_heads not in (0, family.heads)
        return super().misfits(family) + ([f"kv_heads {family.kv_heads}"] if grouped else [])

    def shape(self, family: TransformerLM) -> dict[str, Any]:
        """Returns the settings of config.json."""
        return {
            "n_layer": family.layers,
            "n_head": family.heads,
            "n_embd": family.width,
            "n_inner": family.mlp_width or None,
            "n_positions": family.context,
            "resid_pdrop": family.dropout,
            "embd_pdrop": family.dropout,
            "attn_pdrop": family.dropout,
            "activation_function": {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[family.mlp],
            "layer_norm_epsilon": family.norm_epsilon,
        }

    def body(self, family: TransformerLM, vocab_size: int) -> Iterable[Entry]:
        """Yields the entries of all parameters except the head."""
        width, hidden = family.width, family.hidden
        yield Entry(("embedding", "table"), {"wte.weight": (vocab_size, width)})
        yield Entry(("position", "table"), {"wpe.weight": (family.context, width)})
        for i in range(family.layers):
            ours: ParamPath = ("blocks", i)
            kind = {"bias": True, "transposed": False}
            yield from norm((*ours, "attention_norm"), f"h.{i}.ln_1", width, bias=True)
            yield from dense((*ours, "attention", "qkv"), {f"h.{i}.attn.c_attn": 3 * width}, width, **kind)
            yield from dense((*ours, "attention", "out"), {f"h.{i}.attn.c_proj": width}, width, **kind)
            yield from norm((*ours, "mlp_norm"), f"h.{i}.ln_2", width, bias=True)
            yield from dense((*ours, "mlp", "up"), {f"h.{i}.mlp.c_fc": hidden}, width, **kind)
            yield from dense((*ours, "mlp", "down"), {f"h.{i}.mlp.c_proj": width}, hidden, **kind)
        yield from norm(("norm",), "ln_f", width, bias=True)


class LlamaLayout(CausalLayout):
    """Llama: rotary positions, RMSNorm, SwiGLU, grouped-query attention."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    vocab_size = 32000
    prefix = "model."
    buffers = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rotary_emb\.inv_freq")
    says: ClassVar = {
        "positions": ("rope",), "norm": ("rmsnorm",), "mlp": ("swiglu",), "document_mask": (False,),
    }  # fmt: skip

    def to_family(self, settings: Settings) -> TransformerLM:
        """Returns the family of a Llama; its rotary positions must not be scaled."""
        width, heads = settings.get("hidden_size", 4096), settings.get("num_attention_heads", 32)
        settings.must("hidden_act", "silu", "swish")
        settings.must("head_dim", width // max(heads, 1))
        settings.must("attention_dropout", 0.0)
        bias = settings.get("attention_bias", False)
        if settings.get("mlp_bias", False) != bias:
            raise UserError(f"config.json has attention_bias = {bias} and mlp_bias = {not bias}; they must be equal")
        # rope_parameters since transformers 5; before, a top-level rope_theta and the scaling in rope_scaling.
        tables = settings.get("rope_scaling", {}) | settings.get("rope_parameters", {})
        rope = Settings({n: settings.values.get(n) for n in ("rope_theta", "partial_rotary_factor")} | tables)
        for name, plain in (("rope_type", "default"), ("type", "default"), ("partial_rotary_factor", 1.0)):
            rope.must(name, plain)
        return TransformerLM(
            layers=settings.get("num_hidden_layers", 32),
            heads=heads,
            kv_heads=settings.get("num_key_value_heads", 0),
            width=width,
            context=settings.get("max_position_embeddings", 2048),
            positions="rope",
            norm="rmsnorm",
            mlp="swiglu",
            mlp_width=settings.get("intermediate_size", 11008),
            bias=bias,
            tied=settings.get("tie_word_embeddings", False),
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            norm_epsilon=float(settings.get("rms_norm_eps", 1e-6)),
        )

    def shape(self, family: TransformerLM) -> dict[str, Any]:
        """Returns the network's settings; the zoo's dropout has no equivalent in Llama and affects only training."""
        return {
            "num_hidden_layers": family.layers,
            "num_attention_heads": family.heads,
            "num_key_value_heads": family.kv_heads or family.heads,
            "hidden_size": family.width,
            "head_dim": family.width // family.heads,
            "intermediate_size": family.hidden,
            "max_position_embeddings": family.context,
            "hidden_act": "silu",
            "attention_bias": family.bias,
            "mlp_bias": family.bias,
            "attention_dropout": 0.0,
            "rms_norm_eps": family.norm_epsilon,
            "rope_parameters": {"rope_type": "default", "rope_theta": family.rope_theta},
        }

    def body(self, family: TransformerLM, vocab_size: int) -> Iterable[Entry]:
        """Yields the entries of all parameters except the head."""
        width, hidden = family.width, family.hidden
        shared = (family.kv_heads or family.heads) * (width // family.heads)
        yield Entry(("embedding", "table"), {"embed_tokens.weight": (vocab_size, width)})
        for i in range(family.layers):
            ours: ParamPath = ("blocks", i)
            attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
            kind = {"bias": family.bias, "transposed": True}
            qkv = {f"{attention}.q_proj": width, f"{attention}.k_proj": shared, f"{attention}.v_proj": shared}
            up = {f"{mlp}.gate_proj": hidden, f"{mlp}.up_proj": hidden}
            yield from norm((*ours, "attention_norm"), f"layers.{i}.input_layernorm", width, bias=False)
            yield from dense((*ours, "attention", "qkv"), qkv, width, **kind)
            yield from dense((*ours, "attention", "out"), {f"{attention}.o_proj": width}, width, **kind)
            yield from norm((*ours, "mlp_norm"), f"layers.{i}.post_attention_layernorm", width, bias=False)
            yield from dense((*ours, "mlp", "up"), up, width, **kind)
            yield from dense((*ours, "mlp", "down"), {f"{mlp}.down_proj": width}, hidden, **kind)
        yield from norm(("norm",), "norm", width, bias=False)

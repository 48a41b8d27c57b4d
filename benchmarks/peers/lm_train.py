"""Times training of a language model by PyTorch on the CPU, in float32.

    python benchmarks/peers/lm_train.py {gpt|transformers} {small|base} [compile]

gpt: a plain pre-norm GPT of torch.nn (fused causal attention, tied embedding, no biases). transformers: its
GPT2LMHeadModel. Both with AdamW and clipping at 1, on random tokens. Prints one JSON line.
"""

import sys

import torch
import torch.nn.functional as F
from timing import THREADS, emit, timed
from torch import nn

# layers, heads, width, context, batch, vocabulary
SHAPES = {"small": (4, 4, 128, 64, 12, 65), "base": (6, 6, 384, 256, 12, 65)}


class Block(nn.Module):
    def __init__(self, heads, width):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        b, t, width = x.shape
        parts = self.qkv(self.norm_1(x)).split(width, -1)
        q, k, v = (z.view(b, t, self.heads, width // self.heads).transpose(1, 2) for z in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    def __init__(self, layers, heads, width, context, vocabulary):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, x, y, reduction="mean"):
        h = self.token(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy((self.norm(h) @ self.token.weight.T).flatten(0, 1), y.flatten(), reduction=reduction)


def make(program, layers, heads, width, context, vocabulary):
    """The model, and its loss as a function of the model, inputs and targets."""
    if program == "gpt":
        return GPT(layers, heads, width, context, vocabulary), lambda model, x, y: model(x, y)
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": layers, "n_head": heads, "n_embd": width, "n_positions": context, "vocab_size": vocabulary}
    config = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(config), lambda model, x, y: model(input_ids=x, labels=x).loss


def main(program, size, *options):
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    layers, heads, width, context, batch, vocabulary = SHAPES[size]
    model, loss_of = make(program, layers, heads, width, context, vocabulary)
    run = torch.compile(model) if "compile" in options else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    model.train()

    def step():
        x, y = torch.randint(0, vocabulary, (2, batch, context))
        loss = loss_of(run, x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    parameters = sum(p.numel() for p in model.parameters())
    name = " ".join([program, *options])
    emit(name, f"lm_train {size}", "tokens/s", batch * context, timed(step, warm=3), params=parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])

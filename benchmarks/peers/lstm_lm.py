"""Times training of a character LSTM by PyTorch on the CPU: two layers of 256, embedding 128, 65 symbols.

    python benchmarks/peers/lstm_lm.py torch lstm

Rows of 64 steps, 32 in a batch, with Adam and gradients clipped at 1, on random tokens. Prints one JSON line.
"""

import sys

import torch
import torch.nn.functional as F
from timing import THREADS, emit, timed
from torch import nn

SYMBOLS, EMBEDDING, WIDTH, LAYERS, STEPS, BATCH = 65, 128, 256, 2, 64, 32
CELLS = {"lstm": nn.LSTM}


def main(program, case):
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    embedding, head = nn.Embedding(SYMBOLS, EMBEDDING), nn.Linear(WIDTH, SYMBOLS)
    layers = CELLS[case](EMBEDDING, WIDTH, LAYERS, batch_first=True)
    parameters = [p for module in (embedding, layers, head) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step():
        tokens = torch.randint(0, SYMBOLS, (BATCH, STEPS + 1))
        logits = head(layers(embedding(tokens[:, :-1]))[0])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()

    count = sum(p.numel() for p in parameters)
    timing = timed(step, warm=3, min_s=6)
    emit(program, f"lstm_lm {case}", "tokens/s", BATCH * STEPS, timing, params=count, batch=BATCH)


if __name__ == "__main__":
    main(*sys.argv[1:])

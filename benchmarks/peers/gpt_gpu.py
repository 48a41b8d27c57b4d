"""Times lm_train.py's PyTorch GPT on a GPU in bfloat16: torch.compile, autocast, fused attention and AdamW.

    python benchmarks/peers/gpt_gpu.py [--smoke]

GPT-2 124M at context 1,024 in batches of 32, like `benchmarks.gpu_work.gpt2`; --smoke runs a tiny one on the CPU,
without compilation. Prints one JSON line.
"""

import json
import statistics
import sys
import time

import torch
from lm_train import GPT
from torch import nn


def main(smoke):
    layers, heads, width, context, batch, vocabulary = (
        (1, 2, 16, 16, 2, 1100) if smoke else (12, 12, 768, 1024, 32, 50257)
    )
    if not smoke and not torch.cuda.is_available():
        sys.exit("PyTorch finds no CUDA device")
    torch.manual_seed(0)
    torch.set_default_device("cpu" if smoke else "cuda")
    device = torch.get_default_device().type
    torch.set_float32_matmul_precision("high")
    # 50,304 rows as in nanoGPT, since matrix units need multiples of 64; no target is one of the 47 added rows.
    model = GPT(layers, heads, width, context, -(-vocabulary // 64) * 64)
    run = model if smoke else torch.compile(model)
    options = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(model.parameters(), fused=not smoke, **options)
    x, y = torch.randint(0, vocabulary, (2, batch, context))

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = run(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    began = time.perf_counter()
    for _ in range(5):
        step()
    wait()
    warm, began, seconds = time.perf_counter() - began, time.perf_counter(), []
    while len(seconds) < (2 if smoke else 10) or (not smoke and time.perf_counter() - began < 3.0):
        start = time.perf_counter()
        for _ in range(5):
            loss = step()
        wait()
        seconds.append((time.perf_counter() - start) / 5)
    assert torch.isfinite(loss)
    took = statistics.median(seconds)
    figures = {
        "step_ms": 1000 * took,
        "per_second": batch * context / took,
        "unit": "tokens",
        "rows": batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "warm_seconds": warm,
        "steps": 5 * len(seconds),
        "torch": torch.__version__,
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])

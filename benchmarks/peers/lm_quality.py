"""Trains a plain PyTorch GPT (nanoGPT's shape and recipe) from given initial weights on given batches.

    python benchmarks/peers/lm_quality.py FOLDER

FOLDER has `settings.json` (shape, optimizer and schedule), `init.safetensors` (initial weights under this program's
names) and `batches.npz`: `inputs` and `targets` [steps b t], `held_out_inputs` and `held_out_targets` [n t]; targets of
-100 have no loss. Prints one JSON line with the mean loss of all held-out targets after the last step.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from lm_train import GPT
from safetensors.torch import load_file
from timing import THREADS


def learning_rate(step, s):
    """nanoGPT's schedule: linear warm-up, then cosine decay."""
    if step < s["warmup_steps"]:
        return s["learning_rate"] * (step + 1) / (s["warmup_steps"] + 1)
    done = (step - s["warmup_steps"]) / (s["steps"] - s["warmup_steps"])
    last = s["learning_rate"] * s["final_fraction"]
    return last + 0.5 * (1 + math.cos(math.pi * done)) * (s["learning_rate"] - last)


def make_optimizer(net, s):
    matrices = [p for p in net.parameters() if p.ndim >= 2]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": s["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=s["learning_rate"], betas=(s["beta1"], s["beta2"]), eps=s["epsilon"])


def train(net, batches, s):
    optimizer = make_optimizer(net, s)
    net.train()
    for step in range(s["steps"]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, s)
        inputs, targets = (torch.from_numpy(batches[name][step].astype(np.int64)) for name in ("inputs", "targets"))
        loss = net(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), s["clip_norm"])
        optimizer.step()
    return loss.item()


@torch.no_grad()
def held_out_loss(net, inputs, targets, rows=64):
    net.eval()
    total = 0.0
    for i in range(0, len(inputs), rows):
        part = (torch.from_numpy(array[i : i + rows].astype(np.int64)) for array in (inputs, targets))
        total += net(*part, reduction="sum").item()
    return total / int((targets != -100).sum())


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(THREADS)
    s = json.loads((folder / "settings.json").read_text())
    with np.load(folder / "batches.npz") as file:
        batches = dict(file)
    net = GPT(s["layers"], s["heads"], s["width"], s["context"], s["vocabulary"])
    net.load_state_dict(load_file(folder / "init.safetensors"))
    held_out = batches["held_out_inputs"], batches["held_out_targets"]
    first, begin = held_out_loss(net, *held_out), time.perf_counter()
    train(net, batches, s)
    seconds = time.perf_counter() - begin
    figures = {
        "held_out_nats": held_out_loss(net, *held_out),
        "held_out_nats_before": first,
        "seconds": round(seconds, 1),
    }
    about = {"peer": "gpt-torch", "task": "lm_quality", "seed": s["seed"], "threads": THREADS}
    print(json.dumps(about | figures), flush=True)


if __name__ == "__main__":
    main()

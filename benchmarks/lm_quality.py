"""Compares the held-out losses of the zoo's Transformer LM and a plain PyTorch GPT: same initial weights and batches.

    python -m benchmarks.lm_quality [--seeds 0 1 2] [--steps 2000]

For each seed, `zoo.fit` and `benchmarks/peers/lm_quality.py` train the setting of `configs/transformer_lm.py` from the
same initial weights on the same batches, and both are scored on the whole test split. Prints one JSON line for each
run, and one with the mean difference (positive: the zoo's loss is higher). PEER_PYTHON names an interpreter with
PyTorch, if this one lacks it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

import zoo
from zoo.core.data import DataSet
from zoo.harness.trained import make_setup
from zoo.interop.transformers import write_run
from zoo.nn.losses import counted

ROOT = Path(__file__).parents[1]
PEER = Path(__file__).parent / "peers" / "lm_quality.py"


def torch_names(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The initial weights under the peer's names; torch.nn.Linear stores its matrices as [out, in]."""
    tensors = {
        "token.weight": params["embedding"]["table"],
        "position.weight": params["position"]["table"],
        "norm.weight": params["norm"]["scale"],
    }
    for i, block in params["blocks"].items():
        tensors |= {
            f"blocks.{i}.norm_1.weight": block["attention_norm"]["scale"],
            f"blocks.{i}.qkv.weight": block["attention"]["qkv"]["kernel"].T,
            f"blocks.{i}.out.weight": block["attention"]["out"]["kernel"].T,
            f"blocks.{i}.norm_2.weight": block["mlp_norm"]["scale"],
            f"blocks.{i}.up.weight": block["mlp"]["up"]["kernel"].T,
            f"blocks.{i}.down.weight": block["mlp"]["down"]["kernel"].T,
        }
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def pairs(batch: dict[str, np.ndarray], end_of_text: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets [b t] of a batch's valid rows; -100, PyTorch's `ignore_index`, is a target without loss."""
    tokens = batch["tokens"]
    targets = np.where(counted(batch, end_of_text), tokens[:, 1:], -100)
    return tokens[batch["valid"], :-1].astype(np.int16), targets[batch["valid"]].astype(np.int16)


def write_batches(path: Path, data: DataSet, steps: int) -> None:
    """Writes all training batches in order and the whole test split."""
    end_of_text = data.spec.tokenizer.end_of_text
    train = [pairs(data.batch_at(step), end_of_text) for step in range(steps)]
    test = data.on("test")
    held_out = [pairs(test.held_out_at(i), end_of_text) for i in range(test.held_out_batches)]
    inputs, targets = map(np.stack, zip(*train, strict=True))
    held_out_inputs, held_out_targets = map(np.concatenate, zip(*held_out, strict=True))
    np.savez(path, inputs=inputs, targets=targets, held_out_inputs=held_out_inputs, held_out_targets=held_out_targets)


def write_work(run: zoo.Run, folder: Path) -> zoo.Run:
    """Writes the peer's input files, and returns the zoo's run with the same initial weights."""
    family, optimizer = run.family, run.optimizer
    data = run.data.open(length=family.length, batch_size=run.batch_size, seed=run.seed)
    first = jax.jit(lambda key: family.init(data.spec, make_setup(run), key))(jax.random.key(run.seed)).net.params
    write_run(replace(run, rundir=str(folder / "first")), data.spec, first)
    save_file(torch_names(first), folder / "init.safetensors")
    write_batches(folder / "batches.npz", data, run.steps)
    settings = {name: getattr(family, name) for name in ("layers", "heads", "width", "context")} | {
        name: getattr(optimizer, name)
        for name in (
            "learning_rate", "warmup_steps", "final_fraction", "beta1", "beta2", "epsilon", "weight_decay", "clip_norm",
        )
    }  # fmt: skip
    settings |= {"vocabulary": data.spec.tokenizer.vocab_size, "steps": run.steps, "seed": run.seed}
    (folder / "settings.json").write_text(json.dumps(settings))
    return replace(run, rundir=str(folder / "zoo"), init=zoo.Init(str(folder / "first")))


def compare(run: zoo.Run, folder: Path) -> float:
    """Trains both; returns the zoo's held-out loss minus the peer's, in nats a token."""
    run = write_work(run, folder)
    begin = time.perf_counter()
    trained = zoo.fit(run)
    seconds = time.perf_counter() - begin
    figures = trained.evaluate(split="test")
    about = {"peer": "zoo", "task": "lm_quality", "seed": run.seed, "held_out_nats": figures["loss"]}
    before = zoo.load_run(folder / "first").evaluate(split="test")["loss"]
    print(json.dumps(about | {"held_out_nats_before": before, "seconds": round(seconds, 1)}), flush=True)
    command = [os.environ.get("PEER_PYTHON", sys.executable), str(PEER), str(folder)]
    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    print(line, flush=True)
    return figures["loss"] - json.loads(line)["held_out_nats"]


def main() -> None:
    """Parses the command line and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    settings = zoo.load_config(str(ROOT / "configs" / "transformer_lm.py"))
    quiet = {"log_every": 100, "eval_every": 0, "score_every": 0, "save_every": 0, "sample_every": 0}
    differences = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = replace(settings, seed=seed, steps=arguments.steps, **quiet)
            differences.append(compare(run, Path(folder)))
    summary = {"task": "lm_quality", "seeds": arguments.seeds, "mean_difference_nats": float(np.mean(differences))}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

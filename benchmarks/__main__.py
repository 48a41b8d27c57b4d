"""Runs the zoo and other programs in turn on the same work and prints the ratios of their rates.

    python -m benchmarks {lm_train|lm_decode|lstm_lm|images|cpu_forms} [--rounds 3] [--cases ...] [--peers ...]
        [--peer-python [PEER=]PYTHON ...]

Every line but the last is the output of one program. The last has, for each task, the zoo's median rate divided by each
peer's. --peer-python names the interpreter that has the peers' packages, for all peers or for one. cpu_forms has no
peers; it compares layers with their plain forms.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
# The peers and the cases of each benchmark; a peer script's arguments are the peer's name and the case.
PROGRAMS = {
    "lm_train": ["gpt"],
    "lm_decode": ["transformers", "ctranslate2", "llama.cpp"],
    "lstm_lm": ["torch"],
    "images": ["torch"],
    "cpu_forms": [],
}
CASES = {
    "lm_train": ["small", "base"],
    "lm_decode": ["1", "8", "beam5"],
    "lstm_lm": ["lstm"],
    "images": ["ddpm_train", "ddpm_sample", "dcgan", "vae"],
    "cpu_forms": ["all"],
}


def interpreters(given: list[str]) -> dict[str, str]:
    """The Python interpreter of each peer; that of "" runs all other peers."""
    pairs = [value.split("=", 1) if "=" in value else ["", value] for value in given]
    return {"": os.environ.get("PEER_PYTHON", sys.executable)} | dict(pairs)


def run(command: list[str]) -> list[dict]:
    """Runs a program, prints its JSON lines and returns them."""
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _rates(line: dict) -> dict[str, float]:
    """The rate of each program in a line, which has one program's rate or, for cpu_forms, the milliseconds of both."""
    return {line["peer"]: line["value"]} if "peer" in line else {which: 1 / ms for which, ms in line["ms"].items()}


def ratios(lines: list[dict]) -> dict[str, dict[str, float]]:
    """For each task, the zoo's median rate divided by each peer's."""
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for peer, rate in _rates(line).items():
            rates[line["task"]][peer].append(rate)
    medians = {task: {peer: statistics.median(r) for peer, r in peers.items()} for task, peers in rates.items()}
    return {
        task: {peer: round(peers["zoo"] / rate, 2) for peer, rate in peers.items() if peer != "zoo"}
        for task, peers in medians.items()
    }


def main() -> None:
    """Parses the command line, runs the programs in turn and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=PROGRAMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--peers", nargs="+")
    parser.add_argument("--peer-python", nargs="+", default=[])
    asked = parser.parse_args()
    pythons, lines = interpreters(asked.peer_python), []
    for _ in range(asked.rounds):
        for case in asked.cases or CASES[asked.benchmark]:
            lines += run([sys.executable, "-m", f"benchmarks.{asked.benchmark}", case])
            for peer in asked.peers or PROGRAMS[asked.benchmark]:
                script = str(PEERS / f"{asked.benchmark}.py")
                lines += run([pythons.get(peer, pythons[""]), script, peer, case])
    print(json.dumps({"benchmark": asked.benchmark, "rounds": asked.rounds, "ratios": ratios(lines)}))


if __name__ == "__main__":
    main()

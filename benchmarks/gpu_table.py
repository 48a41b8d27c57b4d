"""The results of `benchmarks.gpu` as markdown tables."""

from collections.abc import Callable
from typing import Any

GIB = 2**30


def cell(case: dict[str, Any] | None, show: Callable[[dict[str, Any]], str]) -> str:
    """The text of a case's figures, or its error."""
    if case is None:
        return "not run"
    return case["error"] if "error" in case else show(case)


def memory(figures: dict[str, Any]) -> str:
    """Peak memory in GiB, if the device reports it."""
    return f"{figures['peak_bytes'] / GIB:.2f} GiB" if figures["peak_bytes"] else "memory unknown"


def rate(figures: dict[str, Any]) -> str:
    """Units (tokens or images) a second and peak memory."""
    return f"{figures['per_second']:,.0f} {figures['unit']}/s, {memory(figures)}"


def head(record: dict[str, Any]) -> list[str]:
    """The device, the versions and what was not checked."""
    device = record["device"]
    lines = [
        f"{device['devices']} x {device['kind']} ({device['platform']}), jax {device['jax']}, "
        f"Python {device['python']}." + (" Tiny sizes: the figures mean nothing." if record["smoke"] else "")
    ]
    if record["not_checked"]:
        what = "; ".join(f"{name} is missing, so {use}" for name, use in record["not_checked"].items())
        lines.append(f"Not checked here: {what}.")
    return lines


def language_model(cases: dict[str, Any]) -> list[str]:
    """GPT-2 of the zoo and of PyTorch."""
    zoo, peer = cases.get("gpt2:zoo"), cases.get("gpt2:torch")

    def used(figures: dict[str, Any]) -> str:
        if not figures["utilisation"]:
            return "unknown: the data sheet's peak of this device is not in the table"
        return f"{figures['utilisation']:.1%} of {figures['peak_flops_per_second'] / 1e12:,.0f} TFLOP/s"

    lines = [
        "| GPT-2 124M, context 1,024, batch 32, bfloat16 | tokens and memory | model-FLOPs utilisation |",
        "|---|---|---|",
        f"| zoo | {cell(zoo, rate)} | {cell(zoo, used)} |",
        f"| PyTorch, compiled | {cell(peer, rate)} | |",
    ]
    if zoo and peer and "error" not in zoo and "error" not in peer:
        lines.append(f"| zoo / PyTorch | {zoo['per_second'] / peer['per_second']:.2f} | |")
    utilisation = (
        "Utilisation counts 2 operations a weight and token of every matrix, and attention to the keys that a causal "
        "mask leaves, forward and twice that backward, against the data sheet's dense bfloat16 peak."
    )
    return [*lines, "", utilisation]


def families(cases: dict[str, Any]) -> list[str]:
    """Every family's training step in both precisions."""
    names = dict.fromkeys(name.split(":")[1] for name in cases if name.startswith("train:"))
    lines = ["| training step | bfloat16 | float32 |", "|---|---|---|"]
    for name in names:
        found = (cell(cases.get(f"train:{name}:{dtype}"), rate) for dtype in ("bfloat16", "float32"))
        lines.append(f"| {name} | {' | '.join(found)} |")
    return lines if names else []


def checks(cases: dict[str, Any]) -> list[str]:
    """Results of the checks."""
    lines = ["| check | found |", "|---|---|"]

    def contract(figures: dict[str, Any]) -> str:
        return (
            f"{'right' if figures['ok'] else 'WRONG'}: {figures['devices']} device(s) by jit and pmap differ from one "
            f"by {max(figures['jit_difference'], figures['pmap_difference']):.1e}, "
            f"resumed {'bit for bit' if figures['resumed_bitwise'] else 'NOT bit for bit'}"
        )

    def precision(figures: dict[str, Any]) -> str:
        return (
            f"gradients of bfloat16 are {figures['median_error']:.2%} off in the median leaf, "
            f"{figures['worst_error']:.2%} in the worst; after {figures['steps']} steps the loss is "
            f"{figures['loss_distance']:.2%} off"
        )

    for name, case in cases.items():
        if name.startswith("contract:"):
            lines.append(f"| {name} | {cell(case, contract)} |")
        if name.startswith("precision:"):
            lines.append(f"| {name} | {cell(case, precision)} |")
        if name.startswith("again:"):
            other = cases.get(name.replace("again", "contract"), {}).get("digest")

            def same(figures: dict[str, Any], other: Any = other) -> str:
                return "bit for bit" if figures["digest"] == other else "NOT bit for bit"

            lines.append(f"| two processes agree, {name.split(':')[1]} | {cell(case, same)} |")
    return lines if lines[2:] else []


def table(record: dict[str, Any]) -> str:
    """All tables of a record."""
    cases = record["cases"]
    parts = [head(record), language_model(cases), families(cases), checks(cases)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

"""Folders that tests read from."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCES = ROOT / "tests" / "references"
RUNS = ROOT / "tests" / "runs"

"""Every notebook runs from top to bottom, on a tiny setting."""

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT

FAST = ("transformer_lm",)
NOTEBOOKS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in FAST))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
]

# What stands in for the sizes in a notebook's cell tagged "parameters"; a notebook takes the names that it has.
TINY = {
    "steps": 6,
    "layers": 1,
    "heads": 2,
    "width": 16,
    "context": 32,
    "batch_size": 8,
    "channels": (8, 16),
    "latent": 2,
}


# Jupyter's client has warnings of its own about event loops and missing ids.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The quick brown fox, it jumps over that lazy dog;\nTo be, or not to be. " * 40)
    places = {"corpus": str(corpus), "rundir": str(tmp_path / "run")}
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in (TINY | places).items())
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a notebook draws something"
    assert not any(output.output_type == "error" for output in outputs)

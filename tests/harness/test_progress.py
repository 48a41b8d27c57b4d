"""Progress in a notebook: one output that is updated, and images as they come; lines where nothing can be redrawn."""

import base64
import io
import logging

import nbformat
import numpy as np
import PIL.Image
import pytest
from nbclient import NotebookClient
from rich.console import Console

from zoo.core.artifacts import Image, Text
from zoo.harness.progress import Meter, show_images

CELL = """
import numpy as np
from zoo.core.artifacts import Image, Text
from zoo.harness.progress import Meter, log, show_images, to_console

with to_console() as console:
    meter = Meter(console, 0, 300, "tokens", 10)
    for step in range(1, 301):
        meter.update(step, 3.0 - step / 300, 100.0)
        if step == 150:
            log.info("step 150 held-out: loss 2.6")
            grey = [Image(np.full((8, 8, 1), value, np.uint8)) for value in (0, 100, 200, 255)]
            show_images(console, grey)
            show_images(console, [Text("a text")])
    meter.close()
"""


# Jupyter's client has warnings of its own about event loops and missing ids.
@pytest.mark.filterwarnings("default")
def test_a_notebook_has_one_bar_the_messages_and_the_images(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output.get("data", {}) for output in notebook.cells[0].outputs]
    assert len(outputs) == 3
    bar, message, picture = outputs
    assert bar["text/plain"] == "step 300/300  loss 2.0000  100.0 tokens/s  ETA 0:00:00"
    assert '<progress value="300" max="300"' in bar["text/html"]
    assert "held-out: loss 2.6" in message["text/plain"]
    pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture["image/png"]))))
    assert {0, 100, 200, 255} <= set(pixels.ravel())


def test_lines_give_the_first_and_the_last_step(caplog):
    console = Console(file=io.StringIO())
    with caplog.at_level(logging.INFO, "zoo"):
        meter = Meter(console, 10, 110, "images", 50)
        for step in range(11, 111):
            meter.update(step, 1.5, 25.0)
        meter.close()
        show_images(console, [Image(np.zeros((8, 8, 1), np.uint8)), Text("a text")])
    assert caplog.messages == [
        "step 11/110  loss 1.5000  25.0 images/s", "step 110/110  loss 1.5000  25.0 images/s  ETA 0:00:00",
    ]  # fmt: skip

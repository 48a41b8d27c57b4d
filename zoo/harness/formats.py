"""The format number of saved settings and specs, and how to read earlier formats.

Format 1 had no number; it was written until the modules moved into the present folders.
"""

from typing import Any

from zoo.core.errors import UserError

FORMAT = 2

MOVED = {
    "zoo.core.config:Init": "zoo.harness.config:Init",
    "zoo.core.config:Run": "zoo.harness.config:Run",
    "zoo.data.augment:Augment": "zoo.data.images.augment:Augment",
    "zoo.data.images:Images": "zoo.data.images.dataset:Images",
    "zoo.data.pairs:Pairs": "zoo.data.pairs.dataset:Pairs",
    "zoo.data.sentence_pairs:SentencePairs": "zoo.data.text.sentence_pairs:SentencePairs",
    "zoo.data.sentences:Sentences": "zoo.data.text.sentences:Sentences",
    "zoo.data.text:Text": "zoo.data.text.blocks:Text",
    "zoo.ddpm:DDPMScoring": "zoo.metrics.diffusion_scoring:DiffusionScoring",
    "zoo.metrics.classifier:Classifier": "zoo.classifier:Classifier",
}
"""Classes of format 1 that have another name in format 2."""


def upgrade(data: Any, where: str) -> Any:
    """Parsed JSON as the present format has it, without its number.

    Raises:
        UserError: a later version wrote it.
    """
    if not isinstance(data, dict):
        return data
    number = data.get("format", 1)
    if type(number) is not int or number > FORMAT:
        raise UserError(f"{where} has format {number!r}; this version reads formats up to {FORMAT}, so update the zoo")
    data = {key: item for key, item in data.items() if key != "format"}
    return _rename_classes(data) if number == 1 else data


def _rename_classes(data: Any) -> Any:
    if isinstance(data, list):
        return [_rename_classes(item) for item in data]
    if not isinstance(data, dict):
        return data
    renamed = {key: _rename_classes(item) for key, item in data.items()}
    if isinstance(name := data.get("class"), str):
        renamed["class"] = MOVED.get(name, name)
    return renamed

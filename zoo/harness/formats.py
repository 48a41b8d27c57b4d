"""The format number of a run's files, and the conversion of earlier formats.

Files of format 1 have no number; they were written before the modules moved into the present folders. Format 3 renamed
the scoring of language models, format 4 the scoring of DDPMs and the networks of a state. Checkpoints have no number of
their own: whether one is of an earlier format shows in the paths of its arrays.
"""

from collections.abc import Collection, Iterable
from typing import Any

from zoo.core.errors import UserError

FORMAT = 4

MOVED = {
    "zoo.core.config:Init": "zoo.harness.config:Init",
    "zoo.core.config:Run": "zoo.harness.config:Run",
    "zoo.data.augment:Augment": "zoo.data.images.augment:Augment",
    "zoo.data.images:Images": "zoo.data.images.dataset:Images",
    "zoo.data.pairs:Pairs": "zoo.data.pairs.dataset:Pairs",
    "zoo.data.sentence_pairs:SentencePairs": "zoo.data.text.sentence_pairs:SentencePairs",
    "zoo.data.sentences:Sentences": "zoo.data.text.sentences:Sentences",
    "zoo.data.text:Text": "zoo.data.text.blocks:Text",
    "zoo.image_vae:Scores": "zoo.image_vae:ImageVAEScoring",
    "zoo.lstm_lm:Scores": "zoo.lstm_lm:LSTMLMScoring",
    "zoo.metrics.classifier:Classifier": "zoo.classifier:Classifier",
    "zoo.metrics.diffusion_scoring:DiffusionScoring": "zoo.ddpm:DDPMScoring",
    "zoo.metrics.text:TextScoring": "zoo.metrics.tokens:TokenScoring",
    "zoo.seq2seq:Scores": "zoo.seq2seq:Seq2SeqScoring",
    "zoo.text_vae:Scores": "zoo.text_vae:TextVAEScoring",
}
"""Classes that earlier formats have under another name: old name -> new name."""

NETWORKS = {
    "lm": "net",
    "mlm": "net",
    "unet": "net",
    "vae": "net",
    "vqvae": "net",
    "denoiser": "net",
    "gen": "generator",
    "disc": "discriminator",
}
"""Networks that earlier formats have under another name in a state: old name -> new name."""


def upgrade(data: Any, where: str) -> Any:
    """Converts parsed JSON to the present format and removes the format number.

    Args:
        data: parsed JSON.
        where: name of the file, for the error.

    Raises:
        UserError: it has a later format.
    """
    if not isinstance(data, dict):
        return data
    number = data.get("format", 1)
    if type(number) is not int or number > FORMAT:
        raise UserError(f"{where} has format {number!r}; this version reads formats up to {FORMAT}, so update the zoo")
    data = {key: item for key, item in data.items() if key != "format"}
    return _rename_classes(data) if number < FORMAT else data


def paths_in(saved: Collection[str], wanted: Iterable[str]) -> dict[str, str]:
    """The path of each wanted array in a checkpoint of this format or an earlier one.

    Args:
        saved: paths of the arrays in the checkpoint.
        wanted: paths of arrays in a state of the present format.

    Returns:
        Wanted path -> saved path. A path that the checkpoint lacks under any name is unchanged.
    """
    return {path: next((name for name in _names_of(path) if name in saved), path) for path in wanted}


def _names_of(path: str) -> list[str]:
    """A path, and the paths that it had in earlier formats."""
    network, _, rest = path.partition(".")
    return [path, *(f"{old}.{rest}" for old, new in NETWORKS.items() if new == network)]


def _rename_classes(data: Any) -> Any:
    if isinstance(data, list):
        return [_rename_classes(item) for item in data]
    if not isinstance(data, dict):
        return data
    renamed = {key: _rename_classes(item) for key, item in data.items()}
    if isinstance(name := data.get("class"), str):
        renamed["class"] = MOVED.get(name, name)
    return renamed

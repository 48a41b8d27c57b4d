"""Reads and writes GPT-2, Llama and BERT of Hugging Face's `transformers`, without PyTorch or transformers.

    python -m zoo.interop.transformers FOLDER RUNDIR            makes a run directory from a checkpoint
    python -m zoo.interop.transformers --export RUNDIR FOLDER   writes a run's weights for `from_pretrained`

FOLDER contains config.json, model.safetensors (or its shards and their index) and tokenizer.json. sample.py,
evaluate.py and `train.py --init.from` accept the run directory. Reading uses every tensor and fills every parameter, or
fails; a setting without an equivalent in the zoo is an error that names it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flax import nnx
from safetensors.numpy import save_file

from zoo.core.errors import UserError, run_script
from zoo.core.family import Family
from zoo.data.specs import SegmentSpec
from zoo.harness.checkpoint import flatten
from zoo.harness.config import Run
from zoo.harness.platform import prepare
from zoo.harness.rundir import log
from zoo.harness.trained import load_run
from zoo.interop.bert import BertLayout
from zoo.interop.checkpoint_files import Settings, Tensors, check_free, fill, gather, load_tensors, read_object
from zoo.interop.imported_run import under, write_run
from zoo.interop.layouts import GPT2Layout, Layout, LlamaLayout
from zoo.interop.tokenizer_json import read_tokenizer, write_tokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


LAYOUTS: tuple[Layout[Any], ...] = (GPT2Layout(), LlamaLayout(), BertLayout())


def read_transformers(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint in the layout of transformers.

    Args:
        folder: contains config.json and model.safetensors, or shards and model.safetensors.index.json.

    Returns:
        The family, a `TransformerLM` or a `MaskedLM`, and the parameters of its network, float32.

    Raises:
        UserError: a file is missing or broken, a setting has no equivalent in the zoo, or tensors are missing, unused
            or of another shape; the message names it.
    """
    folder = Path(folder)
    values = read_object(folder / CONFIG)
    layout = _layout_of(values)
    settings = Settings(values)
    family, vocab_size = layout.to_family(settings), settings.get("vocab_size", layout.vocab_size)
    tensors = layout.normalise(family, vocab_size, _read_tensors(folder))
    params = fill(layout.entries(family, vocab_size), tensors)
    _check_complete(layout, family, vocab_size, params)
    return family, params


def write_transformers(folder: str | Path, family: Family, spec: Any, params: dict[str, Any]) -> None:
    """Writes a checkpoint and its tokenizer for `from_pretrained(folder)` of the model's class in transformers.

    A GPT-2 without biases is written with zero biases, which computes the same function.

    Args:
        folder: new, or empty.
        family: the family.
        spec: spec of its data, with the tokenizer.
        params: the parameters of its network.

    Raises:
        UserError: no known architecture of transformers corresponds to this family, or the folder is not empty.
    """
    folder = Path(folder)
    layout = _layout_for(family)
    check_free(folder)
    vocab_size = params["embedding"]["table"].shape[0]
    tensors = gather(layout.entries(family, vocab_size), params)
    config = {"model_type": layout.model_type, "vocab_size": vocab_size, **layout.to_config(family, spec)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})  # transformers requires this metadata
    write_tokenizer(folder, spec.tokenizer, spec if isinstance(spec, SegmentSpec) else None)


def import_run(folder: str | Path, rundir: str | Path) -> None:
    """Makes a run directory whose only checkpoint, at step 0, has the weights of a transformers checkpoint."""
    prepare()
    check_free(Path(rundir))
    family, params = read_transformers(folder)
    config = read_object(Path(folder) / CONFIG)
    tokenizer, layout = read_tokenizer(Path(folder), config.get("eos_token_id")), _layout_for(family)
    rows = params["embedding"]["table"].shape[0]
    if tokenizer.vocab_size != rows:
        raise UserError(f"{folder} has an embedding of {rows} tokens, but its tokenizer has {tokenizer.vocab_size}")
    begin = config.get("bos_token_id")
    if begin not in (None, tokenizer.end_of_text):
        log.warning("texts begin with token %s there; here they begin with the one that ends them", begin)
    # The data is only the default for evaluate.py.
    run = Run(family=family, data=layout.make_data(tokenizer), batch_size=4, rundir=str(rundir))
    spec = layout.make_spec(tokenizer)
    write_run(run, spec, under("net.params", params))


def export_run(rundir: str | Path, folder: str | Path) -> None:
    """Writes the evaluation weights of a trained run in the layout of transformers."""
    model = load_run(rundir).model
    _layout_for(model.family)
    (learner,) = model.state
    write_transformers(folder, model.family, model.spec, learner.eval_params)


def _layout_of(config: dict[str, Any]) -> Layout[Any]:
    for layout in LAYOUTS:
        if config.get("model_type") == layout.model_type:
            if config.get("quantization_config"):
                raise UserError("config.json has a quantization_config; only plain floating-point weights can be read")
            return layout
    known = " and ".join(layout.model_type for layout in LAYOUTS)
    raise UserError(f"config.json has model_type = {config.get('model_type')!r}; {known} can be read")


def _layout_for(family: Family) -> Layout[Any]:
    candidates = [layout for layout in LAYOUTS if isinstance(family, layout.kind)]
    if not candidates:
        kinds = " and ".join(dict.fromkeys(layout.kind.__name__ for layout in LAYOUTS))
        raise UserError(f"the family is {type(family).__name__}; {kinds} can be written")
    misfits = {layout.model_type: layout.misfits(family) for layout in candidates}
    for layout in candidates:
        if not misfits[layout.model_type]:
            return layout
    reasons = "; ".join(f"{name} has no {', no '.join(settings)}" for name, settings in misfits.items())
    raise UserError(f"no architecture that can be written is like this family: {reasons}")


def _read_tensors(folder: Path) -> Tensors:
    """Reads all tensors of a checkpoint, from one file or from its shards."""
    if (folder / WEIGHTS).is_file():
        return load_tensors(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}; weights that are pickled (.bin) are not read")
    shard_of = read_object(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
        raise UserError(f"{folder / INDEX} has no weight_map from tensors to files")
    tensors: Tensors = {}
    for name in sorted(set(shard_of.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{INDEX} names {name!r}, which is no file in {folder}")
        tensors |= load_tensors(folder / name)
    return tensors


def _check_complete(layout: Layout[Any], family: Family, vocab_size: int, params: dict[str, Any]) -> None:
    """Checks that the names and shapes of the parameters are those of the network."""
    net = nnx.eval_shape(lambda: layout.network(family, vocab_size))
    needed = flatten(nnx.to_pure_dict(nnx.split(net, nnx.Param, ...)[1]))
    given = flatten(params)
    for name in sorted(needed.keys() | given.keys()):
        here, there = (tree[name].shape if name in tree else "absent" for tree in (needed, given))
        if here != there:
            raise UserError(f"{name} is {there} as read from the checkpoint, but {here} in the network")


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the checkpoint's folder, or with --export the run directory")
    parser.add_argument("target", help="the run directory to make, or with --export the folder to write")
    parser.add_argument("--export", action="store_true", help="from a run directory to the layout of transformers")
    arguments = parser.parse_args()
    convert = export_run if arguments.export else import_run
    convert(arguments.source, arguments.target)
    print(f"wrote {arguments.target}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)

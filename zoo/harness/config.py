"""A run's settings: typed dataclasses, flags on the command line, and JSON that is safe to read.

A config file is a Python file that defines `run = Run(...)`; every field of it, at any depth, is a flag. Reading saved
settings constructs dataclasses of the zoo (or of a module that the user names) and runs no other code.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import json
import sys
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from annotated_types import Ge

from zoo.core.data import Data
from zoo.core.errors import UserError, reading_saved, require
from zoo.core.family import Family, Scoring
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.harness.formats import FORMAT, upgrade


@dataclass(frozen=True)
class Init:
    """Source of the initial weights."""

    source: Annotated[str, tyro.conf.arg(name="from", metavar="RUN")] = ""
    """A trained run whose weights this run starts from (fine-tuning); empty: random weights. On the
    command line its family settings, tokenizer and image size become the defaults of the other flags."""


@dataclass(frozen=True)
class Run:
    """All settings of a run."""

    family: Family
    """The model family and its hyper-parameters."""
    data: Data
    """The data."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""
    parallel: Parallel = Parallel()
    """Use of the devices."""
    init: Init = Init()
    """Initial weights."""
    steps: Annotated[int, Ge(1)] = 2000
    """Total number of training steps."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Rows in a batch, over all devices."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the initial weights, the order of the data and all noise."""
    log_every: Annotated[int, Ge(1)] = 10
    """Steps between lines of training metrics."""
    eval_every: Annotated[int, Ge(0)] = 250
    """Steps between evaluations on held-out data; 0: only at the end."""
    eval_batches: Annotated[int, Ge(0)] = 0
    """Held-out batches in an evaluation during training; 0: the whole split."""
    save_every: Annotated[int, Ge(0)] = 250
    """Steps between checkpoints; 0: only at the end. The best by held-out score is also saved."""
    sample_every: Annotated[int, Ge(0)] = 0
    """Steps between samples; 0: never."""
    score_every: Annotated[int, Ge(0)] = 0
    """Steps between evaluations that also compute the family's own scores (perplexity, FID, ...); 0: never."""
    scoring: Scoring = Scoring()
    """Settings of those scores."""
    keep: Annotated[int, Ge(1)] = 2
    """Number of last checkpoints to keep, in addition to the best."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype that networks compute in; parameters stay float32. auto: bfloat16 on GPU and TPU, float32 on CPU."""
    parts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Trained runs that the family is built on, by name (a latent space, a teacher)."""
    rundir: str = ""
    """The run directory; empty: runs/ and the config's name."""

    def __post_init__(self) -> None:
        if not isinstance(self.scoring, self.family.Scoring):
            # The values of a parent class, which earlier versions saved, are kept.
            kept = vars(self.scoring) if issubclass(self.family.Scoring, type(self.scoring)) else {}
            object.__setattr__(self, "scoring", self.family.Scoring(**kept))
        require(self, "")


CHANGEABLE = ("steps", "log_every", "eval_every", "save_every", "sample_every", "score_every", "scoring", "parallel")
"""Settings that may change when a run resumes: its length, the intervals of its actions, scoring and the devices."""

PARTIAL = ".part"
"""Suffix of the name of a file that is being written."""


def to_json(value: Any) -> Any:
    """Converts nested dataclasses to plain JSON values; each has its class as `module:Class`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}"} | fields
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a setting cannot be a {type(value).__name__}: {value!r}")


def from_json(data: Any, expected: Any, where: str) -> Any:
    """The inverse of `to_json`; checks every name and type.

    Args:
        data: parsed JSON.
        expected: the type of the result; for a dataclass, a subclass is accepted.
        where: name of the value in errors, such as `config.json: family`.

    Raises:
        UserError: an unknown class or field (the nearest valid ones are named), or a value of the wrong type.
    """
    if typing.get_origin(expected) is Annotated:
        expected = typing.get_args(expected)[0]
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        if data not in arguments or type(data) not in {type(choice) for choice in arguments}:
            raise UserError(f"{where} is {data!r}; it must be one of {', '.join(map(repr, arguments))}")
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        kinds = [kind for kind in arguments if kind is not type(None)]
        # For a type such as int | Literal["auto"]: one of the choices, or a value of the first type.
        choices = (kind for kind in kinds if typing.get_origin(kind) is Literal and data in typing.get_args(kind))
        return from_json(data, next(choices, kinds[0]), where)
    if origin in (tuple, list) and isinstance(data, list):
        return origin(from_json(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {key: from_json(item, arguments[1], f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(expected) or hasattr(expected, "__abstractmethods__"):
        return _dataclass_from_json(data, expected, where)
    if expected is float and type(data) is int:
        return float(data)
    if not isinstance(expected, type) or type(data) is not expected:
        name = getattr(expected, "__name__", str(expected))
        raise UserError(f"{where} is {data!r}; it must be of type {name}")
    return data


def _dataclass_from_json(data: Any, expected: Any, where: str) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get("class"), str):
        raise UserError(f"{where} is {data!r}; it must be an object with a class")
    kind: Any = _find_class(data["class"], where)
    if not (issubclass(kind, expected) and dataclasses.is_dataclass(kind)):
        raise UserError(f"{where} has class {data['class']!r}, which is not a {expected.__name__}")
    kind = typing.cast(Any, kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    # Fields that earlier versions saved and this version has removed are ignored.
    without = {"class", *getattr(kind, "removed", ())}
    given = {name: item for name, item in data.items() if name not in without}
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names
            raise UserError(
                f"{where} has a field {name!r} that {kind.__name__} lacks; the nearest are {', '.join(near)}"
            )
    for field in dataclasses.fields(kind):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            raise UserError(f"{where} lacks the field {field.name!r}, which {kind.__name__} needs")
    return kind(**{name: from_json(item, hints[name], f"{where}.{name}") for name, item in given.items()})


def _find_class(name: str, where: str) -> Any:
    """The class `module:Class`, from the zoo or a module that is already imported; nothing else is imported."""
    module_name, _, class_name = name.partition(":")
    module = sys.modules.get(module_name)
    if module is None and module_name.startswith("zoo.") and importlib.util.find_spec(module_name.rpartition(".")[0]):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError:
            module = None
    found = getattr(module, class_name, None) if module else None
    if not isinstance(found, type):
        raise UserError(
            f"{where} has class {name!r}, which is not known here; if you trust its file, name it by --trust"
        )
    return found


def read_json(path: Path, expected: Any) -> Any:
    """Reads a dataclass from a file of `write_json`, of this format or an earlier one.

    Raises:
        UserError: the file is not JSON, or its contents are refused by `upgrade` or `from_json`.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); restore it or start over with --fresh") from None
    with reading_saved():
        return from_json(upgrade(data, path.name), expected, path.name)


def write_json(path: Path, value: Any) -> None:
    """Writes a dataclass as JSON with the format number, atomically."""
    write_whole(path, json.dumps(to_json(value) | {"format": FORMAT}, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two settings differ, by dotted name: name -> (old, new)."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        return {} if old == new and type(old) is type(new) else {prefix: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(old):
        name = f"{prefix}.{field.name}" if prefix else field.name
        found |= differences(getattr(old, field.name), getattr(new, field.name), name)
    return found


def flag(name: str) -> str:
    """The command-line flag of a dotted field name."""
    return "--" + name.replace("_", "-").replace("init.source", "init.from")


def check_may_go_on(saved: Run, run: Run) -> None:
    """Checks that a saved run can resume with the given settings: only those in `CHANGEABLE` and `rundir` may differ.

    Raises:
        UserError: other settings differ; the message names their flags.
    """
    differing = differences(saved, run)
    refused = [name for name in differing if name.partition(".")[0] not in (*CHANGEABLE, "rundir")]
    if refused:
        told = "; ".join(f"{flag(name)} is {differing[name][1]!r}, was {differing[name][0]!r}" for name in refused[:5])
        raise UserError(
            f"{run.rundir} holds a run with other settings ({told}): leave them out to go on with it, give another "
            "--rundir, or start over with --fresh"
        )

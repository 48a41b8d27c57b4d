"""The command line: config files, and every field of their settings as a flag."""

import dataclasses
import importlib
import importlib.util
import sys
import traceback
import types
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import tyro

from zoo.core.bounds import Bounds, bounds_of
from zoo.core.errors import UserError
from zoo.harness.config import Run


def load_config(path: str) -> Run:
    """Runs a config file and returns its `run`.

    Raises:
        UserError: it defines no `run`, or `trust` cannot import it.
    """
    run = getattr(trust(path), "run", None)
    if not isinstance(run, Run):
        raise UserError(f"{path} does not define `run = Run(...)`, so it is not a config file")
    return run


def trust(name: str) -> types.ModuleType:
    """Imports a Python file or module that the user named, so that saved settings can use its classes.

    Raises:
        UserError: it does not exist, is not valid Python, or raises an exception.
    """
    path = Path(name)
    if path.suffix != ".py":
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            raise UserError(f"{name} is neither a Python file nor a module that can be imported") from None
    if not path.is_file():
        near = ", ".join(sorted(map(str, path.parent.glob("*.py")))) if path.parent.is_dir() else ""
        raise UserError(f"there is no file {name}" + (f"; beside it are {near}" if near else ""))
    # The module name includes the folder, so that a config called ddpm.py does not shadow a module of that name.
    module_name = f"{path.resolve().parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}{_line_in(path, error)}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}; it must be valid Python") from None
    except Exception as error:
        told = str(error).strip() or "no message"
        raise UserError(f"{path}{_line_in(path, error)} raises {type(error).__name__}: {told}") from error
    return module


def _line_in(path: Path, error: Exception) -> str:
    """The line of a file at which an exception was raised or passed through, as `, line 3`; empty if there is none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def split_arguments(usage: str, first: str) -> tuple[str, list[str]]:
    """The first argument of the command line and the flags after it; `--help` alone prints the usage and exits.

    Args:
        usage: text of the usage.
        first: description of the first argument, for the error.

    Raises:
        UserError: the first argument is missing.
    """
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if "--help" in arguments or "-h" in arguments:
        print(usage)
        sys.exit(0)
    raise UserError(f"the first argument must be {first}\n{usage}")


def trust_named(flags: list[str]) -> None:
    """Imports the files and modules of `--trust`: their classes define the other flags."""
    for value in values_of("--trust", flags):
        trust(value)


def values_of(name: str, flags: list[str]) -> list[str]:
    """The values of one flag on the command line, read before all flags are parsed."""
    values, naming = [], False
    for flag in flags:
        begin, _, value = flag.partition("=")
        if flag.startswith("-"):
            naming = begin == name
        elif naming:
            value = flag
        if naming and value:
            values.append(value)
    return values


def gathered(flags: list[str], *names: str) -> list[str]:
    """The flags with all values of each named one that is given several times after its first name: none is lost."""
    for name in names:
        values = values_of(name, flags)
        if sum(flag.partition("=")[0] == name for flag in flags) < 2:
            continue
        kept, naming = [], False
        for flag in flags:
            naming = flag.partition("=")[0] == name if flag.startswith("-") else naming
            if not naming:
                kept.append(flag)
        flags = [*kept, name, *values]
    return flags


def parse_flags(kind: Any, default: Any, flags: list[str], program: str, description: str = "") -> Any:
    """Parses flags over `default`; every field of it, at any depth, is a flag. `--help` shows the bounds of fields."""
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(_with_bounds_in_help)
    return tyro.cli(kind, default=default, args=flags, prog=program, description=description, registry=registry)


_asking: ContextVar[bool] = ContextVar("_asking", default=False)


def _with_bounds_in_help(
    info: tyro.constructors.StructTypeInfo,
) -> tyro.constructors.StructConstructorSpec | None:
    """tyro's rule for a dataclass, with the bounds of its fields added to their help."""
    if _asking.get() or not dataclasses.is_dataclass(info.type):
        return None
    token = _asking.set(True)  # `get_struct_spec` calls this rule again
    try:
        spec = tyro.constructors.ConstructorRegistry.get_struct_spec(info)
    finally:
        _asking.reset(token)
    bounds = bounds_of(info.type)
    if not isinstance(spec, tyro.constructors.StructConstructorSpec) or not bounds:
        return None
    return dataclasses.replace(spec, fields=tuple(_with_bound(field, bounds.get(field.name)) for field in spec.fields))


def _with_bound(field: tyro.constructors.StructFieldSpec, bound: Bounds | None) -> tyro.constructors.StructFieldSpec:
    if bound is None:
        return field

    def text() -> str:
        told = field.helptext() if callable(field.helptext) else field.helptext
        return f"{(told or '').rstrip()} [{bound}]".strip()

    return dataclasses.replace(field, helptext=text)


def typed(kind: Any, flags: list[str]) -> set[str]:
    """The fields of a dataclass that flags set explicitly, also to their default."""
    names = {flag.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags}
    return names.intersection(field.name for field in dataclasses.fields(kind))

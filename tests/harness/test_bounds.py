"""Bounds beside the fields of settings: checked in one place, worded for errors, shown by --help."""

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated

import pytest
from annotated_types import Ge, Gt, Le, Lt
from paths import ROOT

from zoo.core.bounds import Why, bounds_of
from zoo.core.errors import UserError, require
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.harness.flags import load_config, parse_flags

RUN = load_config(str(ROOT / "configs" / "transformer_lm.py"))


@dataclass(frozen=True)
class Settings:
    """Settings with every form of bound."""

    least: Annotated[int, Ge(1)] = 1
    """A number."""
    above: Annotated[float, Gt(0)] = 1.0
    share: Annotated[float, Ge(0), Le(1)] = 0.0
    below: Annotated[float, Ge(0), Lt(1)] = 0.0
    positive: Annotated[float, Gt(0), Le(1)] = 1.0
    inside: Annotated[float, Gt(0), Lt(1)] = 0.5
    most: Annotated[int, Le(3)] = 0
    under: Annotated[int, Lt(3)] = 0
    finite: Annotated[float, Ge(0), Lt(math.inf)] = 0.0
    pair: Annotated[int, Ge(2), Why("one for each end")] = 2
    absent: Annotated[int | None, Ge(1)] = None
    free: int = -5
    named: Annotated[str, "not a bound"] = ""

    def __post_init__(self) -> None:
        require(self, "some.", ("least", "even, or below 3", self.least < 3 or self.least % 2 == 0))


@pytest.mark.parametrize(
    ("name", "wrong", "limit", "words"),
    [
        ("least", 0, 1, "at least 1"),
        ("above", 0.0, 1e-9, "above 0"),
        ("share", -0.1, 0.0, "from 0 to 1"),
        ("share", 1.1, 1.0, "from 0 to 1"),
        ("below", 1.0, 0.0, "from 0 to below 1"),
        ("below", -1e-9, 0.999, "from 0 to below 1"),
        ("positive", 0.0, 1.0, "above 0 and at most 1"),
        ("positive", 1.5, 0.1, "above 0 and at most 1"),
        ("inside", 1.0, 0.99, "above 0 and below 1"),
        ("inside", 0.0, 0.01, "above 0 and below 1"),
        ("most", 4, 3, "at most 3"),
        ("under", 3, 2, "below 3"),
        ("finite", math.inf, 1e30, "at least 0"),
        ("finite", math.nan, 0.0, "at least 0"),
        ("pair", 1, 2, "at least 2 (one for each end)"),
        ("absent", 0, None, "at least 1"),
    ],
)
def test_a_value_out_of_bounds_is_refused_in_words(name, wrong, limit, words):
    with pytest.raises(UserError, match=re.escape(f"some.{name} is {wrong!r}; it must be {words}") + "$"):
        Settings(**{name: wrong})
    assert getattr(Settings(**{name: limit}), name) == limit


def test_relations_are_checked_after_bounds():
    with pytest.raises(UserError, match="least is 5; it must be even"):
        Settings(least=5)
    with pytest.raises(UserError, match="above is -1; it must be above 0"):
        Settings(least=5, above=-1)


def test_what_has_no_bound_has_none():
    assert not {"free", "named"} & set(bounds_of(Settings))


def test_help_shows_the_bounds(capsys):
    with pytest.raises(SystemExit):
        parse_flags(type(RUN), RUN, ["--help"], "train.py")
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", capsys.readouterr().out).split())
    for flag, words in {
        "--steps": "[at least 1]",
        "--optimizer.beta1": "[from 0 to below 1]",
        "--optimizer.microbatches": "[at least 1]",
        "--optimizer.ema-decay": "[from 0 to below 1]",
        "--parallel.fsdp": "[at least 1]",
        "--family.layers": "[at least 1]",
        "--family.rope-theta": "[above 0]",
    }.items():
        about = text.split(f" {flag} ", 1)[1].split("(default:", 1)[0]
        assert about.endswith(f"{words} "), (flag, about)
        assert len(about) > len(words) + 15  # the field's own help stands before


def test_flags_with_bounds_are_parsed():
    run = parse_flags(type(RUN), RUN, ["--optimizer.beta1", "0.5", "--family.layers", "3"], "train.py")
    assert run == replace(RUN, optimizer=replace(RUN.optimizer, beta1=0.5), family=replace(RUN.family, layers=3))


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Parallel, {"fsdp": 0}, "parallel.fsdp is 0; it must be at least 1"),
        (Parallel, {"devices": -1}, "parallel.devices is -1; it must be at least 0"),
        (Optimizer, {"clip_norm": -1.0}, r"optimizer.clip_norm is -1.0; it must be at least 0 \(0: no clipping\)"),
        (Optimizer, {"ema_decay": 1.0}, "optimizer.ema_decay is 1.0; it must be from 0 to below 1"),
        (Optimizer, {"microbatches": 0}, "optimizer.microbatches is 0; it must be at least 1"),
    ],
)
def test_settings_of_a_run_name_their_flag(kind, values, words):
    with pytest.raises(UserError, match=words):
        kind(**values)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_bound_of_a_config_is_checked(path):
    """Each bounded field of a family, set below its bound, is refused by name: none is declared and forgotten."""
    family = load_config(str(path)).family
    for settings in (family, type(family).Request(), type(family).Scoring()):
        for name in bounds_of(type(settings)):
            low = -1.0 if isinstance(getattr(settings, name), float | None) else -1
            with pytest.raises(UserError, match=rf"{name} is -1"):
                replace(settings, **{name: low})

"""Settings: flags, JSON there and back, and what hand-edited JSON gets."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from paths import ROOT

from zoo.core.errors import UserError
from zoo.core.optimizer import Optimizer
from zoo.core.parallel import Parallel
from zoo.data.text import Text
from zoo.harness.config import Init, Run, differences, flag, from_json, read_json, to_json, write_json
from zoo.harness.flags import gathered, load_config, trust
from zoo.transformer_lm import TransformerLM

RUN = Run(
    family=TransformerLM(layers=3, dropout=0.25, positions="rope", mlp="swiglu", norm="rmsnorm", tied=False),
    data=Text(path="a/ü.txt", tokenizer="bpe", vocabulary=300),
    optimizer=Optimizer(name="sgd", learning_rate=1e-30, clip_norm=0.1),
    parallel=Parallel(strategy="pmap", devices=2),
    init=Init("runs/other"),
    parts={"teacher": "runs/teacher"},
    steps=7,
    precision="bfloat16",
    rundir="runs/x",
)


def edited(*path: str, **fields: object) -> dict:
    """RUN as JSON with fields of one of its objects replaced."""
    data = to_json(RUN)
    place = data
    for name in path:
        place = place[name]
    place.update(fields)
    return data


def test_json_gives_back_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, RUN)
    assert read_json(path, Run) == RUN
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_survives_json(path: Path) -> None:
    run = load_config(str(path))
    assert from_json(json.loads(json.dumps(to_json(run))), Run, "config.json") == run


def test_fields_that_are_absent_have_their_defaults() -> None:
    data = to_json(RUN)
    del data["batch_size"], data["optimizer"]
    run = from_json(data, Run, "config.json")
    assert (run.batch_size, run.optimizer) == (32, Optimizer())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (edited(stpes=3), ["config.json", "'stpes'", "steps"]),
        (edited("family", layer=3), ["config.json.family", "'layer'", "layers"]),
        (edited(steps="seven"), ["config.json.steps", "'seven'", "int"]),
        (edited(steps=True), ["config.json.steps", "True", "int"]),
        (edited(steps=7.0), ["config.json.steps", "7.0", "int"]),
        (edited(steps=None), ["config.json.steps", "None", "int"]),
        (edited(steps=0), ["steps", "0", "at least 1"]),
        (edited(precision="float8"), ["config.json.precision", "'float8'", "'float32'", "'bfloat16'"]),
        (edited(parts={"teacher": 3}), ["config.json.parts.teacher", "3", "str"]),
        (edited(parts=[]), ["config.json.parts", "[]"]),
        (edited(family=3), ["config.json.family", "3", "class"]),
        (edited(family={"layers": 3}), ["config.json.family", "class"]),
        (edited("family", **{"class": "zoo.transformer_lm:Transformers"}), ["'zoo.transformer_lm:Transformers'"]),
        (edited("family", **{"class": "zoo.no_such_family:LM"}), ["'zoo.no_such_family:LM'", "--trust"]),
        (edited("family", **{"class": "zoo.data.text.blocks:Text"}), ["'zoo.data.text.blocks:Text'", "not a Family"]),
        (edited("family", **{"class": "zoo.core.family:Family"}), ["'zoo.core.family:Family'"]),
        (edited("family", **{"class": "nothing"}), ["'nothing'", "--trust"]),
        (edited("family", **{"class": "zoo.:LM"}), ["'zoo.:LM'", "--trust"]),
        (edited("family", **{"class": ":"}), ["':'", "--trust"]),
        (edited("family", **{"class": "os:system"}), ["'os:system'", "--trust"]),
        (edited("family", **{"class": "subprocess:Popen"}), ["'subprocess:Popen'", "not a Family"]),
        ([], ["config.json", "class"]),
        ("run", ["config.json", "'run'", "class"]),
    ],
)
def test_json_edited_by_hand_is_refused_by_name(data: object, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        from_json(data, Run, "config.json")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_required_field_that_is_absent_is_named() -> None:
    data = to_json(RUN)
    del data["family"]
    with pytest.raises(UserError, match="lacks the field 'family'"):
        from_json(data, Run, "config.json")


@pytest.mark.parametrize("content", [b"", b'{"class": "zoo.core', b"\xff\xfe\x00", b"not json"])
def test_json_that_is_cut_short_or_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_json(path, Run)


def test_a_class_outside_the_zoo_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text("raise SystemExit('the file was run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="'stranger:LM', which is not known here"):
        from_json(edited("family", **{"class": "stranger:LM"}), Run, "config.json")
    assert "stranger" not in sys.modules


def test_a_trusted_file_gives_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom zoo.core.optimizer import Optimizer\n\n"
        "@dataclass(frozen=True)\nclass Mine(Optimizer):\n    twist: int = 1\n"
    )
    data = edited("optimizer", **{"class": f"{tmp_path.name}.mine:Mine", "twist": 5})
    with pytest.raises(UserError, match="--trust"):
        from_json(data, Run, "config.json")
    module = trust(str(path))
    try:
        assert from_json(data, Run, "config.json").optimizer == module.Mine(**vars(RUN.optimizer), twist=5)
    finally:
        del sys.modules[module.__name__]


def test_differences_are_dotted_fields() -> None:
    other = dataclasses.replace(RUN, family=dataclasses.replace(RUN.family, layers=4), steps=9)
    assert differences(RUN, RUN) == {}
    assert differences(RUN, other) == {"family.layers": (3, 4), "steps": (7, 9)}
    assert differences(1, 1.0) == {"": (1, 1.0)}


def test_a_dotted_field_is_a_flag() -> None:
    assert flag("family.kv_heads") == "--family.kv-heads"
    assert flag("init.source") == "--init.from"


@pytest.mark.parametrize("name", ["steps", "batch_size", "log_every", "keep"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_that_must_be_positive(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; it must be at least 1"):
        dataclasses.replace(RUN, **{name: value})


def test_a_flag_given_several_times_keeps_all_of_its_values():
    flags = ["--image", "0", "--n", "2", "--image=1", "--prompt", "a b", "--prompt", "c"]
    assert gathered(flags, "--prompt", "--image") == ["--n", "2", "--prompt", "a b", "c", "--image", "0", "1"]
    assert gathered(flags[:4], "--prompt", "--image") == flags[:4]

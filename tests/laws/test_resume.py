"""Going on after anything: real processes that are killed, interrupted or damaged, and what they should have been."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import CONFIG, TEXT, TINY, Result, call, finish, refused, start

from zoo import load_run
from zoo.harness.checkpoint import DAMAGED, FOLDER, Checkpoints, DamagedCheckpointError, flatten
from zoo.harness.rundir import RunDir

STEPS = 500
EVERY = ("--steps", str(STEPS), "--save-every", "50", "--eval-every", "100", "--family.dropout", "0.1")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def launch(text: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts train.py in a process; what still runs when the test ends is killed."""
    started = []

    def train(rundir: Path, *flags: object) -> subprocess.Popen[str]:
        process = start("train", CONFIG, *TINY, *EVERY, "--data.path", text, "--rundir", rundir, *flags)
        started.append(process)
        return process

    yield train
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that nothing interrupted."""
    rundir = tmp_path_factory.mktemp("runs") / "whole"
    process = start("train", CONFIG, *TINY, *EVERY, "--data.path", text, "--rundir", rundir)
    return rundir, finish(process)


def records(rundir: Path) -> list[dict]:
    path = rundir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(process: subprocess.Popen[str], happened: Callable[[], object], seconds: float = 60) -> None:
    """Waits until something is true while a process runs."""
    until = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


def last_step(rundir: Path) -> int:
    return max((record["step"] for record in records(rundir)), default=0)


def assert_same_run(rundir: Path, whole: Path) -> None:
    """Asserts that two runs ended with the same bits and logged the same figures."""
    assert figures(rundir) == figures(whole)
    ours, theirs = (last_arrays(path) for path in (rundir, whole))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def last_arrays(rundir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, optimizer state included."""
    checkpoints = Checkpoints(rundir)
    step = checkpoints.steps()[-1]
    assert step == STEPS
    saved = checkpoints._about(step)["leaves"]
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        name: jax.ShapeDtypeStruct(tuple(about["shape"]), jnp.dtype(about["dtype"]), sharding=device)
        for name, about in saved.items()
    }
    arrays = jax.device_get(checkpoints.restore(step, like))
    checkpoints.close()
    assert any("opt_state" in name for name in arrays)
    return arrays


def figures(rundir: Path) -> list[dict]:
    """metrics.jsonl without what a clock measured."""
    timing = ("seconds", "tokens_per_second")
    return [{name: value for name, value in line.items() if name not in timing} for line in records(rundir)]


# ------------------------------------------------------------------------------------------- processes


def test_a_process_prints_and_records_what_it_should(whole: tuple[Path, Result], text: Path) -> None:
    rundir, result = whole
    assert (result.code, result.out) == (0, ""), result.err
    assert f"step {STEPS}/{STEPS}" in result.err
    assert "\x1b" not in result.err
    assert "Warning" not in result.err
    steps = [line["step"] for line in records(rundir) if line["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    launch = json.loads((rundir / "launches.jsonl").read_text())
    assert launch["command"].endswith(
        f"train.py {CONFIG} {' '.join(TINY)} {' '.join(EVERY)} --data.path {text} --rundir {rundir}"
    )


@pytest.mark.slow
def test_kill_9_at_any_moment_and_then_ctrl_c(whole: tuple[Path, Result], launch: Callable, tmp_path: Path) -> None:
    """What was killed goes on and is interrupted, which saves and says how to go on; what goes on then is the whole."""
    rundir, moment = tmp_path / "run", random.randrange(60, STEPS - 200)
    process = launch(rundir)
    wait_for(process, lambda: last_step(rundir) >= moment and RunDir(rundir).has_checkpoints())
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL

    killed = last_step(rundir)
    process = launch(rundir)
    wait_for(process, lambda: last_step(rundir) > killed)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
    assert "from step 0 " not in result.err, "nothing was saved"
    stopped = last_step(rundir)
    assert killed < stopped < STEPS
    assert f"stopped by SIGINT at step {stopped} and saved; the same command goes on from there" in result.err

    again = finish(launch(rundir))
    assert again.code == 0, again.err
    assert f"from step {stopped} to {STEPS}" in again.err
    assert_same_run(rundir, whole[0])
    assert len((rundir / "launches.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_kill_9_during_a_save(whole: tuple[Path, Result], launch: Callable, tmp_path: Path) -> None:
    rundir = tmp_path / "run"
    process = launch(rundir)

    def saving_again() -> bool:
        names = [path.name for path in (rundir / FOLDER).glob("*")]
        return len(names) > 1 and any("orbax-checkpoint-tmp" in name for name in names)

    wait_for(process, saving_again)
    process.send_signal(signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    again = finish(launch(rundir))
    assert again.code == 0, again.err
    assert_same_run(rundir, whole[0])
    assert not list((rundir / FOLDER).glob("*orbax-checkpoint-tmp*"))


@pytest.mark.slow
def test_sigterm_while_the_first_step_compiles(whole: tuple[Path, Result], launch: Callable, tmp_path: Path) -> None:
    rundir = tmp_path / "run"
    process = launch(rundir)
    wait_for(process, lambda: (rundir / "log.txt").is_file() and "from step 0" in (rundir / "log.txt").read_text())
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert (result.code, result.out) == (143, "")
    assert "Traceback" not in result.err
    assert "stopped by SIGTERM at step" in result.err
    again = finish(launch(rundir))
    assert again.code == 0
    assert_same_run(rundir, whole[0])


def test_a_second_ctrl_c_stops_at_once(launch: Callable, tmp_path: Path) -> None:
    """The one step is an evaluation that takes long."""
    rundir = tmp_path / "run"
    process = launch(rundir, "--steps", "1000000", "--save-every", "100000", "--eval-every", "100000")
    wait_for(process, lambda: last_step(rundir) >= 50)
    process.send_signal(signal.SIGSTOP)  # both signals arrive before anything else happens
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    result = finish(process, 20)
    assert result.code in (130, 143)
    assert "Traceback" not in result.err
    assert "stopped at once; the same command goes on from the last checkpoint" in result.err


def test_ctrl_c_before_training(launch: Callable, tmp_path: Path) -> None:
    pipe = tmp_path / "text.txt"
    os.mkfifo(pipe)
    process = launch(tmp_path / "run", "--data.path", pipe)
    with pipe.open("w"):  # opens when the process does, which then waits for the text
        time.sleep(1)  # until it does: Python sees a signal that comes just before a read only when the read is over
        process.send_signal(signal.SIGINT)
        result = finish(process, 20)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
    assert "stopped before training began" in result.err
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def short(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with checkpoints of steps 4 and 6."""
    from zoo import fit, load_config
    from zoo.harness.flags import parse_flags

    rundir = tmp_path_factory.mktemp("runs") / "short"
    flags = [*TINY, "--data.path", str(text), "--rundir", str(rundir), "--steps", "6", "--save-every", "2"]
    run = load_config(CONFIG)
    fit(parse_flags(type(run), run, [*flags, "--eval-every", "0"], "test"))
    return rundir


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Path:
    return shutil.copytree(short, tmp_path / "run")


def checkpoint_files(rundir: Path, step: int) -> list[Path]:
    """The files of a checkpoint that hold something."""
    folder = rundir / FOLDER / f"step_{step:08d}"
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(path.stat().st_size)),
    "a bit flipped": flip,
}


FAST = ("truncated", "a bit flipped")


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in DAMAGES]
)
def test_any_damaged_file_is_harmless(capsys: pytest.CaptureFixture[str], run: Path, short: Path, damage: str) -> None:
    """Whatever file of the last checkpoint is damaged, its weights are read right, or those of the one before."""
    right = {step: flatten(load_run(short, str(step)).model.state) for step in (4, 6)}
    fallen_back = 0
    for path in checkpoint_files(run, 6):
        kept = path.read_bytes()
        DAMAGES[damage](path)
        trained = load_run(run)
        path.write_bytes(kept)
        fallen_back += trained.model.step == 4
        for name, array in flatten(trained.model.state).items():
            np.testing.assert_array_equal(array, right[trained.model.step][name], err_msg=f"{path} {name}")
    assert fallen_back >= 2


def damage_arrays(rundir: Path, step: int) -> None:
    """Flips a bit in each file that holds arrays."""
    for path in checkpoint_files(rundir, step):
        if path.parent.name == "d":
            flip(path)


def test_training_falls_back_to_the_checkpoint_before(
    capsys: pytest.CaptureFixture[str], run: Path, short: Path
) -> None:
    damage_arrays(run, 6)
    result = call(capsys, "train", CONFIG, "--rundir", run)
    assert result.code == 0, result.err
    assert "is damaged (step 6" in result.err
    assert "falling back" in result.err
    assert "from step 4 to 6" in result.err
    assert figures(run) == figures(short)
    again = {step: flatten(load_run(run, str(step)).model.state) for step in (4, 6)}
    for step, leaves in again.items():
        for name, array in flatten(load_run(short, str(step)).model.state).items():
            np.testing.assert_array_equal(leaves[name], array)
    assert [path.name for path in (run / DAMAGED).iterdir()] == ["step_00000006"]


@pytest.mark.parametrize("script", ["sample", "evaluate"])
def test_scripts_fall_back_and_change_nothing(capsys: pytest.CaptureFixture[str], run: Path, script: str) -> None:
    damage_arrays(run, 6)
    refused(call(capsys, script, run, "--checkpoint", "6"), "checkpoint 6", "damaged", "--checkpoint last")
    result = call(capsys, script, run)
    assert result.code == 0, result.err
    assert "is damaged (step 6" in result.err
    assert not (run / DAMAGED).exists()
    damage_arrays(run, 4)
    refused(call(capsys, script, run), "none of the checkpoints", "steps 4, 6", "--fresh")
    refused(call(capsys, script, run, "--checkpoint", "best"), "damaged")


def test_training_refuses_where_every_checkpoint_is_damaged(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    damage_arrays(run, 4)
    damage_arrays(run, 6)
    before = (run / "metrics.jsonl").read_bytes()
    refused(call(capsys, "train", CONFIG, "--rundir", run), "none of the checkpoints", "steps 4, 6", "--fresh")
    assert (run / "metrics.jsonl").read_bytes() == before
    assert RunDir(run).has_checkpoints()


def test_what_a_killed_save_left_is_no_checkpoint(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    last = run / FOLDER / "step_00000006"
    last.rename(last.with_name(last.name + ".orbax-checkpoint-tmp"))
    shutil.copytree(run / FOLDER / "step_00000004", run / FOLDER / "step_00000005.orbax-checkpoint-tmp")
    assert load_run(run).model.step == 4
    result = call(capsys, "train", CONFIG, "--rundir", run)
    assert result.code == 0, result.err
    assert "from step 4 to 6" in result.err
    assert sorted(path.name for path in (run / FOLDER).iterdir()) == ["step_00000004", "step_00000006"]


def test_lines_that_were_being_written_are_dropped(capsys: pytest.CaptureFixture[str], run: Path, short: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "train", "loss": 1.0, "seconds": 9.0}\n{"step": 8, "spl')
    result = call(capsys, "train", CONFIG, "--rundir", run)
    assert result.code == 0, result.err
    assert figures(run) == figures(short)


# ------------------------------------------------------------------------------------------- checkpoints


def test_the_last_checkpoints_and_the_best_survive(tmp_path: Path) -> None:
    """The best stays the best when another process goes on."""

    def save(scores: dict[int, float | None], mode: str) -> list[int]:
        checkpoints = Checkpoints(tmp_path / mode, keep=2, monitor=("score", mode))
        for step, score in scores.items():
            checkpoints.save(step, {"w": jnp.full((3,), step)}, {}, score)
        checkpoints.close()
        checkpoints = Checkpoints(tmp_path / mode, keep=2, monitor=("score", mode))
        steps, best = checkpoints.steps(), checkpoints.best()
        checkpoints.close()
        assert best is not None
        assert best[0] in steps
        return steps

    for mode, sign in (("min", 1), ("max", -1)):
        (tmp_path / mode).mkdir()
        assert save({1: sign * 5.0, 2: sign * 1.0, 3: sign * 4.0, 4: None}, mode) == [2, 3, 4]
        assert save({5: sign * 3.0, 6: sign * 2.0, 7: float("nan")}, mode) == [2, 6, 7]
        assert save({8: sign * 0.5, 9: sign * 2.0}, mode) == [8, 9]


def test_what_is_read_must_fit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"w": jnp.ones((2, 3)), "n": jnp.zeros((), jnp.int32)}, {})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def like(**shapes: tuple[tuple[int, ...], str]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            n: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=device) for n, (shape, dtype) in shapes.items()
        }

    np.testing.assert_array_equal(checkpoints.restore(3, like(w=((2, 3), "float32")))["w"], np.ones((2, 3)))
    for wanted, words in (
        ({"w": ((3, 2), "float32")}, r"w is float32\[2, 3\].* needs float32\[3, 2\]"),
        ({"w": ((2, 3), "bfloat16")}, r"w is float32\[2, 3\].* needs bfloat16\[2, 3\]"),
        ({"v": ((2, 3), "float32")}, "step 3 .* has no v"),
    ):
        with pytest.raises(Exception, match=words) as error:
            checkpoints.restore(3, like(**wanted))
        assert not isinstance(error.value, DamagedCheckpointError)
    checkpoints.close()

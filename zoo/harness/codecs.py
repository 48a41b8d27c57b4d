"""The codec that encodes a run's data: loaded from the run that `--data.codec` names, and copied to `RUN/codec/`.

`RUN/codec/` is a run directory with the codec's settings, its spec and one checkpoint of its evaluation weights. After
the first start the codec is always read from there, so the source run may be changed or deleted.
"""

from pathlib import Path

from zoo.core.codec import Codec, Coder
from zoo.core.data import Data
from zoo.core.errors import UserError
from zoo.harness.checkpoint import Checkpoints
from zoo.harness.config import to_json
from zoo.harness.rundir import CODEC, RunDir
from zoo.harness.trained import Trained, load_run


def codec_of(data: Data, path: Path | None = None) -> Trained | None:
    """The codec that data settings name; None if they name none.

    Args:
        data: the settings.
        path: a run directory; if it has a copy of the codec, the copy takes precedence.

    Raises:
        UserError: there is no such run, or its family does not implement `Codec`.
    """
    if not data.codec:
        return None
    copied = path is not None and RunDir(path / CODEC).has_checkpoints()
    if not copied and not Path(data.codec).is_dir():
        raise UserError(
            f"data.codec is {data.codec}, and there is no such run; train one first, as python train.py "
            f"configs/{_config_of(data.codec)}.py trains runs/{_config_of(data.codec)}"
        )
    trained = load_run(path / CODEC if path is not None and copied else data.codec)
    if not isinstance(trained.model.family, Codec):
        raise UserError(
            f"data.codec is {data.codec}, a run of {type(trained.model.family).__name__}, which encodes nothing; give "
            "a run whose family has encode and decode"
        )
    return trained


def _config_of(codec: str) -> str:
    """The config whose run has the name of the codec, or else that of a codec for any images."""
    name = Path(codec).name
    return name if (Path("configs") / f"{name}.py").is_file() else "vqvae"


def as_coder(codec: Trained | None) -> Coder | None:
    """The codec in the form that `Data.open` and `Model` take."""
    return None if codec is None else Coder(codec.model.family, codec.model.spec, codec.model.state)


def copy_codec(codec: Trained, path: Path) -> None:
    """Writes a codec's settings, spec and evaluation weights into a run directory."""
    rundir = RunDir(path / CODEC)
    rundir.create(codec.run, codec.model.spec, fresh=True)
    checkpoints = Checkpoints(rundir.path)
    try:
        checkpoints.save(codec.model.step, codec.model.state, to_json(codec.run))
    finally:
        checkpoints.close()
        rundir.close()

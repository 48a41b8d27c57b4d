"""Trains a model or resumes a stopped run: python train.py configs/NAME.py [--flag value ...]."""

if __name__ == "__main__":
    from zoo.harness.memory import pause_garbage_collection, use_huge_pages

    use_huge_pages()
    pause_garbage_collection()

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from zoo.core.errors import UserError, run_script
from zoo.harness.config import Run
from zoo.harness.flags import load_config, parse_flags, split_arguments, trust_named, values_of
from zoo.harness.inherit import inherit, log_inherited
from zoo.harness.progress import to_console
from zoo.harness.rundir import RunDir

USAGE = "usage: python train.py configs/NAME.py [--flag value ...]; flags: python train.py configs/NAME.py --help"


@dataclass(frozen=True)
class Train:
    """Flags of train.py: the run's settings and how to start it."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    fresh: bool = False
    """Delete the run in the run directory and start over."""
    trust: tuple[str, ...] = ()
    """Python files or modules whose classes a saved run may use."""


def main() -> None:
    """Parses the flags, trains, and prints the run directory."""
    configs = sorted(str(path) for path in Path("configs").glob("*.py"))
    config, flags = split_arguments(USAGE + "\n  ".join(["", "configs:", *configs]), "a config file")
    default = load_config(config)
    default = replace(default, rundir=default.rundir or f"runs/{Path(config).stem}")
    program, about = f"train.py {config}", (sys.modules[type(default.family).__module__].__doc__ or "").splitlines()[0]
    trust_named(flags)
    source = _source(flags, default.rundir)
    defaults = inherit(default, source) if source else default
    asked = parse_flags(Train, Train(defaults), flags, program, about)
    run, rundir = asked.run, RunDir(asked.run.rundir)
    if source:
        with to_console():
            log_inherited(default, run, source)
    elif rundir.has_checkpoints() and not asked.fresh:
        # Saved settings take precedence; only flags given now are compared with them.
        saved = rundir.config()
        if type(saved.family) is not type(run.family):
            raise UserError(
                f"{run.rundir} holds a run of {type(saved.family).__name__}, but {config} is of "
                f"{type(run.family).__name__}; give another --rundir, or start over with --fresh"
            )
        run = replace(parse_flags(Train, Train(saved), flags, program).run, rundir=run.rundir)

    from zoo.harness.loop import fit

    trained = fit(run, fresh=asked.fresh)
    print(f"{trained.path} is at step {trained.model.step}; python sample.py {trained.path}", file=sys.stderr)


def _source(flags: list[str], rundir: str) -> str:
    """The run that `--init.from` names; empty if the run resumes, since it then has its own weights."""
    sources, places = values_of("--init.from", flags), values_of("--rundir", flags)
    resumes = RunDir((places or [rundir])[-1]).has_checkpoints() and "--fresh" not in flags
    return sources[-1] if sources and not resumes else ""


if __name__ == "__main__":
    run_script(main)

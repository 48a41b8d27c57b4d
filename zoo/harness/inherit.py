"""`--init.from RUN` on the command line: settings of that run become defaults of the other flags."""

import logging
from dataclasses import replace

from zoo.core.errors import UserError
from zoo.harness.config import Run, differences, flag
from zoo.harness.rundir import RunDir

log = logging.getLogger("zoo")


def inherit(config: Run, source: str) -> Run:
    """A config's settings with the family settings of a trained run, and data settings that fit the run's spec.

    Args:
        config: the settings of the new run's config.
        source: the directory of the trained run.

    Raises:
        UserError: the directory holds no trained run, or a run of another family.
    """
    rundir = RunDir(source)
    rundir.require()
    family = rundir.config().family
    if type(family) is not type(config.family):
        theirs, ours = type(family).__name__, type(config.family).__name__
        raise UserError(
            f"init.from is {source}, a run of {theirs}, but the config is of {ours}; give a config of {theirs}, or a "
            f"run of {ours}"
        )
    return replace(config, family=family.for_fine_tuning(config.family), data=config.data.fitting(rundir.spec()))


def log_inherited(config: Run, run: Run, source: str) -> None:
    """Logs which settings a run took from its source, and which settings of the family differ there.

    Args:
        config: the settings of the run's config.
        run: the settings after `inherit` and flags.
        source: the directory of the trained run.
    """
    inherited = inherit(config, source)
    overridden = differences(inherited, run)
    taken = {name: new for name, (_, new) in differences(config, inherited).items() if name not in overridden}
    other = differences(RunDir(source).config().family, run.family, "family")
    if taken:
        log.info("settings from %s: %s", source, ", ".join(f"{flag(name)} {value}" for name, value in taken.items()))
    if other:
        pairs = (f"{flag(name)} is {old} there and {new} here" for name, (old, new) in other.items())
        log.info("settings that differ from %s: %s", source, ", ".join(pairs))

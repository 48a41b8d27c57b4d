"""A zoo of generative models in JAX. Each family is one file; all share one harness.

The functions behind the scripts, for notebooks and other programs:

    import zoo
    trained = zoo.fit(run)                      # python train.py
    trained = zoo.load_run("runs/transformer_lm")
    trained.sample(n=3, prompt="ROMEO:")        # python sample.py
    trained.evaluate()                          # python evaluate.py
    net = trained.net()
"""

from typing import Any

__all__ = ["Init", "Optimizer", "Parallel", "Run", "Trained", "UserError", "fit", "load_config", "load_run"]

_HOMES = {
    "Init": "harness.config",
    "Optimizer": "core.optimizer",
    "Parallel": "core.parallel",
    "Run": "harness.config",
    "Trained": "harness.trained",
    "UserError": "core.errors",
    "fit": "harness.loop",
    "load_config": "harness.flags",
    "load_run": "harness.trained",
}


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `train.py --help` does not load modules that only training needs.
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"zoo.{_HOMES[name]}"), name)

"""The folder of what can be computed again: compiled programs, codes of images."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The package's folder in the user's cache, `$XDG_CACHE_HOME` or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "generative-zoo"

"""Where prepared data and compiled programs are kept."""

import os
from pathlib import Path

from jaxnano.cli import UserError


def cache_root() -> Path:
    """Directory of all prepared data, created if missing; raises ValueError if it cannot be written."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("JAXNANO_CACHE") or caches / "jaxnano").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"JAXNANO_CACHE: cannot write to {root}; set it to a directory that you can write to")
    return root

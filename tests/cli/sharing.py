"""What a target shares with us, to compare before and after."""

from __future__ import annotations

import os
import sys
from typing import Any

import frostline

# What is imported from these for the first time may stay: the standard library, torch and ours.
INSTALLED = (sys.prefix, sys.base_prefix, os.path.dirname(frostline.__file__))


def _place(module: Any) -> str:
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")


def _installed(module: Any) -> bool:
    return _place(module).startswith(INSTALLED)


def shared() -> dict[str, Any]:
    """All that a target shares with us: objects by identity, and what they hold."""
    held = sys.argv, sys.path, sys.stdout, sys.stderr, sys.excepthook, sys.modules["__main__"]
    stdout = os.fstat(1)
    return {
        "objects": [id(one) for one in held],
        "argv": list(sys.argv),
        "path": list(sys.path),
        "modules": {n for n, m in sys.modules.items() if _place(m) and not _installed(m)},
        "stdout": (stdout.st_dev, stdout.st_ino),
        "cwd": os.getcwd(),
    }

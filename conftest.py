"""Run the Python code of README.md and docs: each document from top to bottom in one namespace.

Every ```python fence is an example; there is no marker that skips one. A fence that cannot run
belongs in another language (```text, ```console).
"""

from __future__ import annotations

import os
import tempfile
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from typing import Any

import torch
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

_HOME = "_working_directory_before"


def _enter(namespace: dict[str, Any]) -> None:
    # Examples write reports and checkpoints; none of that belongs into the working copy.
    scratch = tempfile.TemporaryDirectory(prefix="frostline-docs-")
    namespace[_HOME] = (os.getcwd(), scratch)
    os.chdir(scratch.name)
    torch.manual_seed(0)


def _leave(namespace: dict[str, Any]) -> None:
    home, scratch = namespace.pop(_HOME)
    os.chdir(home)
    scratch.cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE)],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=_enter,
    teardown=_leave,
).pytest()

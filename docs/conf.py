"""Sphinx configuration: Markdown pages, the furo theme, API pages from docstrings."""

from __future__ import annotations

import logging
from importlib.metadata import version as installed_version

# The table of contents names pages in reading order, also those that a later release brings;
# this warning has no type, so suppress_warnings cannot name it.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: getattr(record, "subtype", None) != "empty_glob"
)

project = "frostline"
author = "The frostline authors"
copyright = "2026, The frostline authors"
version = release = installed_version("frostline")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

# Docstrings mark code with single backticks, as Markdown does.
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "frostline"
html_show_sphinx = False

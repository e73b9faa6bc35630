"""Sphinx configuration: Markdown pages, the furo theme, API pages from docstrings."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "frostline"
author = "The frostline authors"
copyright = "2026, The frostline authors"
version = release = installed_version("frostline")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

# The table of contents also lists groups of pages that a later release fills.
suppress_warnings = ["toc.empty_glob"]

html_theme = "furo"
html_title = "frostline"
html_show_sphinx = False

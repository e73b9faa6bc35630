"""``explain``: why the output of a model changes, module by module."""

from frostline.explaining.explain import explain as explain

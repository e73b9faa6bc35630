"""Targets: how a command gets the user's model from ``file.py:name``."""

from frostline.cli.targets.command import target_command as target_command
from frostline.cli.targets.loading import load as load
from frostline.cli.targets.loading import loaded as loaded
from frostline.cli.targets.setups import Setup as Setup

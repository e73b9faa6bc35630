"""Parameter groups for any torch optimizer."""

from frostline.parameter_groups.grouping import param_groups as param_groups

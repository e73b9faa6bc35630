"""The guard: proof, while a model trains, that what is frozen did not change."""

from frostline.guarding.guard import guard as guard

"""``summary``: what is trainable, what a step will cost in memory, and what leaks."""

from frostline.summaries.summarising import summary as summary

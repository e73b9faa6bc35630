"""Gradients and statistics of the big batch, through norms that look across it."""

"""Pinpointing: the user's line and the operation that wrote to frozen memory."""

from frostline.guarding.pinpointing.pinpoint import Culprit, Memory, Pinpoint

__all__ = ["Culprit", "Memory", "Pinpoint"]

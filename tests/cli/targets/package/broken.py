"""Imports what is not there."""

from . import no_such_part as no_such_part

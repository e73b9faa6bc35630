"""Every exception of frostline.

FrostlineError
├── SelectionError (ValueError)          a selector matches nothing, or what it asks for cannot be
├── FreezeError (RuntimeError)           this model, module or optimizer cannot be frozen or held
├── FrozenStateChanged (RuntimeError)    what is frozen changed; carries .changes and .report
├── PagesUnavailable (RuntimeError)      the kernel cannot or may not track writes here
├── SharedMemory (ValueError)            a state dict compared with its own live model
├── ManifestError (ValueError)           a manifest is malformed, of another version, or empty
├── UnsupportedTensor (TypeError)        content that cannot be read: meta, sparse, opaque subclass
├── TargetError (ValueError)             what a command is to look at gives it no model
├── BatchError (ValueError)              the model cannot be run on this batch
├── AccumulationError (RuntimeError)     the big batch cannot be computed exactly from microbatches
└── ModelGone (ReferenceError)           a handle outlived its model

FrostlineWarning (UserWarning)           something to know that stops nothing

A message says what, where (the full name), what was expected, what was found, and the line to
write next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frostline._results import Change


class FrostlineError(Exception):
    """The base of every error that frostline raises on purpose."""


class SelectionError(FrostlineError, ValueError):
    """A selector matches nothing, or what it asks for cannot be."""


class FreezeError(FrostlineError, RuntimeError):
    """This model, module or optimizer cannot be frozen or held."""


class FrozenStateChanged(FrostlineError, RuntimeError):
    """What is frozen changed.

    Attributes:
        changes: the changes, worst first.
        report: the report of the check that found them, or None.
    """

    def __init__(
        self, message: str, changes: Sequence[Change] = (), report: object | None = None
    ) -> None:
        super().__init__(message)
        self.changes = list(changes)
        self.report = report


class PagesUnavailable(FrostlineError, RuntimeError):
    """The kernel cannot or may not track writes here; the message says why."""


class SharedMemory(FrostlineError, ValueError):
    """Both sides of a comparison are the same memory, so they cannot differ."""


class ManifestError(FrostlineError, ValueError):
    """A manifest is malformed, of another version, or covers nothing."""


class UnsupportedTensor(FrostlineError, TypeError):
    """The content of this tensor cannot be read: meta, sparse, or an opaque subclass."""


class TargetError(FrostlineError, ValueError):
    """What a command is to look at, ``file.py:name``, gives it no model; the message says why."""


class BatchError(FrostlineError, ValueError):
    """The model cannot be run on this batch, or the batch cannot be split as asked."""


class AccumulationError(FrostlineError, RuntimeError):
    """The big batch's gradients or statistics cannot be computed exactly; the message says why."""


class ModelGone(FrostlineError, ReferenceError):
    """A handle outlived its model."""


class FrostlineWarning(UserWarning):
    """Something to know that stops nothing."""

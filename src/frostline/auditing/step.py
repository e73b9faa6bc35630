"""What one training step does: forward, backward and the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

How = Literal["read", "predicted", "measured"]


@dataclass(frozen=True)
class Step:
    """The outcome of one step from the present state, by ids of tensors and modules.

    Attributes:
        how: read off the modules, predicted on tensors without memory, or measured by a real step.
        changed: tensors whose bytes are others afterwards.
        undecided: tensors that may be others, each with what it depends on, in words.
        reached: parameters that got a gradient in this step; None where nobody ran it.
        drift: largest absolute difference of an element, for those that changed; measured only.
        calls: how often each norm that counts counted in this step, by id of the module; empty
            where nobody ran it.
        raised: the error that ended the step before its end, in words; empty if none did.
        loss: what the loss was, in words; empty where nobody ran it.
        writers: what wrote a tensor, in words, as far as it was seen.
    """

    how: How
    changed: frozenset[int] = frozenset()
    undecided: Mapping[int, str] = field(default_factory=dict)
    reached: frozenset[int] | None = None
    drift: Mapping[int, float] = field(default_factory=dict)
    calls: Mapping[int, int] = field(default_factory=dict)
    raised: str = ""
    loss: str = ""
    writers: Mapping[int, str] = field(default_factory=dict)

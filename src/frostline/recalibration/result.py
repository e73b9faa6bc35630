"""The result of ``recalibrate``: old statistics against new ones, and the way back."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from frostline._results import Result
from frostline._state import write_bits
from frostline.errors import ModelGone
from frostline.recalibration.recalibrate import Method

DEFINITIONS: dict[Method, str] = {
    "layerwise": (
        "mean, and variance over n - 1, of what each norm sees in one training-mode forward of the "
        "whole calibration set; how the set is split makes no difference"
    ),
    "merged": (
        "mean, and variance over n - 1, of what each norm sees in training-mode forwards of the "
        "batches, merged; a deep norm sees what was normalised batch by batch, so their size counts"
    ),
}


def batches(count: int) -> str:
    """So many, in words."""
    return "1 batch" if count == 1 else f"{count:,} batches"


class Spread(NamedTuple):
    """Of one figure over the channels of a norm."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Of one value for each channel."""
        values = values.double()
        return cls(values.min().item(), values.median().item(), values.max().item())

    def to_dict(self) -> dict[str, float | None]:
        """Plain types only; None where an old value was not finite."""
        return {k: v if math.isfinite(v) else None for k, v in self._asdict().items()}


@dataclass(frozen=True)
class Recalibrated:
    """A norm whose statistics are new.

    Attributes:
        name: full name.
        type: name of its class.
        calls: how often it is called in one forward.
        values: how many values a channel has seen.
        moved: distance of the new mean from the old, in standard deviations of the channel: in
            sqrt(new variance + eps), by which the norm divides.
        ratio: new variance + eps as a multiple of the old variance + eps.
    """

    name: str
    type: str
    calls: int
    values: int
    moved: Spread
    ratio: Spread

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            **{key: getattr(self, key) for key in ("name", "type", "calls", "values")},
            "moved": self.moved.to_dict(),
            "ratio": self.ratio.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Old:
    """A buffer as it was."""

    name: str
    module: weakref.ref[nn.Module]
    attribute: str
    value: Tensor


@dataclass(frozen=True, eq=False)
class Recalibration(Result):
    """Running statistics that were set to those of a calibration set, and what they were before.

    Attributes:
        model: name of the model's class.
        method: ``"layerwise"`` or ``"merged"``.
        samples: how many were used.
        batches: in how many batches.
        called: how the model was called.
        rows: the norms that have new statistics, in the order in which they run.
        left: names of norms that were left as they were, each with the reason.
        waiting: about how much the batches took while they waited at a norm, and where they were;
            None under ``"merged"``, where none waits.
        old: the statistics before, by their names in the state dict.
    """

    model: str
    method: Method
    samples: int
    batches: int
    called: str
    rows: tuple[Recalibrated, ...]
    left: dict[str, str]
    waiting: str | None
    old: dict[str, Tensor]
    _buffers: tuple[Old, ...] = field(repr=False)

    @property
    def definition(self) -> str:
        """What the new statistics are, in words."""
        return DEFINITIONS[self.method]

    def undo(self) -> None:
        """Bring the old statistics back, bit for bit; what was written since is lost.

        Raises:
            ModelGone: a norm is gone, or its buffers have another shape. Nothing is written then.
        """
        pairs = [(_now(old), old.value) for old in self._buffers]
        for buffer, value in pairs:
            write_bits(buffer, value.to(buffer.device, buffer.dtype))

    def __str__(self) -> str:
        from frostline.recalibration.telling import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "version": 1,
            "model": self.model,
            "method": self.method,
            "definition": self.definition,
            "samples": self.samples,
            "batches": self.batches,
            "called": self.called,
            "rows": [row.to_dict() for row in self.rows],
            "left": dict(self.left),
            "waiting": self.waiting,
        }


def _now(old: Old) -> Tensor:
    """The buffer that stands where the old one stood."""
    module = old.module()
    buffer = None if module is None else module._buffers.get(old.attribute)
    if buffer is None or buffer.shape != old.value.shape:
        raise ModelGone(
            f"{old.name} is gone or has another shape, so its old value cannot be put back there; "
            "the old values are in .old"
        )
    return buffer

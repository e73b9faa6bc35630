"""Wrong arguments, answered with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from frostline.freezing.arguments import check_model


def check(model: Any, microbatches: Any, batch: Any) -> None:
    """Refuse what is no model, no count, no batch.

    Raises:
        TypeError: for a wrong type.
        ValueError: for a count below 1.
    """
    check_model(model, "explain")
    if microbatches is not None:
        if isinstance(microbatches, bool) or not isinstance(microbatches, int):
            raise TypeError(
                f"microbatches={microbatches!r}: expected how many there are to a step, "
                "as microbatches=8"
            )
        if microbatches < 1:
            raise ValueError(f"microbatches={microbatches}: expected 1 or more")
    if isinstance(batch, DataLoader | Iterator):
        raise TypeError(
            f"batch is a {type(batch).__name__}; expected one batch: batch=next(iter(loader))"
        )

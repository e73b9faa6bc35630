"""A set-up that a rule is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(eq=False)
class Case:
    """What an audit is given, and what it is to find.

    Attributes:
        model, frozen, optimizer, batch, compute_loss: as `fl.audit` takes them.
        codes: all codes of severity warning or above that it finds, and those of the rule itself
            where it only informs; empty for a good case.
    """

    model: nn.Module
    frozen: Any = None
    optimizer: Optimizer | None = None
    batch: Any = None
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None
    codes: frozenset[str] = frozenset()

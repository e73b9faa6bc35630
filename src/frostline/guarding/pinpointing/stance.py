"""Compiled code runs eagerly for a while, and can be compiled and run as before afterwards."""

from __future__ import annotations

import torch
from torch._dynamo import eval_frame
from torch._dynamo.decorators import set_stance


class EagerStance:
    """`torch.compiler.set_stance("force_eager")`, entered and left from different places.

    A dispatch mode alone would make torch mark the code it meets as never to be compiled again.
    """

    def __init__(self) -> None:
        self._held: set_stance | None = None

    def enter(self) -> None:
        """Make compiled code run eagerly, in all threads."""
        self._held = torch.compiler.set_stance("force_eager")

    def leave(self) -> None:
        """Give back what was before, unless somebody else has set another stance since."""
        if self._held is not None and eval_frame._stance is self._held.stance:
            self._held.__exit__(None, None, None)
        self._held = None

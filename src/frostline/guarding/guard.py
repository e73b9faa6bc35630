"""``guard``: watch what is frozen while a model trains, and answer when it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from frostline.guarding import arguments
from frostline.guarding.arguments import OnChange, Pinpoint, Proof
from frostline.selection import Selector

if TYPE_CHECKING:
    from torch import nn

    from frostline.guarding.freeze_guard import FreezeGuard
    from frostline.guarding.target import Guardable

# The machinery is loaded by the first guard: `import frostline` is for everyone.


def guard(
    target: Guardable,
    select: Selector = None,
    *,
    overhead: float = 0.01,
    on_change: OnChange = "raise",
    pinpoint: Pinpoint = False,
    proof: Proof = "auto",
) -> FreezeGuard:
    """Watch that what is frozen does not change, by its bytes, while the block runs.

    Optimizers introduce themselves at their first step. After each step the guard looks, and at
    the exit, at every :meth:`FreezeGuard.check` and at every ``state_dict()`` of the model it reads
    every byte.

    Args:
        target: a :class:`FrozenPart`, several, or a model. Of a model: what is frozen, by
            :func:`frostline.freeze` or by ``requires_grad=False``.
        select: what to watch of a model, frozen by a flag or not: that is the test for CI.
        overhead: fraction of a step that the content patrol may take; never less than 50 us. The
            report announces within how many steps every byte is read.
        on_change: ``"raise"`` :class:`FrozenStateChanged` at the step; ``"warn"``; ``"restore"``
            the frozen bytes from a private copy (as large as the part) and go on; ``"rewind"``
            model, optimizers and random generators to the last full check.
        pinpoint: ``True`` names the line that wrote, and is slow: no compiled code, no fast loops.
            ``"auto"`` does so for the steps after an alarm, with ``on_change`` other than raise.
        proof: ``"pages"`` lets the kernel witness writes (Linux 6.7, memory of this process on the
            CPU): every write is seen at the next step. ``"content"`` reads a little at each
            step. ``"auto"`` takes the first where it can and the second for the rest.

    Returns:
        a context manager; its ``.report`` can be printed at any time.

    Raises:
        SelectionError: nothing is frozen, or ``select`` matches nothing.
        FrozenStateChanged: at the step, or at the exit, with the changes and the report; at the
            entry, if a part changed since it was sealed.
        PagesUnavailable: with ``proof="pages"``, at the entry, if the kernel cannot vouch for all.
        TypeError, ValueError: a target, switch or number that is none.

    Example:
        >>> import torch, frostline as fl
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> part = fl.freeze(net, "0")
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with fl.guard(part) as guard:
        ...     for _ in range(3):
        ...         net(torch.randn(4, 2)).sum().backward()
        ...         optimizer.step()
        >>> guard.report.ok, guard.report.steps
        (True, 3)
    """
    from frostline.guarding.freeze_guard import FreezeGuard

    arguments.check(overhead, on_change, pinpoint, proof)
    return FreezeGuard(target, select, overhead, on_change, pinpoint, proof)


def collecting(
    model: nn.Module, select: Selector = None, *, pinpoint: Pinpoint = False
) -> FreezeGuard:
    """A guard that never raises: flags decide what is frozen, and it may be nothing yet."""
    from frostline.guarding.freeze_guard import FreezeGuard

    return FreezeGuard(model, select, 0.01, "collect", pinpoint, "auto")

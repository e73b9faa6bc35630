"""``audit``: the front door. The machinery is loaded when somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.selection import Selector

if TYPE_CHECKING:
    from frostline.auditing.report import AuditReport


def audit(
    model: nn.Module,
    *,
    frozen: Selector = None,
    optimizer: Optimizer | None = None,
    batch: Any = None,
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None,
) -> AuditReport:
    """Say what a training step will change although it is frozen, why, and how to mend it.

    A training step is a forward, ``loss.backward()`` and ``optimizer.step()``. It is asked about
    twice: with every module in the mode that it is in, and after ``model.train()``, which is what
    trainers call. How it is known depends on ``batch``:

    - without one it is *read* off the modules and the optimizer; nothing runs;
    - with tensors on the meta device, in the batch or in the model, it is *predicted*: the step
      runs on tensors without memory, so that a model of any size fits;
    - with a real batch it is *measured*: the step runs, bytes are compared, and everything is put
      back: values, gradients, modes, hooks, random generators, the optimizer's state.

    Args:
        model: the model, as it is to be trained. It is left exactly as it was.
        frozen: a selector of what is claimed to be frozen, as ``"backbone"``. Without one it is
            what ``requires_grad=False`` and frozen parts say.
        optimizer: the one that will step, or None.
        batch: one batch. Without ``compute_loss`` a dict is called as ``model(**batch)``, a tuple
            or list as ``model(batch[0])``, anything else as ``model(batch)``; the report says what
            was called, and what of the output stood for the loss.
        compute_loss: ``compute_loss(model, batch)`` gives the loss, a tensor of one number.

    Returns:
        an :class:`AuditReport`, to be printed; ``.ok`` unless something may go wrong.

    Raises:
        SelectionError: ``frozen`` selects nothing.
        BatchError: the model cannot be run on the batch.
        TypeError: a model, an optimizer, a batch or a function that is none.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
        >>> _ = net[0].running_var.fill_(2.0), net[0].requires_grad_(False)
        >>> report = audit(net)
        >>> report.ok, report.will_change[0], report.findings[0].mend
        (False, '0.running_mean', 'fl.freeze(model, fl.FLAGGED)')
        >>> exec(report.findings[0].mend, {"fl": __import__("frostline"), "model": net})
        >>> audit(net).ok
        True
    """
    from frostline.auditing import arguments, judging

    arguments.check(model, optimizer, batch, compute_loss)
    return judging.judge(model, frozen, arguments.inner(optimizer), batch, compute_loss)

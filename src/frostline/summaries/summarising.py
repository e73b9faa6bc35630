"""``summary``: what is trainable, what a step will cost in memory, and what leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from frostline.summaries.result import Summary

# The machinery is loaded when somebody asks: `import frostline` is for everyone.


def summary(model: nn.Module, *, optimizer: Optimizer | None = None, batch: Any = None) -> Summary:
    """Count a model's parameters and buffers, and predict the memory of a training step.

    Counted by memory, each byte once: a tied tensor, views of one storage, a shared module.
    Predicted are gradients, the optimizer's state (what is there already is measured), and with
    ``batch`` what one forward keeps for backward. A tree of modules says what is trainable, frozen,
    held, or leaky: frozen to the eye, and yet written by the next training step. Nothing is
    changed, and the forward of a prediction allocates nothing.

    Args:
        model: the model, in the modes and with the flags that are asked about.
        optimizer: the one that will train it; without it, what AdamW and SGD with momentum would
            keep is told.
        batch: run the model on it without memory, under fake tensors, and count what stays for
            backward. Where that cannot be (the model's code asks for values), it is run for real,
            everything is put back, and the result says "measured". A dict is called as
            ``model(**batch)``, a tuple or list as ``model(batch[0])``, anything else as
            ``model(batch)``; kept is the loss if the output has one, else the sum of its
            floating-point numbers.

    Returns:
        a :class:`Summary`, to be printed.

    Raises:
        BatchError: the model cannot be run on ``batch``.
        TypeError: a model or an optimizer that is none.

    Example:
        >>> import torch, frostline as fl
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> _ = net[0].requires_grad_(False)
        >>> found = summary(net, optimizer=torch.optim.AdamW(net.parameters()))
        >>> found.parameters, found.trainable, found.bytes, found.gradient_bytes
        (46, 10, 184, 40)
        >>> found.optimizer_bytes  # two moments of each trainable element, and a counter of each
        88
    """
    from frostline.summaries import arguments, assembling

    arguments.check(model, optimizer, batch)
    return assembling.make(model, arguments.inner(optimizer), batch)

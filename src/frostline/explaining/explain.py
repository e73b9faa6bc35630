"""``explain``: what each module does in training and in eval mode, and what it writes to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from frostline.selection import Selector

if TYPE_CHECKING:
    from frostline.explaining.explanation import Explanation

# The machinery is loaded when somebody asks: `import frostline` is for everyone.


def explain(
    model: nn.Module,
    select: Selector = None,
    *,
    microbatches: int | None = None,
    batch: Any = None,
) -> Explanation:
    """Say why the output of ``model`` may change: what each module does in the mode it is in.

    Told of are all modules that behave differently in training mode, draw random numbers, write to
    their own tensors, or normalise; equal ones together. For each: what it does now and in the
    other mode, with the formulas of what it writes, what ``requires_grad=False`` stops and what
    not, whether a frozen part holds it, and the line that would. Nothing is changed.

    Args:
        model: the model, in the modes that are asked about.
        select: which part of it; None is all.
        microbatches: in how many microbatches a step is accumulated. Then it is also said what
            that does to running statistics: how fast they forget, and by how much the variance is
            too small.
        batch: run the model on it once and say what ran and what was written; with
            ``microbatches``, run it whole and in pieces, and compare with the formulas. A dict is
            called as ``model(**batch)``, a tuple or list as ``model(batch[0])``, anything else as
            ``model(batch)``. Everything is put back, which takes the memory of the model again.

    Returns:
        an :class:`Explanation`, to be printed.

    Raises:
        SelectionError: ``select`` matches nothing.
        BatchError: the model cannot be run on ``batch``, or it has fewer samples than microbatches.
        TypeError, ValueError: a model or a count that is none.

    Example:
        >>> import torch, frostline as fl
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4))
        >>> explanation = fl.explain(net)
        >>> print(explanation.rows[0].behaviour.now.writes[0])
        running_mean <- 0.9 running_mean + 0.1 batch mean
    """
    from frostline.explaining import arguments, explanation

    arguments.check(model, microbatches, batch)
    return explanation.make(model, select, microbatches, batch)

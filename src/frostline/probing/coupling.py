"""``coupling``: whether samples of a batch see each other, and by which modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from frostline.probing.result import Coupling

# The machinery is loaded when somebody asks: `import frostline` is for everyone.


def coupling(
    model: nn.Module,
    batch: Any,
    *,
    compute_loss: Callable[[nn.Module, Any], Tensor] | None = None,
) -> Coupling:
    """Find the modules that couple the samples of a batch, so that accumulation is not exact.

    Gradients of microbatches add up to those of the big batch if each sample is computed by itself
    and the loss is a sum or a mean over samples. That is tried out: some samples are replaced by
    others, and what moves of the rest was coupled. The model runs in the modes that it is in, on
    four samples of ``batch`` (on two, if there are no more), six to twelve times; gradients, state
    and random generators are as before.

    Args:
        model: the model, as it is to be trained.
        batch: one batch of 2 samples or more, or a list of microbatches. A dict is called as
            ``model(**batch)``, a tuple or list as ``model(batch[0])``, anything else as
            ``model(batch)``. Real samples, not zeros: what is replaced must differ.
        compute_loss: also tell whether the loss is a sum or a mean over samples, when it is
            computed as ``compute_loss(model, batch)``.

    Returns:
        a :class:`Coupling`, to be printed; ``.ok`` if accumulation equals the big batch.

    Raises:
        BatchError: the model cannot be run on these samples, or there is only one.
        TypeError: a model or a function that is none.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4))
        >>> found = coupling(net, torch.randn(8, 2))
        >>> found.ok, found.names, found.couplers[0].joinable
        (False, ['1'], True)
        >>> coupling(net.eval(), torch.randn(8, 2)).ok
        True
    """
    from frostline.probing import arguments, making

    arguments.check(model, batch, compute_loss)
    return making.make(model, batch, compute_loss)

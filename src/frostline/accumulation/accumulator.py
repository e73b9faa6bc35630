"""``fl.Accumulator``: windows of microbatches in one's own training loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from weakref import finalize

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from frostline.accumulation.arguments import check_accumulator
from frostline.accumulation.own_loop.arguments import refuse_unfit
from frostline.accumulation.own_loop.in_parts import InParts
from frostline.accumulation.own_loop.looking_ahead import Iteration, check_loader, looking_ahead
from frostline.accumulation.own_loop.open_window import OpenWindow
from frostline.accumulation.own_loop.saved_window import restored, saved
from frostline.accumulation.own_loop.stepping import Stepping
from frostline.accumulation.statistics.running_statistics import Deferred, policy
from frostline.accumulation.statistics.windows import BatchNorm
from frostline.errors import AccumulationError, FrostlineWarning

T = TypeVar("T")


class Accumulator:
    """Gradients equal the big batch's unless a norm looks across the batch while it trains.

    So they do without BatchNorm, and with BatchNorm that is held (``fl.freeze``); otherwise each
    microbatch is normalised with itself, and ``fl.accumulate`` has the exact gradients. Loss and
    gradients are those of the mean over all items of a window, whatever the sizes of its
    microbatches, and how many there are: the last window of a loader may be shorter.

    When a window is full, ``backward`` averages gradients over ranks, unscales, clips, steps the
    optimizer, the scaler and the scheduler, and zeroes. Nobody else may step the optimizer, nor
    zero its gradients, while a window is open. Gradients from before a window are a part of its
    step, as in plain torch, and are neither weighed nor rescaled with it.

    Args:
        model: in the mode to train in; DistributedDataParallel, or sharded by ``fully_shard``, if
            it is trained on several ranks, which then end their windows together.
        optimizer: over parameters of the model, and others if there are.
        microbatches: how many make a window, 1 or more.
        batchnorm: what becomes of running statistics. ``"deferred"``: one update a window, from
            the moments of all its microbatches; ``"compensated"``: an update each, with the
            momentum m' = 1 - (1 - m)^(1/K); ``"plain"``: an update each, as torch does.
        max_grad_norm: clip the window's gradient to this norm, over all that the optimizer has.
        scaler: of a loss in half precision. A window whose step it leaves out is counted in
            ``skipped`` and leaves statistics, gradients and the scheduler as they were.
        scheduler: of the learning rate; stepped after each step of the optimizer, once a window.

    Raises:
        AccumulationError: a wrong argument; ``batchnorm="exact"``, which needs all microbatches of
            a window at once; LBFGS, DataParallel on several devices, FSDP1.

    Warns:
        FrostlineWarning: the model is compiled, and runs without its compiled code unless
            ``batchnorm="plain"``; later, for gradients from before the first window, and for a
            window that is left open.

    Example:
        >>> import torch
        >>> net = nn.Linear(3, 2)
        >>> acc = Accumulator(net, torch.optim.SGD(net.parameters(), lr=0.1), microbatches=4)
        >>> loader = torch.randn(10, 5, 3)
        >>> for x in acc.iterate(loader.unbind()):
        ...     loss = acc.backward(net(x).square().mean(), items=len(x))
        >>> acc.steps, acc.pending
        (3, 0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        microbatches: int,
        *,
        batchnorm: BatchNorm = "deferred",
        max_grad_norm: float | None = None,
        scaler: GradScaler | None = None,
        scheduler: Any = None,
    ) -> None:
        check_accumulator(
            model,
            optimizer,
            microbatches,
            batchnorm=batchnorm,
            max_grad_norm=max_grad_norm,
            scaler=scaler,
            scheduler=scheduler,
        )
        refuse_unfit(model, optimizer, scaler)
        stepping = Stepping(optimizer, max_grad_norm, scaler, scheduler)
        statistics = policy(batchnorm, model)
        if isinstance(statistics, Deferred):
            statistics = InParts(model)
        self._window = OpenWindow(model, microbatches, statistics, stepping)
        self._iteration: object | None = None
        finalize(self, self._window.farewell)

    # --- the loop -----------------------------------------------------------------------------

    def iterate(self, loader: Iterable[T]) -> Iteration[T]:
        """The batches of ``loader``, each a microbatch; one is read ahead, to know the last one.

        The last batch ends its window, full or not. A batch that is left without
        ``backward`` (``continue``) does not count. A loop that is left early (``break``, an
        exception) leaves its window open: the next ``iterate`` goes on in it, with a warning.

        Args:
            loader: gives batches; what is given must not be overwritten when the next is read.

        Returns:
            an iterable, as long as the loader, as often as the loader is.

        Raises:
            AccumulationError: no loader; another loop over this Accumulator began meanwhile.
        """
        check_loader(loader)
        return Iteration(loader, self._run)

    def microbatch(self, last: bool | None = None) -> AbstractContextManager[None]:
        """One microbatch, for loops that ``iterate`` does not fit: forward and backward inside.

        Args:
            last: whether the window ends with it; None: if it is full with it.

        Raises:
            AccumulationError: a microbatch is open.

        Example:
            >>> import torch
            >>> net = nn.Linear(3, 2)
            >>> acc = Accumulator(net, torch.optim.SGD(net.parameters(), lr=0.1), microbatches=2)
            >>> for size in (5, 4, 3):
            ...     with acc.microbatch():
            ...         _ = acc.backward(net(torch.randn(size, 3)).mean(), items=size)
            >>> acc.steps, acc.pending
            (1, 1)
            >>> acc.flush()
            >>> acc.steps, acc.pending
            (2, 0)
        """
        return self._window.microbatch(last)

    def backward(self, loss: Tensor, items: Any = 1) -> Tensor:
        """Go backward with the weight of this microbatch; at the end of a window, step and zero.

        Args:
            loss: a scalar, the mean over the items of the microbatch (not their sum).
            items: over how many items it is a mean: samples, or tokens that are not ignored, a
                whole number or a tensor that holds one. Left out, all microbatches weigh the same.

        Returns:
            the loss, detached. Weighted by items, those of a window have the big batch's as mean.

        Raises:
            AccumulationError: not inside of a microbatch, or a second time; no scalar, or without
                a gradient; no items; gradients were cleared meanwhile; without a scaler, the loss
                of a microbatch or the norm of the gradient is no finite number. What goes wrong
                after the checks discards the window.
        """
        return self._window.backward(loss, items)

    def flush(self) -> None:
        """Step with the microbatches of the open window, if there are any.

        Raises:
            AccumulationError: as at the end of a window; under FSDP2, which has to know before.
        """
        self._window.flush()

    def discard(self) -> None:
        """Drop the open window: gradients and running statistics are as before it."""
        self._window.discard()

    def _run(self, batches: Iterable[T]) -> Iterator[T]:
        mine, ended = self._begin(), self.steps + self.skipped
        given = 0
        for given, (batch, is_last) in enumerate(looking_ahead(batches), 1):  # noqa: B007
            with self.microbatch(last=True if is_last else None):
                yield batch
            if self._iteration is not mine:
                raise AccumulationError(
                    "another loop over acc.iterate(...) began before this one ended; one at a "
                    "time, or one Accumulator for each optimizer"
                )
        # The last batch was left without a backward.
        self._window.flush()
        self._iteration = None
        if given and self.steps + self.skipped == ended:
            warnings.warn(
                f"the loop over acc.iterate gave {given} microbatches and acc.backward was called "
                "for none, so that nothing was stepped. Write acc.backward(loss), not "
                "loss.backward()",
                FrostlineWarning,
                stacklevel=2,
            )

    def _begin(self) -> object:
        self._window.drop_microbatch()
        if self.pending and self._iteration is not None:
            warnings.warn(
                f"the loop before was left with an open window ({self.pending} of "
                f"{self._window.count} microbatches), which goes on with these batches. If that is "
                "not meant, before the loop: acc.flush() to step, acc.discard() to drop it",
                FrostlineWarning,
                stacklevel=3,
            )
        self._iteration = mine = object()
        return mine

    # --- what there is to log -----------------------------------------------------------------

    @property
    def loss(self) -> float | None:
        """The last window's loss, the mean over its items on all ranks; None before the first."""
        return self._window.loss

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last window's gradient before clipping; None without max_grad_norm."""
        return self._window.stepping.grad_norm

    @property
    def steps(self) -> int:
        """Windows that were stepped."""
        return self._window.steps

    @property
    def skipped(self) -> int:
        """Windows whose step the scaler left out."""
        return self._window.skipped

    @property
    def pending(self) -> int:
        """Microbatches in the open window, 0 if none is open."""
        return len(self._window.items)

    # --- checkpoints --------------------------------------------------------------------------

    def state_dict(self, gradients: bool = False) -> dict[str, Any]:
        """The open window: counts, losses, running statistics; each rank has its own.

        Args:
            gradients: with what has added up so far, so that training goes on in this window, to
                the same bits. Under FSDP2 only between windows.

        Returns:
            numbers, texts, tensors, and lists and dicts of them.

        Raises:
            AccumulationError: ``gradients`` of an open window under FSDP2.
        """
        return saved(self._window, gradients=gradients)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the window of ``state``; call it after the model has loaded its own.

        Without gradients in it, the window starts again at its first microbatch: statistics are as
        before it, and the loader has to go back by the ``pending`` of the time of saving.

        Args:
            state: of an Accumulator with the same arguments.

        Raises:
            AccumulationError: it does not belong here.
        """
        self._iteration = None
        restored(self._window, state)

"""The gradients of an open window, apart from those of before."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

from torch import Tensor, nn

from frostline.accumulation.gradients import set_aside
from frostline.accumulation.own_loop.stepping import Stepping
from frostline.errors import AccumulationError, FrostlineWarning

Gradients = list[Tensor | None]


class WindowGradients:
    """What adds up in ``.grad`` while a window is open.

    Args:
        model: what goes backward.
        stepping: whose optimizer may have other parameters, too.

    Attributes:
        leaves: all that may get a gradient in this window, each once.
        before: the gradients from before the window, one for each of ``leaves``.
    """

    def __init__(self, model: nn.Module, stepping: Stepping) -> None:
        self.leaves: list[Tensor] = []
        self.before: Gradients = []
        self._model, self._stepping = model, stepping
        self._aside = ExitStack()
        self._sample: tuple[Tensor, Tensor, int] | None = None
        self._has_warned = False

    def find(self) -> list[Tensor]:
        """Those leaves that there are now."""
        self.leaves = list(dict.fromkeys([*self._model.parameters(), *self._stepping.parameters]))
        return self.leaves

    @property
    def now(self) -> Gradients:
        """What has added up so far, one for each of ``leaves``."""
        return [leaf.grad for leaf in self.leaves]

    def open(self) -> None:
        """Set aside what is there, and begin at nothing."""
        self.find()
        self.before = self.now
        self._aside.enter_context(set_aside(self._model, self.leaves))

    def put(self, gradients: Gradients) -> None:
        """Put these in place of what is there."""
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient

    def close(self, ratio: float) -> None:
        """Multiply what has added up, and add it to what was there before."""
        for gradient in self.now if ratio != 1 else ():
            if gradient is not None:
                gradient.mul_(ratio)
        self._aside.close()
        self._forget()

    def discard(self) -> None:
        """What was there before is back."""
        self._aside.__exit__(_Discarded, _Discarded(), None)
        self._forget()

    def _forget(self) -> None:
        self.before, self._sample = [], None

    def tell_of_old(self) -> None:
        """Warn, once, that there are gradients before a window."""
        if self._has_warned or not any(_is_nonzero(leaf.grad) for leaf in self.find()):
            return
        self._has_warned = True
        warnings.warn(
            "there are gradients from before the window, which are a part of its step, as in "
            "plain torch. If that is not meant: optimizer.zero_grad() before the loop, and "
            "requires_grad_(False) for what others train (a discriminator in a generator's step)",
            FrostlineWarning,
            stacklevel=4,
        )

    def remember(self) -> None:
        """Take note of the gradients after a backward, for :meth:`refuse_cleared`."""
        with_gradient = ((leaf, leaf.grad) for leaf in self.leaves if leaf.grad is not None)
        first = next(with_gradient, None)
        self._sample = None if first is None else (*first, first[1]._version)

    def refuse_cleared(self) -> None:
        """An ``optimizer.zero_grad()`` in the loop takes away what has added up.

        Raises:
            AccumulationError: that happened since :meth:`remember`.
        """
        if self._sample is None:
            return
        leaf, gradient, version = self._sample
        is_untouched = leaf.grad is gradient and gradient._version == version
        if not is_untouched and not any(map(_is_nonzero, self.now)):
            raise AccumulationError(
                "the gradients of the open window were cleared, by optimizer.zero_grad() or the "
                "like. acc.backward zeroes them when it has stepped; take the call out of your loop"
            )


class _Discarded(Exception):
    """What a window ends with that does not count."""


def _is_nonzero(gradient: Tensor | None) -> bool:
    # A sum, since sparse tensors have no any().
    return gradient is not None and bool(gradient.abs().sum())

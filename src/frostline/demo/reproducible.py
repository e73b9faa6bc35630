"""The same result on every run, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reproducible() -> Iterator[None]:
    """One thread, deterministic algorithms; generator, threads and flags are put back at the end.

    Sums in another order have other last bits, hence the single thread.

    Example:
        >>> before = torch.get_rng_state()
        >>> with reproducible():
        ...     seed(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)
        torch.set_rng_state(generator)


def seed(value: int) -> None:
    """Seed the CPU generator alone: ``torch.manual_seed`` would reach every device."""
    torch.default_generator.manual_seed(value)

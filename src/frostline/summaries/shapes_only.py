"""Runs on tensors without memory: operations compute shapes, and nothing is left behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def shapes_only() -> Iterator[FakeTensorMode]:
    """What is computed in here has shapes and no values; real tensors are taken for such, too."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # Whoever takes the address of values that are not there gets an error, not garbage.
        fake._allow_unsafe_data_ptr_access = False
        try:
            yield fake
        finally:
            # It would keep weak references until the next collection, and torch swaps no tensor
            # that has some.
            fake.fake_tensor_converter.meta_converter.describer.lookup_tensor.clear()


@contextmanager
def not_logged() -> Iterator[None]:
    """Torch logs an operation that fails on such tensors as an error; ours is to act on it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before

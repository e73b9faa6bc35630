"""What the tests of the audit share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """Let collections look at what the tests of this module make, and not at whole libraries.

    A test that wants dead models gone before it looks pays 0.2 s for each collection otherwise.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

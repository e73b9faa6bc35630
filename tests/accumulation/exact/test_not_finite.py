"""A value that is not finite reaches every loss through the statistics; its source is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from frostline.accumulation.accumulate import accumulate
from frostline.errors import AccumulationError
from tests.accumulation.exact.cases import CASES, cut
from tests.accumulation.exact.test_restored import everything


@pytest.mark.parametrize("offload", [None, "disk", "auto"])
def test_the_microbatch_that_holds_it_is_named(offload: Any) -> None:
    case = CASES["shuffled halves"]
    model, (images, labels) = case.build(), case.big_batch()
    images = images.clone()
    images[5] = torch.nan
    before = everything(model)
    with pytest.raises(AccumulationError, match="microbatch 2 holds values that are not finite"):
        accumulate(model, case.loss, cut((images, labels), [1, 3, 4]), offload=offload)
    assert everything(model) == before

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline._batches import pieces, samples
from frostline.errors import BatchError

Pair = namedtuple("Pair", ["images", "labels"])


@given(st.integers(1, 40), st.integers(1, 40))
def test_pieces_are_nearly_equal_and_join_to_the_batch(total: int, count: int) -> None:
    batch = torch.arange(total)
    if total < count:
        with pytest.raises(BatchError, match=f"holds {total} samples"):
            pieces(batch, count)
        return
    cut = pieces(batch, count)
    sizes = [len(piece) for piece in cut]
    assert torch.equal(torch.cat(cut), batch)
    assert len(cut) == count
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_every_form_of_batch_keeps_its_form() -> None:
    x, y = torch.zeros(5, 2), torch.arange(5)
    for batch in ((x, y), [x, y], {"x": x, "y": y}, Pair(x, y), {"deep": [x, {"y": y}], "k": 3}):
        assert samples(batch) == 5
        first = pieces(batch, 2)[0]
        assert type(first) is type(batch)
    assert pieces(Pair(x, y), 2)[1].labels.tolist() == [3, 4]
    assert pieces({"deep": [x], "k": 3}, 5)[4]["k"] == 3


@pytest.mark.parametrize("batch", ["text", torch.tensor(3.0), (torch.zeros(3), torch.zeros(4)), []])
def test_what_has_no_samples_is_refused(batch: object) -> None:
    with pytest.raises(BatchError, match="share their first dimension"):
        samples(batch)

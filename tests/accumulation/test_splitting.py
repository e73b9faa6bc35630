"""`split`: a batch in microbatches; the forms of batches are in tests/test_batches.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from frostline.accumulation.splitting import split
from frostline.errors import BatchError
from tests.zoo import ZOO, fresh


@pytest.mark.parametrize("name", ["resnet18", "bert", "wav2vec2"])
def test_the_microbatches_of_a_real_batch_run_and_weigh_up_to_its_loss(name: str) -> None:
    entry = ZOO[name]
    model, batch = fresh(entry).eval(), entry.batch()
    with torch.no_grad():
        whole = entry.loss(model, batch)
        for microbatches in (split(batch, size=1), split(batch, count=2)):
            losses = [entry.loss(model, microbatch) for microbatch in microbatches]
            torch.testing.assert_close(sum(losses) / len(losses), whole)


def test_by_size_the_last_is_shorter_by_count_all_are_nearly_equal() -> None:
    batch = (torch.arange(10), torch.arange(10) * 2)
    assert [len(x) for x, _ in split(batch, size=4)] == [4, 4, 2]
    assert [len(x) for x, _ in split(batch, count=4)] == [3, 3, 2, 2]
    assert [len(x) for x, _ in split(batch, size=99)] == [10]
    assert [len(x) for x, _ in split(batch, count=10)] == [1] * 10
    for microbatches in (split(batch, size=4), split(batch, count=4)):
        assert torch.equal(torch.cat([y for _, y in microbatches]), batch[1])


def test_writing_to_a_microbatch_writes_to_the_batch() -> None:
    x = torch.zeros(4)
    split(x, size=2)[1].fill_(1.0)
    assert x.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "expected one of them, as fl.split(batch, size=8)"),
        ({"size": 2, "count": 2}, "expected one of them"),
        ({"size": 0}, "size=0: expected a whole number, 1 or more"),
        ({"count": -1}, "count=-1: expected"),
        ({"size": 2.0}, "size=2.0: expected"),
        ({"count": True}, "count=True: expected"),
        ({"size": "8"}, "size='8': expected"),
        ({"count": 4}, "the batch holds 3 samples; expected 4 or more"),
    ],
)
def test_wrong_sizes_and_counts_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BatchError) as caught:
        split(torch.zeros(3, 2), **options)
    assert says in str(caught.value)


RAGGED = {"boxes": torch.zeros(5, 4), "images": [torch.zeros(3, 8, 8)]}
NO_SAMPLES: list[tuple[Any, str]] = [
    (RAGGED, "batch['boxes'] [5, 4], batch['images'][0] [3, 8, 8]"),
    ((torch.zeros(4), torch.tensor(0.5)), "batch[0] [4], batch[1] []"),
    ("text", "no tensor in a str"),
]


@pytest.mark.parametrize(("batch", "shapes"), NO_SAMPLES)
def test_a_ragged_batch_is_refused_with_its_shapes_and_the_line(batch: Any, shapes: str) -> None:
    with pytest.raises(BatchError) as caught:
        split(batch, size=2)
    assert shapes in str(caught.value)
    assert "for i in range(0, len(x), 8)]" in str(caught.value)


def test_a_batch_without_a_sample_is_refused() -> None:
    empty: Tensor = torch.zeros(0, 3)
    with pytest.raises(BatchError, match="holds no sample"):
        split(empty, size=2)
    with pytest.raises(BatchError, match="holds 0 samples"):
        split(empty, count=1)

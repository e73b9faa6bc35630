from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from frostline.accumulation.splitting import split
from frostline.accumulation.weighing import counts, weights
from frostline.errors import AccumulationError, BatchError


def test_items_are_samples_by_default() -> None:
    batch = {"x": torch.zeros(7, 3), "y": torch.zeros(7)}
    assert counts(split(batch, size=3)) == [3, 3, 1]


def test_the_weighted_losses_are_the_loss_of_the_big_batch_where_tokens_are_ignored() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 9, generator=draw, dtype=torch.float64)
    labels = torch.randint(9, (6, 5), generator=draw)
    labels[labels < 3] = -100
    labels[2:4] = -100  # a microbatch without a single token
    microbatches = split((logits, labels), size=2)
    items = counts(microbatches, lambda batch: (batch[1] != -100).sum())
    assert items[1] == 0
    assert len({*items}) == 3
    losses = [F.cross_entropy(x.flatten(0, 1), y.flatten()) for x, y in microbatches]
    window = sum(w * loss for w, loss in zip(weights(items), losses, strict=True) if w)
    whole = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(window, whole, rtol=1e-14, atol=0)
    plain = (losses[0] + losses[2]) / 2
    assert abs(float(plain - whole)) > 1e-3


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50).filter(any))
def test_weights_are_the_exact_shares_rounded_once(items: list[int]) -> None:
    total = sum(items)
    assert weights(items) == [float(Fraction(count, total)) for count in items]


@pytest.mark.parametrize(
    "value", [3, 3.0, torch.tensor(3), torch.tensor([3.0]), np.int64(3), np.float32(3)]
)
def test_numbers_of_every_kind_are_taken(value: Any) -> None:
    found = counts([None], lambda batch: value)
    assert found == [3]
    assert type(found[0]) is int


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-1, "-1"),
        (2.5, "2.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (torch.tensor(-2), "-2"),
        (torch.tensor(True), "True"),
        (torch.ones(2), "a tensor [2]"),
        (None, "None"),
        ("3", "'3'"),
        (True, "True"),
    ],
)
def test_what_is_no_count_is_refused_with_its_microbatch(value: Any, shown: str) -> None:
    with pytest.raises(AccumulationError) as caught:
        counts(["good", "bad"], lambda batch: value if batch == "bad" else 3)
    assert f"items gave {shown} for microbatch 1; expected" in str(caught.value)


def test_no_items_in_all_is_an_error_and_none_in_one_is_not() -> None:
    assert weights(counts(["a", "b"], {"a": 0, "b": 4}.get)) == [0.0, 1.0]
    with pytest.raises(AccumulationError, match="the 2 microbatches hold no items at all"):
        counts(["a", "b"], lambda batch: 0)


def test_a_ragged_microbatch_needs_items() -> None:
    ragged = {"tokens": torch.zeros(2, 9), "labels": torch.zeros(5)}
    even = {"tokens": torch.zeros(2, 9), "labels": torch.zeros(2)}
    with pytest.raises(BatchError) as caught:
        counts([even, ragged])
    text = str(caught.value)
    assert "microbatch 1" in text
    assert "batch['tokens'] [2, 9], batch['labels'] [5]" in text
    assert "items=lambda batch: len(batch['labels'])" in text
    assert counts([even, ragged], lambda batch: len(batch["labels"])) == [2, 5]

"""The few samples of a probe, and what takes their places."""

from __future__ import annotations

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline._batches import pieces_of
from frostline.errors import BatchError
from frostline.probing.samples import Samples, in_first_half, joined, taken_from


class Pair(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


def both(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(count).float() + 0.5, torch.arange(count)


FORMS: dict[str, Any] = {
    "tensor": lambda n: both(n)[0],
    "tuple": both,
    "list": lambda n: list(both(n)),
    "named": lambda n: Pair(*both(n)),
    "dict": lambda n: {"x": both(n)[0], "more": {"y": both(n)[1]}, "flag": True},
    "encoding": lambda n: UserDict(x=both(n)[0]),
    "texts": lambda n: (both(n)[0], [f"text {i}" for i in range(n)]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [2, 5])
def test_pieces_of_one_sample_give_the_batch_again(form: str, count: int) -> None:
    batch = FORMS[form](count)
    again = joined(pieces_of(batch, 1))
    assert type(again) is type(batch)
    assert repr(again) == repr(batch)


@given(count=st.integers(2, 12), most=st.sampled_from([2, 4]))
def test_each_half_can_be_replaced_by_others(count: int, most: int) -> None:
    few = taken_from([both(count)], most)
    base, one, other, two = (
        few.batch(first=first, second=second)[1].tolist()
        for first, second in ((False, False), (True, False), (False, True), (True, True))
    )
    assert len(base) == few.count == (4 if most == 4 and count >= 4 else 2)
    assert base == list(range(few.count))
    for i, first in enumerate(in_first_half(few.count)):
        assert (one[i] != base[i]) is first
        assert (other[i] != base[i]) is not first
        assert two[i] == (one if first else other)[i]
    assert len(set(two)) == few.count
    assert few.doubled()[1].tolist() == base * 2


def test_replaced_samples_keep_what_belongs_together() -> None:
    images, labels = taken_from([both(8)], 4).batch(first=True)
    assert torch.equal(images, labels + 0.5)


@pytest.mark.parametrize("most", [2, 4])
def test_microbatches_of_one_sample(most: int) -> None:
    few = taken_from(pieces_of(both(6), 1), most)
    assert few.batch()[1].tolist() == list(range(most))


def test_samples_of_one_microbatch_if_it_has_two() -> None:
    """Those of another may have another length."""
    few = taken_from([torch.zeros(2, 3), torch.zeros(2, 5)], 4)
    assert few.batch().shape == (2, 3)


def test_it_is_new_memory() -> None:
    batch = both(4)
    few = taken_from([batch], 4)
    few.batch()[0].add_(1)
    few.stirred().batch(first=True)[0].add_(1)
    assert torch.equal(batch[0], both(4)[0])
    assert torch.equal(few.batch()[0], both(4)[0])


def test_noise_is_its_own_and_goes_into_numbers_only() -> None:
    before = torch.get_rng_state()
    alike = Samples(pieces_of((torch.zeros(4, 3), torch.ones(4).long()), 1), 4)
    images, labels = alike.stirred().batch(first=True)
    assert torch.equal(torch.get_rng_state(), before)
    moved = images.abs().sum(1) > 0
    assert moved.tolist() == [True, False, False, True]
    assert labels.tolist() == [1] * 4


def test_requires_grad_stays() -> None:
    x = torch.zeros(4, 3, requires_grad=True)
    assert taken_from([x], 4).batch().is_leaf
    assert taken_from([x], 4).batch().requires_grad


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ([torch.zeros(1, 3)], "2 samples or more"),
        ([torch.zeros(1, 3), torch.zeros(1, 4)], r"\[1, 3\], \[1, 4\] cannot stand in one batch"),
        (["text"], "no tensor"),
    ],
)
def test_what_gives_no_two_samples_is_refused(window: list[Any], says: str) -> None:
    with pytest.raises(BatchError, match=says):
        taken_from(window, 4).batch()

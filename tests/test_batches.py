from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline._batches import pieces, pieces_of, samples, shapes_in, tensors_in
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


@given(st.integers(1, 40), st.integers(1, 40))
def test_pieces_of_a_size_have_it_but_for_the_last(total: int, size: int) -> None:
    batch = torch.arange(total)
    cut = pieces_of(batch, size)
    sizes = [len(piece) for piece in cut]
    assert torch.equal(torch.cat(cut), batch)
    assert set(sizes[:-1]) <= {size}
    assert 1 <= sizes[-1] <= size


def test_every_form_of_batch_keeps_its_form() -> None:
    x, y = torch.zeros(5, 2), torch.arange(5)
    for batch in ((x, y), [x, y], {"x": x, "y": y}, Pair(x, y), {"deep": [x, {"y": y}], "k": 3}):
        assert samples(batch) == 5
        first = pieces(batch, 2)[0]
        assert type(first) is type(batch)
    assert pieces(Pair(x, y), 2)[1].labels.tolist() == [3, 4]
    assert pieces({"deep": [x], "k": 3}, 5)[4]["k"] == 3


def test_mappings_of_other_kinds_keep_theirs_and_the_batch_its_tensors() -> None:
    from transformers import BatchEncoding
    from transformers.modeling_outputs import BaseModelOutput

    x = torch.arange(10).reshape(5, 2)
    for batch in (
        BatchEncoding({"input_ids": x}),
        OrderedDict(input_ids=x),
        BaseModelOutput(last_hidden_state=x),
    ):
        (key,) = batch
        first, second = pieces(batch, 2)
        assert type(first) is type(second) is type(batch)
        assert first[key].tolist() == x[:3].tolist()
        assert second[key].tolist() == x[3:].tolist()
        assert batch[key] is x


def test_pieces_are_views() -> None:
    batch = {"x": torch.zeros(4, 2), "deep": (torch.zeros(4),)}
    for piece, of in zip(tensors_in(pieces(batch, 2)[1]), tensors_in(batch), strict=True):
        assert piece._base is of


def test_values_of_each_sample_are_cut_beside_the_tensors() -> None:
    x = torch.zeros(3, 2)
    batch: dict[str, Any] = {
        "x": x,
        "texts": ["a", "b", "c"],
        "pair": ("a", "b", "c"),
        "boxes": [{"w": 1}, {"w": 2}, {"w": 3}],
        "ids": np.array([7, 8, 9]),
    }
    assert pieces(batch, 3)[1]["texts"] == ["b"]
    assert pieces_of(batch, 2)[0]["pair"] == ("a", "b")
    assert pieces_of(batch, 2)[1]["boxes"] == [{"w": 3}]
    assert pieces_of(batch, 2)[1]["ids"].tolist() == [9]


def test_as_many_tensors_as_samples_are_cut_each() -> None:
    columns = [torch.arange(3), torch.arange(3) + 10, torch.arange(3) + 20]
    assert [t.tolist() for t in pieces(columns, 3)[1]] == [[1], [11], [21]]
    nested = {"x": torch.zeros(3, 2), "parts": (columns, columns, columns)}
    assert [t.tolist() for t in pieces(nested, 3)[2]["parts"][1]] == [[2], [12], [22]]


def test_what_is_not_one_a_sample_is_passed_on() -> None:
    """The near misses: one too few, one too many, a text and a size that happen to be as long."""
    for other in (["a", "b"], list("abcd"), "abc", b"abc", (32, 32, 3), torch.Size([1, 2, 3]), 3):
        batch = {"x": torch.zeros(3, 2), "other": other}
        assert pieces(batch, 3)[1]["other"] == other
    array = np.zeros((4, 3))
    assert pieces({"x": torch.zeros(3, 2), "array": array}, 3)[0]["array"] is array


@pytest.mark.parametrize("batch", ["text", torch.tensor(3.0), (torch.zeros(3), torch.zeros(4)), []])
def test_what_has_no_samples_is_refused(batch: object) -> None:
    with pytest.raises(BatchError, match="share their first dimension"):
        samples(batch)


def test_shapes_are_told_by_their_places() -> None:
    batch = {"x": torch.zeros(6, 3), "deep": [torch.zeros(4), {"y": torch.zeros(2)}]}
    expected = "batch['x'] [6, 3], batch['deep'][0] [4], batch['deep'][1]['y'] [2]"
    assert shapes_in(batch) == expected
    assert shapes_in(torch.zeros(2)) == "batch [2]"
    assert shapes_in("text") == "no tensor in a str"
    many = shapes_in([torch.zeros(k) for k in range(9)])
    assert many.endswith("batch[5] [5] and 3 more")

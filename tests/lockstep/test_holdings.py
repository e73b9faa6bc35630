"""Who made which tensor, and from whose batch."""

from __future__ import annotations

import gc

import pytest
import torch

from frostline.errors import AccumulationError
from frostline.lockstep.holdings import Holdings

X, Y = torch.randn(3), torch.randn(3)


def test_what_depends_on_a_batch_is_its_runs_alone() -> None:
    holdings = Holdings([X, Y])
    mine = X * 2
    holdings.note(0, torch.mul, (X, 2), mine)
    holdings.note(0, torch.add, (mine, mine), mine + mine)
    with pytest.raises(AccumulationError, match=r"microbatch 1 uses .* microbatch 0 has made"):
        holdings.note(1, torch.add, (Y, mine), Y + mine)
    with pytest.raises(AccumulationError):
        holdings.note(1, torch.cat, ([Y, X],), torch.cat([Y, X]))


def test_what_depends_on_no_batch_is_everybodys() -> None:
    weight = torch.ones(3)
    holdings = Holdings([X, Y], [weight])
    cached = weight.exp()
    holdings.note(0, torch.exp, (weight,), cached)
    holdings.note(1, torch.add, (Y, cached), Y + cached)
    like = torch.zeros_like(X)
    holdings.note(0, torch.zeros_like, (X,), like)
    holdings.note(1, torch.add, (Y, like), Y + like)
    shaped = cached.view_as(X)
    holdings.note(0, torch.Tensor.view_as, (cached, X), shaped)
    holdings.note(1, torch.add, (Y, shaped), Y + shaped)


def test_a_write_in_place_makes_it_depend() -> None:
    holdings, buffer = Holdings([X, Y]), torch.zeros(3)
    holdings.note(0, torch.Tensor.add_, (buffer, X), buffer)
    with pytest.raises(AccumulationError):
        holdings.note(1, torch.add, (Y, buffer), Y)


def test_one_tensor_in_two_batches_is_nobodys() -> None:
    holdings = Holdings([(X, Y), (X,)])
    holdings.note(1, torch.exp, (X,), X.exp())
    with pytest.raises(AccumulationError):
        holdings.note(1, torch.exp, (Y,), Y.exp())


def test_held_is_what_is_alive() -> None:
    holdings = Holdings()
    kept, gone = torch.randn(2), torch.randn(2)
    holdings.note(0, torch.randn, (), kept)
    holdings.note(0, torch.randn, (), gone)
    holdings.note(1, torch.randn, (), torch.randn(2))
    del gone
    gc.collect()
    assert [tensor is kept for tensor in holdings.held(0)] == [True]
    found = holdings.let_go(0)
    assert holdings.held(0) == []
    holdings.take_up(0, found)
    assert holdings.held(0)[0] is kept


def test_an_address_that_is_used_again() -> None:
    holdings = Holdings([X, Y])
    for _ in range(200):
        made = X + 1
        holdings.note(0, torch.add, (X, 1), made)
        del made
        other = torch.ones(3)
        holdings.note(1, torch.add, (Y, other), Y + other)

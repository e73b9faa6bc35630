"""The memory of a run is gone while it waits, and is there again when somebody looks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.lockstep.lockstep import Lockstep
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.shelving import Shelf
from frostline.lockstep.storing import HostStore
from frostline.lockstep.waiting import Waiting


def norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def test_what_a_run_holds_is_put_aside() -> None:
    held: list[Tensor] = []
    weight, batch = torch.randn(64, 64), torch.randn(64, 64)

    def run() -> Tensor:
        x = batch * 3
        held.extend([x, weight])
        dropped = x.exp()
        del dropped
        return norm(x * 2) + x.sum()

    waiting = Waiting(Shelf(HostStore(), [weight, batch]))
    with Lockstep(nn.Identity(), [run], waiting, batches=[batch]) as lockstep:
        call = lockstep.advance(0)
        assert isinstance(call, NormCall)
        values = [held[0].clone(), call.input.clone()]
        lockstep.suspend(0)
        assert [nbytes(tensor) for tensor in (held[0], call.input)] == [0, 0]
        assert nbytes(weight) == 4 * 64 * 64
        lockstep.resume(0)
        assert torch.equal(held[0], values[0])
        assert torch.equal(call.input, values[1])
        lockstep.suspend(0)
        lockstep.advance(0, values[1])  # brings it back by itself
        assert torch.equal(held[0], values[0])


def test_what_depends_on_no_batch_stays() -> None:
    cache: list[Tensor] = []
    batches = [torch.randn(64, 64) for _ in range(2)]

    def run(batch: Tensor) -> Tensor:
        if not cache:
            cache.append(torch.linspace(0, 1, 4096).view(64, 64))
        return norm(batch + cache[0])

    waiting = Waiting(Shelf(HostStore(), batches))
    runs = [partial(run, batch) for batch in batches]
    with Lockstep(nn.Identity(), runs, waiting, batches=batches) as lockstep:
        for k in range(2):
            lockstep.advance(k)
            lockstep.suspend(k)
            assert torch.equal(cache[0], torch.linspace(0, 1, 4096).view(64, 64))


def test_what_runs_share_comes_back_to_stay() -> None:
    cache: list[Tensor] = []
    weight = torch.ones(64, 64, requires_grad=True)

    def run() -> Tensor:
        if not cache:
            cache.append(weight.exp())
        return norm(torch.randn(64, 64) + cache[0])

    waiting = Waiting(Shelf(HostStore(), [weight]))
    with Lockstep(nn.Identity(), [run, run], waiting) as lockstep:
        lockstep.advance(0)
        lockstep.suspend(0)
        assert nbytes(cache[0]) == 0
        lockstep.advance(1)
        assert torch.equal(cache[0], weight.exp())
        lockstep.suspend(1)
        assert nbytes(cache[0]) > 0


def test_memory_that_is_given_away_stays() -> None:
    arrays = []

    batch = torch.ones(64, 64)

    def run() -> Tensor:
        arrays.append((batch * 3).numpy())
        return norm(batch * 1)

    waiting = Waiting(Shelf(HostStore(), [batch]))
    with Lockstep(nn.Identity(), [run], waiting, batches=[batch]) as lockstep:
        lockstep.advance(0)
        lockstep.suspend(0)
        assert float(arrays[0].sum()) == 3 * 64 * 64


def test_after_an_error_everything_is_back() -> None:
    held: list[Tensor] = []

    batch = torch.arange(4096.0).view(64, 64)

    def run() -> Tensor:
        held.append(batch * 1)
        return norm(held[0])

    waiting = Waiting(Shelf(HostStore(), [batch]))
    try:
        with Lockstep(nn.Identity(), [run], waiting, batches=[batch]) as lockstep:
            lockstep.advance(0)
            lockstep.suspend(0)
            assert nbytes(held[0]) == 0
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(held[0], torch.arange(4096.0).view(64, 64))

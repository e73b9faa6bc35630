"""Runs go from norm to norm, once for all in what is to happen once, and end without a trace."""

from __future__ import annotations

import contextlib
import contextvars
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline._moments import Moments
from frostline.errors import AccumulationError
from frostline.lockstep.lockstep import Finished, Lockstep
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.normalising import Statistics, normalise


def net() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 4), norm, nn.Linear(4, 2)).double()


def in_step(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    with Lockstep(model, [lambda b=b: model(b) for b in batches]) as lockstep:
        steps = [lockstep.advance(k) for k in range(len(batches))]
        while isinstance(steps[0], NormCall):
            calls = [step for step in steps if isinstance(step, NormCall)]
            moments = Moments.merged(Moments.of(call.input) for call in calls)
            statistics = Statistics.of(moments, calls[0].eps)
            lockstep.updates.batch_norm(calls[0], moments)
            steps = [
                lockstep.advance(k, normalise(call.input, call.weight, call.bias, statistics))
                for k, call in enumerate(calls)
            ]
        return [step.result for step in steps if isinstance(step, Finished)]


def test_runs_together_are_the_big_batch() -> None:
    ours, theirs = net(), net()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 3, dtype=torch.float64)
    found = torch.cat(in_step(ours, list(x.split([1, 5, 3]))))
    torch.testing.assert_close(found, theirs(x), rtol=1e-12, atol=1e-13)
    for mine, big in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, big, rtol=1e-12, atol=1e-14)
    assert ours[1].num_batches_tracked == 2


def test_context_variables_are_seen_in_the_runs() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    with Lockstep(net(), [variable.get]) as lockstep:
        step = lockstep.advance(0)
        assert isinstance(step, Finished)
        assert step.result == "set"


def test_what_is_suspended_is_thrown_out_newest_first() -> None:
    left: list[str] = []

    def run(name: str) -> None:
        try:
            with torch.no_grad(), torch.autocast("cpu"):
                F.batch_norm(torch.randn(4, 2), None, None, training=True)
        except Exception:
            left.append("caught")  # the user's own handlers are not to see it
            raise
        finally:
            left.append(name)

    with (
        contextlib.suppress(KeyError),
        Lockstep(net(), [lambda n=n: run(n) for n in "abc"]) as runs,
    ):
        for k in range(3):
            runs.advance(k)
        raise KeyError
    assert left == ["c", "b", "a"]
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch._C._len_torch_function_stack() == 0


def test_an_error_of_one_run_is_the_callers() -> None:
    def failing() -> None:
        with torch.no_grad():
            raise KeyError("mine")

    model = net()
    with Lockstep(model, [lambda: model(torch.randn(2, 3).double()), failing]) as lockstep:
        lockstep.advance(0)
        with pytest.raises(KeyError, match="mine"):
            lockstep.advance(1)
    assert [run.greenlet.dead for run in lockstep.runs] == [True, True]
    assert torch.is_grad_enabled()


def test_grad_mode_belongs_to_the_run() -> None:
    seen: list[bool] = []

    def run(grad: bool) -> None:
        with torch.set_grad_enabled(grad):
            F.batch_norm(torch.randn(4, 2), None, None, training=True)
            seen.append(torch.is_grad_enabled())

    with Lockstep(net(), [lambda: run(False), lambda: run(True)]) as lockstep:
        calls = [lockstep.advance(k) for k in range(2)]
        assert torch.is_grad_enabled()
        assert [call.grad for call in calls if isinstance(call, NormCall)] == [False, True]
        for k, call in enumerate(calls):
            assert isinstance(call, NormCall)
            lockstep.advance(k, call.input)
    assert seen == [False, True]


def test_a_functional_call_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    before = list(model.parameters())
    other = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.randn(4, 3).double()
    run = partial(torch.func.functional_call, model, other, (x,))
    with Lockstep(model, [run]) as lockstep, pytest.raises(AccumulationError, match="functional_c"):
        lockstep.advance(0)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
